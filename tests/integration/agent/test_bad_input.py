"""Each wrong setting has its own line, which says what to do, and its own exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.agent.conftest import ROOT, Agent
from tests.integration.agent.control_plane import ControlPlane, Refusal

Start = Callable[..., Agent]


def assert_ends(agent: Agent, *, code: int, says: str) -> None:
    assert agent.wait() == code
    lines = [line for line in agent.stderr.splitlines() if line.startswith("edge-agent:")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in agent.stderr
    assert "secret" not in agent.stderr


def test_no_url(start_agent: Start) -> None:
    assert_ends(start_agent(url=""), code=2, says="--url")


def test_an_unknown_setting_is_met_with_the_nearest_right_one(start_agent: Start) -> None:
    assert_ends(start_agent(EDGE_AGENT_CONCURENCY="3"), code=2, says="did you mean EDGE_AGENT_CONCURRENCY?")


def test_an_unknown_flag_is_met_with_the_nearest_right_one(start_agent: Start) -> None:
    assert_ends(start_agent("--quees", "a"), code=2, says="did you mean --queues?")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "edge.example.com", "http://no-such-host.invalid"])
def test_no_web_address_or_no_such_host(start_agent: Start, url: str) -> None:
    assert_ends(start_agent(url=url), code=3, says=url)


def test_an_address_that_is_no_control_plane(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: Refusal(404, "")
    assert_ends(start_agent(), code=3, says="is not an EdgeControl control plane")


def test_a_refused_connection(start_agent: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_ends(start_agent(url=url), code=4, says="Connection refused")


def test_a_token_that_is_none(start_agent: Start, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("hello\n")
    assert_ends(start_agent("--token-file", str(file)), code=5, says="does not hold an EdgeControl token")


def test_a_token_that_is_not_accepted(plane: ControlPlane, start_agent: Start) -> None:
    plane.token = "ec_other_token"
    assert_ends(start_agent(), code=5, says="create_worker_token")


def test_no_such_interpreter(start_agent: Start) -> None:
    assert_ends(start_agent("--task-python", "/no/such/python"), code=6, says="--task-python")


def test_an_interpreter_without_airflow(start_agent: Start, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    agent = start_agent("--task-python", str(bare / "bin/python"), PYTHONPATH="")
    assert_ends(agent, code=6, says=str(bare / "bin/python"))


def test_an_airflow_that_cannot_be_imported(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    (tmp_path / "broken/airflow").mkdir(parents=True)
    (tmp_path / "broken/airflow/__init__.py").write_text("raise ImportError('half installed')")
    assert_ends(start_agent(PYTHONPATH=str(tmp_path / "broken")), code=6, says="half installed")


def test_a_name_that_is_taken(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: Refusal(409, "name_taken") if path == "workers/register" else None
    assert_ends(start_agent("--name", "edge-7"), code=7, says="'edge-7'")


def test_a_newer_agent_with_the_same_token(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 60})
    plane.wait_for(agent.starts)
    plane.session = "somebody-else"
    assert_ends(agent, code=8, says="a newer agent")
    assert job.report is None
    assert agent.held() == []
    plane.wait_for(lambda: not agent.runners())


def test_a_second_agent_on_the_same_state_directory(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    plane.wait_for(lambda: plane.registrations)
    assert_ends(start_agent(), code=9, says="--state-dir")


def test_an_agent_that_is_too_old(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: Refusal(426, "outdated_agent", "install 0.9")
    assert_ends(start_agent(), code=10, says="install 0.9")


def test_a_state_directory_that_cannot_be_used(start_agent: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_ends(start_agent("--state-dir", str(tmp_path / "file" / "x")), code=11, says="--state-dir")


def test_help_teaches_settings_signals_and_exit_codes() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "agent", "run", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for text in ("EDGE_AGENT_URL", "Signals", "Exit codes", "130", "--task-python", "create_worker_token"):
        assert text in answer.stdout


def test_version(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agent", "version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.startswith(
        "edge-agent 0"
    )
