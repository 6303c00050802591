"""Real agent processes at a control plane of one process; tasks run in the real runner, on a stand-in for Airflow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.agent.control_plane import TOKEN, ControlPlane

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = Path(__file__).resolve().parent / "stand_in"
AGENT = [sys.executable, "-m", "agent"]


def inherited_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("EDGE", "AIRFLOW"))}


def default_state_dir(home: Path) -> Path:
    return home / ".local/state/edgecontrol-agent"


class Agent:
    """One `python -m agent run`, and what can be seen of it from outside.

    Without a URL it is started as on an enrolled machine: it has to know everything by itself.
    """

    def __init__(
        self,
        *,
        folder: Path,
        url: str | None,
        flags: list[str],
        environ: dict[str, str],
        program: Sequence[str | Path] = AGENT,
    ) -> None:
        self.folder = folder
        self.state_dir = folder / "state" if url is not None else default_state_dir(folder)
        self.witness_file = folder / "witness"
        self.stderr_file = folder / f"stderr-{time.monotonic_ns()}"
        known = {"HOME": str(folder)}
        if url is not None:
            flags = ["--url", url, "--state-dir", str(self.state_dir), *flags]
            known = {"EDGE_AGENT_TOKEN": TOKEN}
        with self.stderr_file.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*program, "run", *flags],
                cwd=ROOT if program is AGENT else folder,
                stderr=stderr,
                env={
                    **inherited_environment(),
                    "PYTHONPATH": str(STAND_IN),
                    "WITNESS": str(self.witness_file),
                    **known,
                    **environ,
                },
            )

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    def starts(self) -> list[dict[str, Any]]:
        """What the tasks themselves witnessed: one entry per task that began."""
        return [said for said in self.witnessed() if said["what"] == "start"]

    def witnessed(self) -> list[dict[str, Any]]:
        """Every start and every end, in their order, by the monotonic clock."""
        if not self.witness_file.exists():
            return []
        return [json.loads(line) for line in self.witness_file.read_text().splitlines()]

    def held(self) -> list[Path]:
        return sorted(self.state_dir.glob("jobs/*.*"))

    def runners(self) -> list[psutil.Process]:
        """The fork servers, found by this test's own directory in their command line, and all their children."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.folder) in (line := " ".join(process.cmdline())) and "/runner/runner" in line:
                    found.update({child.pid: child for child in (process, *process.children(recursive=True))})
        return list(found.values())

    def fork_server(self) -> psutil.Process:
        return min(self.runners(), key=lambda process: process.create_time())

    def fork_servers(self) -> set[int]:
        """Process numbers, without those of what they have forked."""
        runners = self.runners()
        numbers = {process.pid for process in runners}
        with contextlib.suppress(psutil.NoSuchProcess):
            return {process.pid for process in runners if process.ppid() not in numbers}
        return self.fork_servers()  # one has ended meanwhile

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, *, seconds: float = 20.0) -> int:
        return self.process.wait(timeout=seconds)

    def kill(self) -> None:
        """What a crash leaves behind: the runner and the jobs live on."""
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        self.kill()
        runners = self.runners()
        for act in (
            psutil.Process.suspend,
            psutil.Process.kill,
        ):  # at one instant, so that none reports another's death
            for process in runners:
                with contextlib.suppress(psutil.Error):
                    act(process)
        for start in self.starts():
            with contextlib.suppress(OSError):
                os.killpg(start["pid"], signal.SIGKILL)


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def start_agent(tmp_path: Path, plane: ControlPlane) -> Iterator[Callable[..., Agent]]:
    """Start an agent at the test's control plane; calling it again restarts it on the same state directory."""
    agents = []

    def start(
        *flags: str,
        url: str | None = None,
        enrolled: bool = False,
        program: Sequence[str | Path] = AGENT,
        **environ: str,
    ) -> Agent:
        address = None if enrolled else plane.url if url is None else url
        agent = Agent(folder=tmp_path, url=address, flags=list(flags), environ=environ, program=program)
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.clean_up()


def doctor(*flags: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """`python -m agent doctor` on a machine with one DAG, as somebody with `folder` for a home directory starts it."""
    dags = folder / "dags"
    dags.mkdir(exist_ok=True)
    (dags / "press.py").write_text("")
    return subprocess.run(
        [*AGENT, "doctor", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **inherited_environment(),
            "HOME": str(folder),
            "PYTHONPATH": str(STAND_IN),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            **environ,
        },
    )


class Enrolling:
    """One `python -m agent enrol`, as somebody with `folder` for a home directory would start it."""

    def __init__(self, *, folder: Path, flags: list[str], environ: dict[str, str], stdin: int) -> None:
        self.state_dir = default_state_dir(folder)
        self.token_file = self.state_dir / "worker.token"
        self.process = subprocess.Popen(
            [*AGENT, "enrol", *flags],
            cwd=ROOT,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # without it a terminal of whoever runs the tests would be asked
            env={**inherited_environment(), "HOME": str(folder), **environ},
        )
        self.stdout = self.stderr = ""

    def wait(self, *, typed: str | None = None) -> int:
        self.stdout, self.stderr = self.process.communicate(typed, timeout=60)
        return self.process.returncode

    def pending(self) -> list[Path]:
        return sorted(self.state_dir.glob("*.pending-*"))

    def token(self) -> str:
        return self.token_file.read_text().splitlines()[0]


@pytest.fixture
def start_enrol(tmp_path: Path, plane: ControlPlane) -> Iterator[Callable[..., Enrolling]]:
    """Enrol at the test's control plane, with the enrolment token in the environment unless it is piped in."""
    started = []

    def start(
        *flags: str, url: str | None = None, given: str | None = None, stdin: int = subprocess.PIPE, **environ: str
    ) -> Enrolling:
        if given is not None:
            environ = {"EDGE_AGENT_ENROLMENT_TOKEN": given, **environ}
        address = plane.url if url is None else url
        all_flags = [*(("--url", address) if address else ()), *flags]
        enrolling = Enrolling(folder=tmp_path, flags=all_flags, environ=environ, stdin=stdin)
        started.append(enrolling)
        return enrolling

    yield start
    for enrolling in started:
        enrolling.process.kill()
        enrolling.process.wait()
