"""The agent's side of the task runner: which fork server serves us, and how it is started, found again and ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import select
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from agent import AIRFLOW, __version__
from agent.errors import BadStateDir, NoAirflow
from agent.files import write
from agent.packages import Packages
from agent.runner_sockets import connect_to, drain, runner_folder, socket_folder
from agent.task_kinds import TaskKind

log = logging.getLogger("agent.runner")

ANSWER_SECONDS = 20.0
#: How long a runner is waited for that did not answer at the last try: other runners' jobs end meanwhile.
SILENT_SECONDS = 1.0
SOURCE = resources.files("agent").joinpath("runner.py")
#: More than a runner ever says at once.
MOST_BYTES = 1 << 20
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
    @property
    def handles(self) -> list[socket.socket]:
        """What becomes readable when there is something to hear; none when it has to be asked."""

    @property
    def socket_path(self) -> Path | None:
        """Where it is found; None when nobody can find it."""

    def renew(self) -> None:
        """Look anew which generation is due."""

    def connect(self, *, spare: Collection[Path] = ()) -> None:
        """Reach it, starting it if need be; former ones are told to end, but for those at the sockets to `spare`.

        Raises NoAirflow, RunnerAway or BadStateDir.
        """

    def start(self, directory: Path) -> None: ...
    def events(self, *, timeout: float) -> list[dict[str, Any]]: ...
    def close(self, *, drain: bool) -> None: ...


class RunnerAway(Exception):
    """The runner cannot be told anything now."""


def no_airflow(task_python: str, why: str) -> NoAirflow:
    """The error for an interpreter that cannot run tasks, with the way out."""
    return NoAirflow(
        f"the task interpreter {task_python} cannot run Airflow tasks: {why}. Install Airflow into it "
        f"(`{task_python} -m pip install '{AIRFLOW}'`), or name another one with --task-python"
    )


def not_started(error: OSError, *, kind: TaskKind) -> NoAirflow:
    """The error for an interpreter that is not there, or may not be started by the user of its tasks."""
    whose = f" by {kind.account.name}" if kind.account is not None else ""
    return NoAirflow(
        f"the task interpreter {kind.python} cannot be started{whose} ({error.strerror or error}): name another one "
        "with --task-python"
    )


class ForkRunner:
    """One fork server per generation: same agent, kind of task, installed packages, source and import-time settings.

    It outlives the agent. A restarted agent of the same generation finds it at its socket; one of another generation
    tells it to drain and starts its own, as a running agent does when the packages change. Until a draining runner
    has ended, it still tells of the jobs that end.
    """

    def __init__(self, *, kind: TaskKind, state_dir: Path, environ: Mapping[str, str]) -> None:
        self.airflow_version = ""
        self.error = ""
        self.pid = 0
        self._kind = kind
        self._python = kind.python
        self._uid = kind.uid
        self._environ = kind.environment(environ)
        self._folder = runner_folder(state_dir, kind)
        self._sockets = socket_folder(self._folder, kind)
        self._packages = self._look_at_packages()
        self._code = SOURCE.read_bytes()  # once: the file may go, or become another version's, while the agent runs
        self._generation = ""
        self._silent = False
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

    @property
    def handles(self) -> list[socket.socket]:
        connection = self._socket
        return [connection, *self._former] if connection is not None else []

    @property
    def socket_path(self) -> Path:
        return self._sockets / f"{self._generation}.sock"

    def renew(self) -> None:
        if not self._packages.known:  # its interpreter did not run then
            self._packages = self._look_at_packages()
        self._generation = self._name_generation()

    def connect(self, *, spare: Collection[Path] = ()) -> None:
        self._drain_others({*spare, self.socket_path})
        connection = connect_to(self.socket_path, uid=self._uid) or self._spawn()
        connection.setblocking(False)
        self._socket, self._partial, self._ready = connection, b"", False
        deadline = time.monotonic() + (SILENT_SECONDS if self._silent else ANSWER_SECONDS)
        self.pid, self._silent = 0, False
        while not self.pid:
            self.events(timeout=0.2)
            if self._socket is None or time.monotonic() > deadline:
                self._silent = self._socket is not None
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
            if len(self._partial) > MOST_BYTES:
                raise ValueError("a line without end")
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
        """Which jobs have ended at a runner that drains. One that talks nonsense is heard no more."""
        try:
            data = former.recv(65536)
            *lines, partial = (self._former[former] + data).split(b"\n")
            ended = [message for message in map(json.loads, lines) if message["event"] == "ended"]
        except BlockingIOError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            data = b""
        if not data or len(partial) > MOST_BYTES:
            del self._former[former]
            former.close()
            return []
        self._former[former] = partial
        return ended

    def _take_state(self, state: dict[str, Any]) -> None:
        self.pid = state["pid"]
        self._ready = state["ready"]
        self.error = state["error"]
        if not state["airflow_version"]:
            raise no_airflow(self._python, "there is no Airflow in it")
        self.airflow_version = str(state["airflow_version"])[:50]
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
            write(source, self._code)
            if self._uid is not None:
                source.chmod(0o644)
            self.socket_path.unlink(missing_ok=True)
        except OSError as error:
            raise BadStateDir(f"cannot write to {self._folder}: {error.strerror}") from None
        mode = "ab" if self._log_file.exists() and self._log_file.stat().st_size < 1_000_000 else "wb"
        with self._log_file.open(mode) as output:
            self._log_file.chmod(0o600)
            try:
                self._process = subprocess.Popen(
                    [self._python, str(source), "--socket", str(self.socket_path)],
                    env=self._environ,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **self._kind.how_to_start(),
                )
            except OSError as error:
                raise not_started(error, kind=self._kind) from None
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            connection = connect_to(self.socket_path, uid=self._uid)
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
    def _log_file(self) -> Path:
        return self._folder / f"{self._generation}.log"

    def _look_at_packages(self) -> Packages:
        return Packages(python=self._python, environ=self._environ, how_to_start=self._kind.how_to_start())

    def _name_generation(self) -> str:
        facts = [__version__, self._python, self._code.decode(), self._packages.fingerprint()]
        facts += [f"{key}={value}" for key, value in sorted(self._environ.items()) if key.startswith(READ_AT_IMPORT)]
        facts += [repr(self._kind.account), *(f"{key}={value}" for key, value in sorted(self._kind.given.items()))]
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:12]

    def _drain_others(self, spare: set[Path]) -> None:
        """Tell the former runners of the same user to end; they still tell of their jobs until then."""
        for connection in drain(self._sockets, spare=spare, uid=self._uid):
            connection.setblocking(False)
            self._former[connection] = b""
        wanted = {path.stem for path in (*spare, *self._sockets.glob("*.sock"))}
        for leftover in (*self._folder.glob("*.log"), *self._folder.glob("runner-*.py")):
            if leftover.stem.removeprefix("runner-") not in wanted:
                leftover.unlink(missing_ok=True)
