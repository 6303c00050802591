"""`manage.py` as an operator starts it: real processes on an empty database."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from psycopg import sql
from psycopg.conninfo import make_conninfo

ROOT = Path(__file__).parents[3]
#: Two Python processes on a busy two-core machine; what must be quick has limits of its own.
PATIENCE = 50


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database in which nothing is yet."""
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(make_conninfo(postgres_url, dbname="postgres"), autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield make_conninfo(postgres_url, dbname=name)
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def manage(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `manage.py` with these arguments and settings and no others."""
    started: list[subprocess.Popen[str]] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGECONTROL_")}

    def manage(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        settings = {"DATA_DIR": str(tmp_path / "data"), "PROCESSES": "1", "THREADS": "16"} | settings
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            cwd=tmp_path,
            env=environment | {f"EDGECONTROL_{name}": value for name, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield manage
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=PATIENCE)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def answers_or_ended(server: subprocess.Popen[str], address: str) -> bool:
    return server.poll() is not None or requests.get(f"http://{address}/api/v1/edge/health", timeout=5).ok


def until(condition: Callable[[], Any], what: str) -> Any:
    """Ask again until it holds: the other side is a process of its own."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException, psycopg.Error):
            if found := condition():
                return found
        threading.Event().wait(0.05)
    raise AssertionError(f"{what}: not within {PATIENCE} s")


@pytest.mark.timeout(180)
def test_two_replicas_start_on_an_empty_database_and_stop_at_once_while_a_claim_is_parked(
    empty_database: str, manage: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    addresses = [free_address(), free_address()]
    servers = [manage("serve", DATABASE_URL=empty_database, LISTEN=address) for address in addresses]
    for address, server in zip(addresses, servers, strict=True):
        until(partial(answers_or_ended, server, address), "health")
        assert server.poll() is None, server.communicate()

    command = manage("create_worker_token", "site-7", DATABASE_URL=empty_database)
    assert command.wait(PATIENCE) == 0, command.communicate()
    session = str(uuid.uuid4())
    headers = {
        "Authorization": f"Bearer {(tmp_path / 'site-7.token').read_text().splitlines()[0]}",
        "Edge-Session": session,
    }
    edge = f"http://{addresses[0]}/api/v1/edge"
    registered = requests.post(
        f"{edge}/workers/register",
        headers=headers,
        timeout=20,
        json={
            "session": session,
            "boot_id": "b",
            "name": None,
            "queues": None,
            "concurrency": 1,
            "agent_version": "0.1.0",
            "airflow_version": "3.3.2",
            "protocol": 1,
            "sysinfo": {},
            "held": [],
        },
    )
    assert registered.status_code == 200, registered.text
    claim = {
        "claim_id": str(uuid.uuid4()),
        "free_slots": 1,
        "wait": 50,
        "revision": registered.json()["revision"],
    }
    with ThreadPoolExecutor(1) as agent, psycopg.connect(empty_database, autocommit=True) as database:
        parked = agent.submit(requests.post, f"{edge}/jobs/claim", json=claim, headers=headers, timeout=60)
        until(
            lambda: (
                database.execute("SELECT FROM edgecontrol.worker WHERE claim_id = %s", [claim["claim_id"]]).fetchone()
                is not None
            ),
            "the claim's first look",
        )
        stopped_at = time.monotonic()
        for server in servers:
            server.send_signal(signal.SIGTERM)
        answer = parked.result(20)
        assert (answer.status_code, answer.json()) == (200, {"jobs": [], "heartbeat_due": False})
        for server in servers:
            _, errors = server.communicate(timeout=20)
            assert server.returncode == 0, errors
            assert "Traceback" not in errors
        assert time.monotonic() - stopped_at < 10, "parked polls kept the processes alive"


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_each_wrong_setting_is_one_line_and_there_is_no_traceback(
    manage: Callable[..., subprocess.Popen[str]], command: str
) -> None:
    process = manage(command, THREADS="few", PROCESSES="0", THREADZ="9", DATABASE_URL="nonsense")
    _, errors = process.communicate(timeout=PATIENCE)
    lines = errors.strip().splitlines()
    assert process.returncode == 2
    assert [line.partition(":")[0] for line in sorted(lines) if line.startswith("EDGECONTROL_")] == [
        "EDGECONTROL_DATABASE_URL",
        "EDGECONTROL_PROCESSES",
        "EDGECONTROL_THREADS",
        "EDGECONTROL_THREADZ",
    ]
    assert len(lines) == 5
    assert "Traceback" not in errors


def test_production_does_not_start_on_what_is_meant_for_trying_out(
    manage: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = manage("serve", PRODUCTION="true")
    out, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "EDGECONTROL_DATABASE_URL: production needs" in errors
    assert "EDGECONTROL_SECRET_KEY: production needs" in errors
    assert "Traceback" not in out + errors
    assert not (tmp_path / "data").exists()
