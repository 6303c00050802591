"""The documents name what exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class

from agent import cli as agent_commands
from agent import config as agent_config
from agent import errors
from edgecontrol.environment import PREFIX, Environment
from workers_app.management.endings import MEANINGS

ROOT = Path(__file__).parent.parent
AGENT = ROOT / "docs/agent.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: `python manage.py X ...`, and where only the wheel is installed `python -m manage X ...`.
COMMAND = re.compile(r"(?:manage\.py|python -m manage) ([a-z_]+)([^`\n]*)")

#: `python3 edge-agent.pyz X ...`, and where the package is installed `python -m agent X ...`.
AGENT_COMMAND = re.compile(r"(?:edge-agent\.pyz|python -m agent) ([a-z-]+[^`\n|]*)")
#: Reasons that are no text of the agent.
SAID_OTHERWISE = ("maintenance, with a comment and by whom", "the version is refused")


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


def test_every_picture_in_the_documents_exists() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        (page.parent / picture).resolve() for page in pages for picture in re.findall(r"[\w/-]+\.png", page.read_text())
    }
    assert named <= set((ROOT / "docs/images").glob("*.png"))


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:edgecontrol|workers_app|jobs_app|airflow_bridge|agent|tests)/[\w/.]+)`", text))
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_every_exit_code_of_the_agent_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", AGENT.read_text(), re.M)
    expected = {error.exit_code: error.summary for error in errors.ALL}
    assert {int(code): meaning for code, meaning in rows if code != "0"} == expected


def test_every_command_of_the_agent_is_documented_and_no_other() -> None:
    table = AGENT.read_text().partition("## Commands")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", table, re.M))
    assert rows == {name: command.SUMMARY for name, command in agent_commands.COMMANDS.items()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_of_the_agent_in_a_code_block_can_be_typed(path: Path) -> None:
    for line in blocks(path):
        for rest in AGENT_COMMAND.findall(line):
            typed = re.split(r"\s\d?[<>]", rest)[0]
            agent_commands.build_parser().parse_args(shlex.split(typed, comments=True))


def test_every_reason_in_the_documents_is_one_that_the_agent_gives() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    tables = AGENT.read_text().partition("## Why a machine takes no jobs")[2].partition("## Other ways")[0]
    reasons = re.findall(r"^\| ([^|]+?)(?: \.\.\.)? \| ", tables, re.M)
    assert len(reasons) > 8
    written = [each for each in reasons if each not in ("reason", *SAID_OTHERWISE)]
    assert not [each for each in written if each not in source]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_settings_file_of_the_agent_in_a_code_block_is_one(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", path.read_text(), re.M | re.S)):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        agent_config.read_toml(file, known=agent_config.SETTINGS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_in_the_documents_leads_somewhere(path: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, anchor


def blocks(path: Path) -> Iterator[str]:
    """The lines of every code block, with continued ones put together."""
    for block in re.findall(r"^```\w*\n(.*?)^```", path.read_text(), re.M | re.S):
        yield from block.replace("\\\n", " ").splitlines()


def parser_of(name: str) -> Any:
    assert name in get_commands(), f"there is no command {name}"
    return load_command_class(get_commands()[name], name).create_parser("manage.py", name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_exists_with_its_flags(path: Path) -> None:
    for name, rest in COMMAND.findall(path.read_text()):
        if name == "help":
            continue
        known = parser_of(name)._option_string_actions
        flags = re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest)
        assert not [flag for flag in flags if flag not in known], f"{name} {flags}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_in_a_code_block_is_one_that_can_be_typed(path: Path) -> None:
    for line in blocks(path):
        for name, rest in COMMAND.findall(line):
            # Raises CommandError for a missing, unknown or wrong argument.
            parser_of(name).parse_args(shlex.split(rest, comments=True))


def test_every_command_that_the_page_for_operators_names_exists() -> None:
    words = {"maintenance_mode", "pool_slots", "waits_because"}
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)\b[^`]*`", (ROOT / "docs/operate.md").read_text()))
    assert named - words <= set(get_commands())


def test_every_operation_is_on_the_page_for_operators() -> None:
    from jobs_app import operations as jobs
    from workers_app import operations as workers

    text = (ROOT / "docs/operate.md").read_text()
    every = (*workers.WORKERS, *workers.ENROLMENTS, *jobs.QUEUES, *jobs.JOBS)
    assert not [operation.name for operation in every if operation.name not in text]


def test_every_exit_code_of_the_commands_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/operate.md").read_text(), re.M)
    assert {int(code): meaning for code, meaning in rows} == {code.value: text for code, text in MEANINGS.items()}
