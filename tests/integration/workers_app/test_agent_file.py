"""The agent in one file, as machines fetch it from the control plane."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

FILE, SUM = "/agent/edge-agent.pyz", "/agent/edge-agent.pyz.sha256"

pytestmark = pytest.mark.usefixtures("http")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def body(answer: Any) -> bytes:
    return b"".join(answer.streaming_content)


def test_a_machine_without_any_credential_fetches_it_and_checks_it(agent_file: Path, tmp_path: Path) -> None:
    answer = Client().get(FILE)
    assert (answer.status_code, answer["Content-Length"]) == (200, str(agent_file.stat().st_size))
    assert answer["Content-Disposition"] == 'attachment; filename="edge-agent.pyz"'
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    (fetched / "edge-agent.pyz").write_bytes(body(answer))
    line = Client().get(SUM)
    assert line["Content-Type"].startswith("text/plain")
    checked = subprocess.run(["sha256sum", "--check"], input=line.content, cwd=fetched, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert line.content.decode() == f"{sha256(agent_file)}  edge-agent.pyz\n"


@pytest.mark.parametrize("address", [FILE, SUM])
def test_who_has_it_is_not_sent_it_again(agent_file: Path, address: str) -> None:
    first = Client().get(address)
    assert (first["ETag"], first["Cache-Control"]) == (f'"{sha256(agent_file)}"', "public, no-cache")
    again = Client().get(address, headers={"If-None-Match": first["ETag"]})
    assert (again.status_code, again["ETag"]) == (304, first["ETag"])
    agent_file.write_bytes(b"a newer agent\n")
    newer = Client().get(address, headers={"If-None-Match": first["ETag"]})
    assert (newer.status_code, newer["ETag"]) == (200, f'"{sha256(agent_file)}"')


@pytest.mark.parametrize("address", [FILE, SUM])
@pytest.mark.parametrize("headers", [{"Accept": "application/octet-stream"}, {"Authorization": "Bearer ec_x"}, {}])
def test_whatever_is_shown_or_preferred_it_is_open(agent_file: Path, address: str, headers: dict[str, str]) -> None:
    assert Client(headers=headers).get(address).status_code == 200
    assert Client(headers=headers).head(address).status_code == 200
    assert Client(headers=headers).post(address).status_code == 405


@pytest.mark.parametrize("address", [FILE, SUM])
@pytest.mark.parametrize("there", ["nothing", "a folder"])
def test_where_it_was_not_built_the_answer_says_how(agent_file: Path, address: str, there: str) -> None:
    agent_file.unlink()
    if there == "a folder":
        agent_file.mkdir()
    answer = Client().get(address)
    assert (answer.status_code, answer.json()["code"]) == (404, "agent_not_built")
    assert "`make agent`" in answer.json()["detail"]


def test_another_file_can_be_named(agent_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pyz"
    other.write_bytes(b"from elsewhere")
    monkeypatch.setattr(settings, "EDGECONTROL", settings.EDGECONTROL.model_copy(update={"agent_file": str(other)}))
    assert body(Client().get(FILE)) == b"from elsewhere"


def test_what_is_sent_is_what_was_summed_though_it_is_replaced_meanwhile(agent_file: Path) -> None:
    answer = Client().get(FILE)
    newer = agent_file.with_name("newer")
    newer.write_bytes(b"a newer agent\n")
    newer.replace(agent_file)
    assert f'"{hashlib.sha256(body(answer)).hexdigest()}"' == answer["ETag"]
