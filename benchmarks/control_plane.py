"""A real control plane for a benchmark: an embedded PostgreSQL in a temporary directory, and `manage.py serve`.

All listens on a free port of the loopback interface or on a Unix socket; only what was started here is ended here.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from edgecontrol import embedded

CHECKOUT = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0

_ISSUE_TOKENS = """
import django, json, sys
django.setup()
from django.db import transaction
from workers_app import auth, registry
from workers_app.audit import AUTOMATIC
with transaction.atomic():
    workers = [registry.create(name=f"bench-{number:04}", by=AUTOMATIC) for number in range(int(sys.argv[1]))]
    print(json.dumps([auth.issue(worker=worker, by=AUTOMATIC) for worker in workers]))
"""


class Database:
    """The embedded PostgreSQL of this process; it stops and its files go when the process ends, whatever the reason."""

    def __init__(self) -> None:
        # Leaving by SystemExit runs what `atexit` knows.
        signal.signal(signal.SIGTERM, _exit)
        self.directory = Path(tempfile.mkdtemp(prefix="edgecontrol-bench-"))
        # Registered before the server's own stop, hence run after it.
        atexit.register(shutil.rmtree, self.directory, ignore_errors=True)
        # Starting it with the first database, so that its cost is not part of a case.
        self.url("postgres")

    def url(self, database: str) -> str:
        """libpq URL of this database, made when missing."""
        return embedded.start(self.directory, database=database)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(int((self.directory / "postgres" / "postmaster.pid").read_text().split("\n")[0]))


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """A running `manage.py serve`."""

    port: int
    database_url: str
    environment: dict[str, str]
    process: psutil.Process

    def issue_tokens(self, count: int) -> list[str]:
        """Make this many workers, through the control plane's own code; return a token of each."""
        argv = [sys.executable, "-c", _ISSUE_TOKENS, str(count)]
        done = subprocess.run(argv, env=self.environment, cwd=CHECKOUT, stdout=subprocess.PIPE, check=True)
        tokens: list[str] = json.loads(done.stdout)
        return tokens


@contextmanager
def serving(database: Database, *, name: str, **settings: object) -> Iterator[ControlPlane]:
    """Serve from a fresh database of this name; `settings` are EDGECONTROL_ variables in lower case.

    Raises RuntimeError with the end of its log when it does not come up.
    """
    port = _free_port()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("EDGECONTROL_")},
        "DJANGO_SETTINGS_MODULE": "edgecontrol.settings",
        "EDGECONTROL_DATABASE_URL": database.url(name),
        "EDGECONTROL_DATA_DIR": str(database.directory),
        "EDGECONTROL_LISTEN": f"127.0.0.1:{port}",
        **{f"EDGECONTROL_{key.upper()}": str(value) for key, value in settings.items()},
    }
    log = database.directory / f"{name}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "manage.py", "serve"],
            env=environment,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_health(child, port=port, log=log)
        yield ControlPlane(
            port=port,
            database_url=environment["EDGECONTROL_DATABASE_URL"],
            environment=environment,
            process=psutil.Process(child.pid),
        )
    finally:
        _stop(child)
    if trouble := [line for line in log.read_text().splitlines() if " ERROR " in line or "Traceback" in line]:
        raise RuntimeError(f"the control plane logged {len(trouble)} errors, the first: {trouble[0]}")


def cpu_seconds(process: psutil.Process) -> float:
    """Processor time of this process and all below it that are alive."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _wait_for_health(child: subprocess.Popen[bytes], *, port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/api/v1/edge/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    end = "\n".join(log.read_text().splitlines()[-15:])
    raise RuntimeError(f"the control plane did not come up within {_START_SECONDS:.0f} s; its log ends:\n{end}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    processes = [psutil.Process(child.pid), *psutil.Process(child.pid).children()] if child.poll() is None else []
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for process in processes:
            if process.is_running():
                process.kill()
        child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _exit(number: int, frame: FrameType | None) -> Any:
    sys.exit(128 + number)
