"""The documents name what exists."""

from __future__ import annotations

import re
from pathlib import Path

from agent import errors
from edgecontrol.environment import PREFIX, Environment

ROOT = Path(__file__).parent.parent


def test_every_setting_of_the_server_is_documented_with_its_default_and_no_other() -> None:
    rows = re.findall(
        r"^\| `(EDGECONTROL_\w+)` \| (`[^`]*`|empty|generated) \|", (ROOT / "docs/settings.md").read_text(), re.M
    )
    documented = {name: default.strip("`") for name, default in rows}

    def shown(name: str, default: object) -> str:
        if name == "secret_key":
            return "generated"
        text = ",".join(default) if isinstance(default, list) else str(default)
        return text.lower() if isinstance(default, bool) else text or "empty"

    assert documented == {
        PREFIX + name.upper(): shown(name, field.default) for name, field in Environment.model_fields.items()
    }


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`make ([a-z-]+)", (ROOT / name).read_text()))
        assert named <= targets, name


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:edgecontrol|workers_app|jobs_app|airflow_bridge|agent|tests)/[\w/.]+)`", text))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_exit_code_of_the_agent_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/connect.md").read_text(), re.M)
    expected = {error.exit_code: error.summary for error in errors.ALL}
    assert {int(code): meaning for code, meaning in rows if code != "0"} == expected
