"""All three programs as real processes and real SQL; of Airflow, only the supervisor's call and its API are stand-ins.

The bridge's store writes the jobs, `manage.py serve` hands them out, `python -m agent run` takes them.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests
from psycopg.rows import namedtuple_row

from airflow_bridge.store import NewJob, Store
from edgecontrol import embedded
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """A control plane with its database, and what can be seen of it."""

    def __init__(self, *, folder: Path, execution_api_url: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        self.folder = folder
        self.url = f"http://{listen}"
        self.database_url = embedded.start(folder / "data")
        self.store = Store(self.database_url)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EDGECONTROL_")},
            "EDGECONTROL_DATABASE_URL": self.database_url,
            "EDGECONTROL_DATA_DIR": str(folder / "data"),
            "EDGECONTROL_LISTEN": listen,
            "EDGECONTROL_PROCESSES": "1",
            "EDGECONTROL_EXECUTION_API_URL": execution_api_url,
            "EDGECONTROL_HEARTBEAT_SECONDS": "1",
            "EDGECONTROL_LOG_CHUNK_BYTES": "65536",
        }
        self.log = folder / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve"], cwd=ROOT, env=self.environ, stdout=log, stderr=log
            )

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.url}/api/v1/edge/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def manage(self, *arguments: str) -> str:
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environ, check=True, capture_output=True, text=True).stdout

    def token(self, name: str) -> str:
        path = self.folder / f"{name}.token"
        self.manage("create_worker_token", name, "--file", str(path))
        assert path.stat().st_mode & 0o777 == 0o600
        return path.read_text().splitlines()[0]

    def enqueue(self, *tasks: dict[str, Any], slots: int = 1) -> list[uuid.UUID]:
        jobs = [new_job(task, slots=slots) for task in tasks]
        self.store.enqueue(jobs)
        return [job.id for job in jobs]

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        with psycopg.connect(self.database_url, row_factory=namedtuple_row, autocommit=True) as connection:
            return connection.execute(query, parameters).fetchall()

    def states(self) -> dict[uuid.UUID, str]:
        return {row.id: row.state for row in self.rows("SELECT id, state FROM edgecontrol.job")}

    def until(self, holds: Callable[[], Any], *, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.05)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        finally:
            self.process.kill()
            self.store.close()


def new_job(task: dict[str, Any], *, slots: int = 1) -> NewJob:
    airflow_id = uuid.uuid4()
    path = f"dag_id=d/run_id=r/task_id={airflow_id}/attempt=1.log"
    workload = {"type": "ExecuteTask", "ti": {"id": str(airflow_id), "task": task}, "log_path": path}
    return NewJob(
        id=uuid.uuid4(),
        kind="ExecuteTask",
        airflow_id=airflow_id,
        workload=workload,
        token=f"token-of-{airflow_id}",
        queue="floor",
        slots=slots,
        priority=1,
        team_name="",
        dispatcher=uuid.uuid4(),
        log_path=path,
    )


@pytest.fixture
def airflow() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, airflow: ControlPlane) -> Iterator[Site]:
    site = Site(folder=tmp_path_factory.mktemp("site"), execution_api_url=f"{airflow.url}/execution/")
    try:
        site.until(site.healthy)
        yield site
    finally:
        site.close()


@pytest.fixture
def start_agent(tmp_path: Path, site: Site) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(token: str, *flags: str) -> Agent:
        agent = Agent(folder=tmp_path, url=site.url, flags=list(flags), environ={"EDGE_AGENT_TOKEN": token})
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.clean_up()


def test_jobs_go_through_all_three_programs_and_their_logs_arrive_byte_exact(
    site: Site, airflow: ControlPlane, start_agent: Callable[..., Agent]
) -> None:
    early = site.enqueue({"seconds": 0.2, "bytes": 200_000}, {"state": "up_for_retry"})
    agent = start_agent(site.token("press-7"), "--queues", "floor", "--concurrency", "3")
    site.until(lambda: site.states()[early[0]] == "success")
    late = site.enqueue(*[{"seconds": 0.1}] * 10, {"state": "deferred"})
    site.until(lambda: not {"queued", "claimed", "running"} & set(site.states().values()))

    states = site.states()
    assert [states[job] for job in early] == ["success", "failed"]
    assert {states[job] for job in late} == {"success"}
    assert len(airflow.starts) == len(set(airflow.starts)) == 13

    site.until(lambda: not agent.held())
    jobs = site.rows("SELECT job.*, worker.name FROM edgecontrol.job JOIN edgecontrol.worker ON worker.id = worker_id")
    assert len(jobs) == 13
    for job in jobs:
        chunks = site.rows(
            'SELECT data FROM edgecontrol.log_chunk WHERE job_id = %s AND attempt = %s ORDER BY "offset"',
            job.id,
            job.attempt,
        )
        log = b"".join(chunk.data for chunk in chunks)
        assert hashlib.sha256(log).hexdigest() == job.log_sha256
        assert len(log) == job.log_size == job.log_final_size
        assert (job.name, job.token, job.attempt) == ("press-7", None, 1)
    outcomes = {job.airflow_outcome for job in jobs}
    assert outcomes == {"success", "up_for_retry", "deferred"}

    agent.signal(signal.SIGINT)
    assert agent.wait() == 0
    assert [row.state for row in site.rows("SELECT state FROM edgecontrol.worker")] == ["offline"]


def test_a_job_of_several_slots_starts_soon_after_enough_of_them_are_free(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    agent = start_agent(site.token("press-7"), "--concurrency", "3")
    site.enqueue({"seconds": 2}, {"seconds": 2})
    site.until(lambda: len(agent.starts()) == 2)
    (large,) = site.enqueue({"seconds": 0.1}, slots=3)
    site.until(lambda: site.states()[large] == "success", seconds=12)


def test_a_revoked_job_stops_on_its_machine_and_a_newer_agent_fences_the_older(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    token = site.token("press-7")
    agent = start_agent(token)
    (job,) = site.enqueue({"seconds": 120})
    site.until(agent.starts)
    task = agent.starts()[0]["pid"]
    site.store.revoke([job], reason="no longer wanted")
    site.until(lambda: not agent.held())
    with pytest.raises(ProcessLookupError):
        os.kill(task, 0)
    assert site.states()[job] == "revoked"

    twin = start_agent(token, "--state-dir", str(site.folder / "twin"))
    assert agent.wait() == 8
    assert "newer agent" in agent.stderr
    assert twin.process.poll() is None
