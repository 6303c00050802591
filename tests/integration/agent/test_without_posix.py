"""The agent where there is neither fork nor fcntl, resource, Unix sockets or POSIX signals, as on Windows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.agent.conftest import ROOT, STAND_IN, Agent, inherited_environment
from tests.integration.agent.control_plane import ControlPlane

WITHOUT = Path(__file__).resolve().parent / "without_posix"
PATHS = f"{WITHOUT}:{STAND_IN}"
#: Nor does the environment say who this is: a service of Windows may not be told.
ENVIRON = {"PYTHONPATH": PATHS, "LOGNAME": "", "USER": "", "LNAME": "", "USERNAME": ""}

Start = Callable[..., Agent]

MISSING = """
import importlib, os, select, signal, socket
there = [f"{module.__name__}.{name}" for module, names in (
    (os, ("fork", "getuid", "killpg", "setsid", "waitid", "O_NONBLOCK", "chown")),
    (signal, ("SIGKILL", "SIGHUP", "SIGCHLD", "SIGUSR1")), (socket, ("AF_UNIX", "SO_PEERCRED")), (select, ("poll",)),
) for name in names if hasattr(module, name)]
for name in ("fcntl", "pwd", "resource"):
    try:
        importlib.import_module(name)
        there.append(name)
    except ImportError:
        pass
print(there)
"""
IMPORT_ALL = """
import pkgutil, agent
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    if module.name != "agent.__main__":
        __import__(module.name)
        print(module.name)
"""


def python(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**inherited_environment(), **ENVIRON, "HOME": str(folder)},
    )


def test_the_test_takes_away_what_it_says(tmp_path: Path) -> None:
    done = python("-c", MISSING, folder=tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_every_module_is_imported(tmp_path: Path) -> None:
    done = python("-c", IMPORT_ALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "agent.worker" in done.stdout.split()


@pytest.mark.parametrize("command", ["version", "--help"])
def test_commands_that_need_no_agent_work(tmp_path: Path, command: str) -> None:
    done = python("-m", "agent", command, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "edge-agent" in done.stdout


def test_it_enrols_runs_jobs_each_in_an_interpreter_of_its_own_and_drains(
    tmp_path: Path, plane: ControlPlane, start_agent: Start
) -> None:
    agent = start_agent(**ENVIRON)
    jobs = [plane.add({"name": str(number), "bytes": 100_000}) for number in range(2)]
    plane.wait_for(lambda: all(job.report and job.log for job in jobs))
    assert [job.state for job in jobs] == ["success", "success"], agent.stderr
    where = ("--state-dir", str(agent.state_dir))
    asked = python("-m", "agent", "status", "--json", *where, folder=tmp_path)  # at a port: there is no Unix socket
    assert json.loads(asked.stdout)["pid"] == agent.process.pid, asked.stderr
    stopped = python("-m", "agent", "stop", "--wait", *where, folder=tmp_path)
    assert (stopped.returncode, agent.wait()) == (0, 0), stopped.stderr + agent.stderr
    assert not list(agent.state_dir.glob("**/*.sock"))
    assert "Traceback" not in agent.stderr


def test_a_job_that_is_no_longer_wanted_is_stopped(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent(**ENVIRON)
    job = plane.add({"seconds": 60, "child": True})
    plane.wait_for(agent.starts)
    job.state = "revoked"
    plane.wait_for(lambda: not agent.held())
    plane.wait_for(lambda: not agent.runners())
    assert "Traceback" not in agent.stderr


def test_its_jobs_outlive_it_and_the_next_start_takes_them_over(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent(**ENVIRON)
    go = agent.folder / "go"
    job = plane.add({"until": str(go)})
    plane.wait_for(agent.starts)
    agent.kill()
    agent = start_agent(**ENVIRON)
    plane.wait_for(lambda: len(plane.registrations) == 2)
    go.touch()
    plane.wait_for(lambda: job.report is not None)
    assert (job.state, job.attempt, len(agent.starts())) == ("success", 1, 1), agent.stderr


def test_a_second_agent_in_the_same_directory_is_refused(plane: ControlPlane, start_agent: Start) -> None:
    start_agent(**ENVIRON)
    plane.wait_for(lambda: plane.registrations)
    second = start_agent(**ENVIRON)
    assert second.wait() == 9
    assert "another agent runs" in second.stderr
