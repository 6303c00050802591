"""The task runner alone, as a real process: orders go over its socket, what became of a job is on disk."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from agent.runner_sockets import connect_to
from tests.integration.agent.conftest import ROOT, inherited_environment

SECONDS = 60.0


class RunnerProcess:
    """A fork server whose files are in `folder`. Close it: what it forked would live on."""

    def __init__(self, folder: Path, *, python_path: list[Path], **environ: str) -> None:
        self.folder = folder
        self.log_file = folder / "runner.log"
        self._jobs = 0
        path = folder / "runner.sock"
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "agent" / "runner.py"), "--socket", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**inherited_environment(), "PYTHONPATH": os.pathsep.join(map(str, python_path)), **environ},
            )
        self._connection: socket.socket = self.until(lambda: connect_to(path))
        self._connection.settimeout(SECONDS)
        self._lines = self._connection.makefile("rb")
        while not self._next("state")["ready"]:
            pass

    def run(self, workload: dict[str, Any], *, execution_api_url: str, kind: str = "ExecuteTask") -> Path:
        """Order the start of a job and wait for its end; returns its directory."""
        directory = self.order(workload, execution_api_url=execution_api_url, kind=kind)
        while self._next("ended")["job"] != directory.name:
            pass
        return directory

    def order(self, workload: dict[str, Any], *, execution_api_url: str, kind: str = "ExecuteTask") -> Path:
        self._jobs += 1
        directory = self.folder / f"job.{self._jobs}"
        directory.mkdir()
        job = {
            "kind": kind,
            "log_path": workload.get("log_path") or "task.log",
            "patience_seconds": 5.0,
            "hostname": "machine",
            "execution_api_url": execution_api_url,
        }
        (directory / "job.json").write_text(json.dumps(job))
        (directory / "workload.json").write_text(json.dumps(workload))
        self._connection.sendall(json.dumps({"op": "start", "directory": str(directory)}).encode() + b"\n")
        return directory

    def result(self, directory: Path) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((directory / "exit.json").read_text())
        return result

    def until(self, holds: Callable[[], Any], *, seconds: float = SECONDS) -> Any:
        """What `holds` returns once that is true."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            assert self.process.poll() is None, self.log_file.read_text()
            assert time.monotonic() < deadline, self.log_file.read_text()
            time.sleep(0.02)
        return found

    def close(self) -> None:
        self._connection.close()
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.send_signal(signal.SIGKILL)
        self.process.wait()

    def _next(self, event: str) -> dict[str, Any]:
        while True:
            line = self._lines.readline()
            assert line, self.log_file.read_text()
            message: dict[str, Any] = json.loads(line)
            if message["event"] == event:
                return message
