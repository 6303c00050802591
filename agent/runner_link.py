"""The agent's side of the task runner: which runner process serves us, and how it is started, found again and ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from agent import __version__
from agent.errors import BadStateDir, NoAirflow
from agent.jobs import write
from agent.packages import Packages

log = logging.getLogger("agent.runner")

ANSWER_SECONDS = 20.0
CONNECT_SECONDS = 5.0
SOURCE = resources.files("agent").joinpath("runner.py")
#: A socket's name may have 107 bytes on Linux and 103 on macOS.
SOCKET_NAME_LIMIT = 100
#: The agent's own settings (the token among them) and what systemd meant for the agent alone.
PRIVATE_PREFIXES = ("EDGE_AGENT_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_")
#: Settings that Airflow and Python read once, while the runner imports them.
READ_AT_IMPORT = ("AIRFLOW", "PYTHON", "LD_", "PATH", "HOME", "VIRTUAL_ENV")


class Runner(Protocol):
    """What the agent needs of whoever starts its jobs' processes."""

    airflow_version: str
    error: str

    @property
    def alive(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    def connect(self) -> None: ...
    def start(self, directory: Path) -> None: ...
    def events(self, *, timeout: float) -> list[dict[str, Any]]: ...
    def close(self, *, drain: bool) -> None: ...


class RunnerAway(Exception):
    """The runner cannot be told anything now."""


def task_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the agent's environment passes on to tasks: everything but what is the agent's own."""
    return {name: value for name, value in environ.items() if not name.startswith(PRIVATE_PREFIXES)}


def no_airflow(task_python: str, why: str) -> NoAirflow:
    """The error for an interpreter that cannot run tasks, with the way out."""
    return NoAirflow(
        f"the task interpreter {task_python} cannot run Airflow tasks: {why}. Install apache-airflow into it "
        "(`pip install 'edgecontrol[agent]' 'apache-airflow>=3.3,<3.4'`), or name another one with --task-python"
    )


class ForkRunner:
    """One fork server per generation: same agent, interpreter, installed packages, source and import-time settings.

    It outlives the agent. A restarted agent of the same generation finds it at its socket; one of another generation
    tells it to drain and starts its own, as a running agent does when the packages change. Until a draining runner
    has ended, it still tells of the jobs that end.
    """

    def __init__(self, *, task_python: str, state_dir: Path, environ: Mapping[str, str]) -> None:
        self.airflow_version = ""
        self.error = ""
        self.pid = 0
        self._python = task_python
        self._environ = task_environment(environ)
        self._folder = state_dir / "runner"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._packages = Packages(python=task_python, environ=self._environ)
        self._generation = ""
        self._socket: socket.socket | None = None
        self._partial = b""
        #: Draining runners, with the part of a line that each has said.
        self._former: dict[socket.socket, bytes] = {}
        self._ready = False
        self._sending = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._socket is not None

    @property
    def ready(self) -> bool:
        return self._ready and self._socket is not None

    def connect(self) -> None:
        """Reach this generation's runner, starting it when there is none. Raises NoAirflow or RunnerAway."""
        self._generation = self._name_generation()
        self._drain_others()
        connection = connect_to(self._path) or self._spawn()
        connection.setblocking(False)
        self._socket, self._partial, self._ready = connection, b"", False
        deadline = time.monotonic() + ANSWER_SECONDS
        self.pid = 0
        while not self.pid:
            self.events(timeout=0.2)
            if self._socket is None or time.monotonic() > deadline:
                raise RunnerAway(f"the task runner does not answer; see {self._log_file}")

    def start(self, directory: Path) -> None:
        """Order the start of a job. Raises RunnerAway when the order did not go out."""
        self._send({"op": "start", "directory": str(directory)})

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        """What the runner says within the timeout. When it is gone, `alive` stays false until `connect`."""
        connection = self._socket  # another thread may close it meanwhile
        if connection is None:
            time.sleep(timeout)
            return []
        try:
            readable = select.select([connection, *self._former], [], [], timeout)[0]
            data = connection.recv(65536) if connection in readable else None
        except BlockingIOError:
            return []
        except (OSError, ValueError):
            readable, data = [], b""
        messages = [message for former in readable if former in self._former for message in self._ends_at(former)]
        if data == b"":
            self._lose()
        elif data:
            *lines, self._partial = (self._partial + data).split(b"\n")
            messages += [json.loads(line) for line in lines]
        if self.ready and self._packages.changed():
            log.info(
                "the packages of %s have changed: its runner ends with its last task, another one starts", self._python
            )
            self._lose()
        for message in messages:
            if message["event"] == "state":
                self._take_state(message)
        return messages

    def close(self, *, drain: bool) -> None:
        """Leave the runner; `drain` tells it to end with its last job."""
        if drain:
            with contextlib.suppress(RunnerAway):
                self._send({"op": "drain"})
        self._lose()

    def _ends_at(self, former: socket.socket) -> list[dict[str, Any]]:
        """Which jobs have ended at a runner that drains."""
        try:
            data = former.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            del self._former[former]
            former.close()
            return []
        *lines, self._former[former] = (self._former[former] + data).split(b"\n")
        return [message for message in map(json.loads, lines) if message["event"] == "ended"]

    def _take_state(self, state: dict[str, Any]) -> None:
        self.pid = state["pid"]
        self._ready = state["ready"]
        self.error = state["error"]
        if not state["airflow_version"]:
            raise no_airflow(self._python, "there is no Airflow in it")
        self.airflow_version = state["airflow_version"]
        if self.error:
            raise no_airflow(self._python, f"importing Airflow failed ({self.error}; see {self._log_file})")

    def _send(self, order: dict[str, Any]) -> None:
        with self._sending:
            if self._socket is None:
                raise RunnerAway("the task runner is not there")
            data = json.dumps(order).encode() + b"\n"
            try:
                while data:
                    select.select([], [self._socket], [], ANSWER_SECONDS)
                    data = data[self._socket.send(data) :]
            except (OSError, ValueError) as error:
                raise RunnerAway(f"the task runner is gone ({error})") from None

    def _lose(self) -> None:
        with self._sending:
            connection, self._socket, self._ready = self._socket, None, False
        if connection is not None:
            connection.close()

    def _spawn(self) -> socket.socket:
        source = self._folder / f"runner-{self._generation}.py"
        try:
            write(source, SOURCE.read_bytes())
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise BadStateDir(f"cannot write to {self._folder}: {error.strerror}") from None
        mode = "ab" if self._log_file.exists() and self._log_file.stat().st_size < 1_000_000 else "wb"
        with self._log_file.open(mode) as output:
            try:
                self._process = subprocess.Popen(
                    [self._python, str(source), "--socket", str(self._path)],
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise no_airflow(self._python, error.strerror or str(error)) from None
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            connection = connect_to(self._path)
            if connection is not None:
                log.debug("started the task runner, process %s", self._process.pid)
                return connection
            if self._process.poll() is not None:
                raise no_airflow(
                    self._python, f"the runner ended with code {self._process.returncode}, see {self._log_file}"
                )
            time.sleep(0.02)
        raise RunnerAway(f"the task runner does not listen; see {self._log_file}")

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._generation}.sock"

    @property
    def _log_file(self) -> Path:
        return self._folder / f"{self._generation}.log"

    def _name_generation(self) -> str:
        facts = [__version__, self._python, SOURCE.read_bytes().decode(), self._packages.fingerprint()]
        facts += [f"{key}={value}" for key, value in sorted(self._environ.items()) if key.startswith(READ_AT_IMPORT)]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12]

    def _drain_others(self) -> None:
        for path in self._folder.glob("*.sock"):
            if path == self._path:
                continue
            connection = connect_to(path)
            if connection is not None:
                with contextlib.suppress(OSError):
                    connection.sendall(b'{"op": "drain"}\n')
                connection.setblocking(False)
                self._former[connection] = b""
            else:
                path.unlink(missing_ok=True)
        for leftover in (*self._folder.glob("*.log"), *self._folder.glob("runner-*.py")):
            generation = leftover.stem.removeprefix("runner-")
            if generation != self._generation and not (self._folder / f"{generation}.sock").exists():
                leftover.unlink(missing_ok=True)


