"""The parts of the demo: how each is started, what it waits for, and how one sees that it is ready."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, LiteralString

import psycopg
import requests

from .airflow_api import AirflowApi
from .database import addresses
from .environments import ADMIN, CHECKOUT, CONCURRENCY, QUEUES, Environments
from .processes import Child, Processes

DAG_ID = "edge_tour"
WORKER = "demo-edge-1"
VARIABLE = {"key": "plant_limits", "value": '{"alarm_above": 30}'}
CONNECTION = {
    "connection_id": "plant_gateway",
    "conn_type": "generic",
    "host": "gateway.plant.example",
    "port": 502,
    "login": "reader",
    "password": "only-an-example",
}


@dataclass(frozen=True)
class Part:
    """One part of the demo: it begins when all in `after` are ready."""

    name: str
    after: tuple[str, ...]
    begin: Callable[[], object]
    is_ready: Callable[[], bool]


def bring_up(parts: Iterable[Part], *, look: Callable[[str], object], done: Callable[[str, float], object]) -> None:
    """Start every part as soon as what it needs is ready; return when all are.

    Between two looks at them `look` is called with what goes on: it waits a moment, and raises what ends the start.
    """
    waiting = list(parts)
    running: dict[str, tuple[Part, float]] = {}
    ready: set[str] = set()
    while waiting or running:
        for part in [part for part in waiting if ready.issuperset(part.after)]:
            part.begin()
            running[part.name] = part, time.monotonic()
            waiting.remove(part)
        look(f"Starting {', '.join(running)}")
        for name, (part, began) in list(running.items()):
            if part.is_ready():
                ready.add(name)
                del running[name]
                done(name, time.monotonic() - began)


def program(
    name: str,
    argv: list[str],
    *,
    processes: Processes,
    env: Callable[[], dict[str, str]],
    after: tuple[str, ...] = (),
    is_ready: Callable[[], bool] | None = None,
    is_done: Callable[[], bool] = lambda: False,
    python: str = sys.executable,
    **kwargs: Any,
) -> Part:
    """Describe a part that is a process of Python: without `is_ready` a command that ends by itself.

    `is_done` tells that an earlier run has left nothing to do for it.
    """
    children: list[Child] = []

    def begin() -> None:
        if not is_done():
            serves = is_ready is not None
            children.append(processes.start(name, [python, *argv], env=env(), cwd=CHECKOUT, serves=serves, **kwargs))

    return Part(name, after, begin, is_ready or (lambda: all(child.succeeded for child in children)))


def answers(control_plane_url: str) -> bool:
    """Whether the control plane is up."""
    try:
        return requests.get(f"{control_plane_url}/api/v1/edge/health", timeout=1).ok
    except requests.RequestException:
        return False


class Parts:
    """All parts of one demo."""

    def __init__(self, programs: Environments, processes: Processes, airflow: AirflowApi) -> None:
        self.programs = programs
        self.airflow = airflow
        self._program = partial(program, processes=processes)
        self.began_at = datetime.now(UTC)
        self._airflow_version = programs.state_dir / "postgres" / "airflow-version"

    def all(self) -> list[Part]:
        """Return every part; where several can begin at once, the one with the longest way to go comes first."""
        of = self.programs
        manage = str(CHECKOUT / "manage.py")
        agent_options = (
            f"--queues={','.join(QUEUES)}",
            f"--concurrency={CONCURRENCY}",
            f"--name={WORKER}",
            f"--state-dir={of.state_dir / 'agent'}",
            "--kill-grace-seconds=1",
        )
        return [
            self._program(
                "PostgreSQL",
                ["-m", "deploy.demo.database", str(of.state_dir)],
                env=lambda: of.plain,
                is_ready=addresses(of.state_dir).exists,
            ),
            self._program(
                "Airflow database",
                ["-m", "airflow", "db", "migrate"],
                env=lambda: of.airflow,
                after=("PostgreSQL",),
                is_done=self._airflow_is_migrated,
            ),
            self._program(
                "control plane",
                [manage, "serve"],
                env=lambda: of.control_plane,
                after=("PostgreSQL",),
                is_ready=partial(answers, of.control_plane_url),
            ),
            self._airflow("api-server", "--host=127.0.0.1", f"--port={of.airflow_port}", is_ready=self.airflow.is_up),
            self._airflow("dag-processor", is_ready=partial(self._beats, "DagProcessorJob")),
            self._airflow("scheduler", "--skip-serve-logs", is_ready=partial(self._beats, "SchedulerJob")),
            self._airflow("triggerer", "--skip-serve-logs", is_ready=partial(self._beats, "TriggererJob")),
            self._program(
                "worker token",
                [manage, "create_worker_token", WORKER, "--force", "--file", str(of.token_file)],
                env=lambda: of.control_plane,
                after=("control plane",),
                is_done=self._token_exists,
            ),
            self._program(
                "agent",
                ["-m", "agent", "run", *agent_options],
                env=lambda: of.agent,
                after=("worker token", "api-server"),  # it would wait longer for an API that is not there yet
                is_ready=self._agent_is_registered,
                stop_signals=(signal.SIGINT, signal.SIGINT),  # lets running tasks end; the second one ends them
            ),
            self._program(
                "admin login",
                [manage, "createsuperuser", "--noinput"],
                env=lambda: of.superuser,
                after=("control plane",),
                is_done=self._superuser_exists,
            ),
            Part("Execution API", ("api-server",), lambda: None, self.airflow.warm_up),
            Part("example DAG", ("api-server", "dag-processor"), self._configure_airflow, self._dag_is_known),
        ]

    def remember_migration(self) -> None:
        """Note Airflow's version beside its database, so that the next demo need not ask Airflow, which takes 4 s."""
        self._airflow_version.write_text(version("apache-airflow-core"))

    def rows(self, database: str, query: LiteralString, *values: object) -> list[Any]:
        """Read from one of the databases."""
        with psycopg.connect(self.programs.databases[database]) as connection:
            return connection.execute(query, values).fetchall()

    def unfinished_jobs(self, run_id: str) -> int:
        """Count the jobs of a run that no agent has reported yet."""
        query: LiteralString = "SELECT count(*) FROM edgecontrol.job WHERE run_id = %s AND finished_at IS NULL"
        return int(self.rows("edgecontrol", query, run_id)[0][0])

    def _airflow(self, name: str, *options: str, is_ready: Callable[[], bool]) -> Part:
        argv = ["-m", "airflow", name, *options]
        after = ("Airflow database",)
        return self._program(name, argv, env=lambda: self.programs.airflow, after=after, is_ready=is_ready)

    def _airflow_is_migrated(self) -> bool:
        noted = self._airflow_version
        return noted.exists() and noted.read_text() == version("apache-airflow-core")

    def _beats(self, job_type: str) -> bool:
        """Whether a component of Airflow has sent a heartbeat in this demo, not in one before."""
        query: LiteralString = "SELECT 1 FROM job WHERE job_type = %s AND latest_heartbeat > %s"
        return bool(self.rows("airflow", query, job_type, self.began_at))

    def _agent_is_registered(self) -> bool:
        query: LiteralString = "SELECT 1 FROM edgecontrol.worker WHERE name = %s AND last_heartbeat > %s"
        return bool(self.rows("edgecontrol", query, WORKER, self.began_at))

    def _token_exists(self) -> bool:
        query: LiteralString = (
            "SELECT 1 FROM edgecontrol.worker_token t JOIN edgecontrol.worker w ON w.id = t.worker_id"
            " WHERE w.name = %s AND t.revoked_at IS NULL"
        )
        return self.programs.token_file.exists() and bool(self.rows("edgecontrol", query, WORKER))

    def _superuser_exists(self) -> bool:
        query: LiteralString = "SELECT 1 FROM edgecontrol.auth_user WHERE username = %s"
        return bool(self.rows("edgecontrol", query, ADMIN))

    def _configure_airflow(self) -> None:
        self.airflow.login()
        self.airflow.put("variables", VARIABLE["key"], VARIABLE)
        self.airflow.put("connections", str(CONNECTION["connection_id"]), CONNECTION)

    def _dag_is_known(self) -> bool:
        return self.airflow.call("GET", f"dags/{DAG_ID}", missing_ok=True) is not None
