"""How tasks are started without a fork server: each in an interpreter of its own, which ends with it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agent.errors import BadStateDir
from agent.files import write
from agent.runner_link import SOURCE, RunnerAway, no_airflow, not_started
from agent.runner_sockets import runner_folder
from agent.task_kinds import TaskKind


class FreshRunner:
    """A fresh interpreter per job: for systems without `fork`, and where tasks shall share nothing."""

    def __init__(self, *, kind: TaskKind, state_dir: Path, environ: Mapping[str, str]) -> None:
        self.airflow_version = ""
        self.error = ""
        self._kind = kind
        self._python = kind.python
        self._environ = kind.environment(environ)
        self._code = SOURCE.read_bytes()
        self._source = runner_folder(state_dir, kind) / "runner.py"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._begun: list[dict[str, Any]] = []

    @property
    def alive(self) -> bool:
        return self.ready

    @property
    def ready(self) -> bool:
        return bool(self.airflow_version)

    @property
    def handles(self) -> list[socket.socket]:
        return []

    @property
    def socket_path(self) -> None:
        return None

    def renew(self) -> None:
        """There is one generation only: every job's process is a new one."""

    def connect(self, *, spare: Collection[Path] = ()) -> None:
        try:
            write(self._source, self._code)
            self._source.chmod(0o644)
        except OSError as error:
            raise BadStateDir(f"cannot write {self._source}: {error.strerror}") from None
        command = [self._python, str(self._source), "--probe"]
        how: dict[str, Any] = {"env": self._environ, "capture_output": True, "timeout": 60, "check": True}
        try:
            answer = subprocess.run(command, **how, **self._kind.how_to_start())
            self.airflow_version = str(json.loads(answer.stdout)["airflow_version"])[:50]
        except OSError as error:
            raise not_started(error, kind=self._kind) from None
        except (subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            raise no_airflow(self._python, str(error)) from None
        if not self.airflow_version:
            raise no_airflow(self._python, "there is no Airflow in it")

    def start(self, directory: Path) -> None:
        command = [self._python, str(self._source), "--job", str(directory)]
        how: dict[str, Any] = {"env": self._environ, "stdin": subprocess.DEVNULL, "start_new_session": True}
        try:
            process = subprocess.Popen(command, **how, **self._kind.how_to_start())
        except OSError as error:
            raise RunnerAway(f"cannot start {self._python}: {error.strerror}") from None
        self._processes[directory.name] = process
        self._begun.append({"event": "started", "job": directory.name, "pid": process.pid})

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        deadline = time.monotonic() + timeout
        while True:
            begun, self._begun = self._begun, []
            ended = [name for name, process in list(self._processes.items()) if process.poll() is not None]
            if begun or ended or time.monotonic() >= deadline:
                return begun + [
                    {"event": "ended", "job": name, "status": self._processes.pop(name).returncode} for name in ended
                ]
            time.sleep(0.1)

    def close(self, *, drain: bool) -> None:
        self._processes.clear()