class FreshRunner:
    """A fresh interpreter per job: for systems without `fork`, and where tasks shall share nothing."""

    def __init__(self, *, task_python: str, state_dir: Path, environ: Mapping[str, str]) -> None:
        self.airflow_version = ""
        self.error = ""
        self._python = task_python
        self._environ = task_environment(environ)
        self._source = state_dir / "runner" / "runner.py"
        self._source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def alive(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return bool(self.airflow_version)

    def connect(self) -> None:
        write(self._source, SOURCE.read_bytes())
        command = [self._python, str(self._source), "--probe"]
        try:
            answer = subprocess.run(command, env=self._environ, capture_output=True, timeout=60, check=True)
            self.airflow_version = json.loads(answer.stdout)["airflow_version"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            raise no_airflow(self._python, str(error)) from None
        if not self.airflow_version:
            raise no_airflow(self._python, "there is no Airflow in it")

    def start(self, directory: Path) -> None:
        command = [self._python, str(self._source), "--job", str(directory)]
        try:
            self._processes[directory.name] = subprocess.Popen(
                command, env=self._environ, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise RunnerAway(f"cannot start {self._python}: {error.strerror}") from None

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout
        while True:
            ended = [name for name, process in list(self._processes.items()) if process.poll() is not None]
            if ended or time.monotonic() >= deadline:
                return [
                    {"event": "ended", "job": name, "status": self._processes.pop(name).returncode} for name in ended
                ]
            time.sleep(0.1)

    def close(self, *, drain: bool) -> None:
        self._processes.clear()


def make_runner(*, task_start: str, task_python: str, state_dir: Path, environ: Mapping[str, str]) -> Runner:
    """The runner that the settings ask for and this system can have."""
    kind = ForkRunner if task_start == "fork" and hasattr(os, "fork") else FreshRunner
    return kind(task_python=task_python, state_dir=state_dir, environ=environ)


def connect_to(path: Path) -> socket.socket | None:
    """A connection to the runner at this socket, or None when nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_SECONDS)
    try:
        with short_name(path) as name:
            connection.connect(name)
    except OSError:
        connection.close()
        return None
    return connection


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket that is short enough to connect to, through an open handle of its folder where need be."""
    if len(os.fsencode(path)) <= SOCKET_NAME_LIMIT:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise BadStateDir(
            f"the path of the state directory is too long for a socket: {path}; choose a shorter --state-dir"
        )
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)
