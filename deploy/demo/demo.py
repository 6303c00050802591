"""The story of the demo: which part starts when, what makes it ready, how the example runs.

One thread starts each part as soon as what it needs is ready, and looks at all of them ten times a second, so
a part that dies is noticed at once.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
import requests

from .airflow_api import FINISHED, AirflowApi
from .database import addresses
from .environments import CHECKOUT, CONCURRENCY, QUEUES, Environments, free_port
from .processes import Child, PartFailed, Processes, only_one
from .screen import Screen

DAG_ID = "edge_tour"
WORKER = "demo-edge-1"
ADMIN = "admin"
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
class Step:
    """One part of the start: begins when all in `after` are ready."""

    name: str
    after: tuple[str, ...]
    begin: Callable[[], object]
    is_ready: Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """What became of the example's run."""

    run_id: str
    worker: str
    seconds: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.run_id} succeeded on {self.worker} in {self.seconds:.1f} s, {self.tasks} tasks"


class Demo:
    """All programs of EdgeControl and Airflow on this machine, as a context manager.

    Entering stops what a killed demo left behind; leaving stops everything this one started.
    """

    def __init__(self, state_dir: Path, *, screen: Screen | None = None, seconds: float = 300) -> None:
        self.state_dir = state_dir.resolve()
        self.screen = screen or Screen()
        self.seconds = seconds

    def __enter__(self) -> Self:
        self.began_at = datetime.now(UTC)
        self.deadline = time.monotonic() + self.seconds
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = only_one(self.state_dir)
        self.processes = Processes(self.state_dir)
        began = time.monotonic()
        if count := self.processes.stop_leftovers():
            self.screen.done(f"{count} processes of a killed demo ended", time.monotonic() - began)
        addresses(self.state_dir).unlink(missing_ok=True)
        control_plane_port = free_port(8086)
        airflow_port = free_port(8080, not_this=control_plane_port)
        self.programs = Environments(self.state_dir, control_plane_port, airflow_port)
        self.airflow = AirflowApi(self.programs.airflow_url, user=ADMIN, password=self.programs.password)
        self._migrated = self.state_dir / "postgres" / "airflow-version"
        self._health: tuple[float, dict[str, Any]] = 0.0, {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = time.monotonic()
        self.screen.now("Stopping everything")
        # An impatient second Ctrl-C must not leave half of it running.
        interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.processes.stop()
        signal.signal(signal.SIGINT, interrupts)
        self._lock.close()
        self.screen.done("everything stopped", time.monotonic() - began)

    def start(self) -> None:
        """Start every part; return when the example can be triggered.

        Raises PartFailed for a part that ends early or is not ready in time.
        """
        waiting = self._steps()
        running: dict[str, tuple[Step, float]] = {}
        ready: set[str] = set()
        while waiting or running:
            for step in [step for step in waiting if ready.issuperset(step.after)]:
                step.begin()
                running[step.name] = step, time.monotonic()
                waiting.remove(step)
            self.look(f"Starting {', '.join(running)}")
            for name, (step, began) in list(running.items()):
                if step.is_ready():
                    ready.add(name)
                    del running[name]
                    self.screen.done(name, time.monotonic() - began)
        self._migrated.write_text(version("apache-airflow-core"))

    def look(self, what: str) -> None:
        """Show what goes on, then wait a moment. Raises PartFailed when a part died or the time is over."""
        self.screen.now(what)
        self.processes.check()
        if time.monotonic() > self.deadline:
            raise PartFailed(what, f"and not done after {self.seconds:.0f} s", self.processes.logs)
        time.sleep(0.1)

    def stay(self) -> None:
        """Keep everything up for as long as it takes. Raises PartFailed when a part dies."""
        while True:
            self.processes.check()
            time.sleep(0.2)

    def run_example(self, watch: Callable[[str], object] = lambda run_id: None) -> Outcome:
        """Trigger the example DAG and follow it to its end; `watch` is called with the run's id all along.

        Raises PartFailed when the run fails.
        """
        for old in self.airflow.unfinished_runs(DAG_ID):
            self.airflow.call("PATCH", f"dags/{DAG_ID}/dagRuns/{old}", json={"state": "failed"})
        run = self.airflow.call("POST", f"dags/{DAG_ID}/dagRuns", json={"logical_date": None})
        run_id: str = run["dag_run_id"]
        began, shown = time.monotonic(), 0
        while run["state"] not in FINISHED:
            watch(run_id)
            tasks = self.airflow.task_instances(DAG_ID, run_id)
            done = sum(task["state"] in FINISHED for task in tasks)
            what = f"Running {DAG_ID}: {done} of {len(tasks)} tasks"
            if not self.screen.is_terminal and done >= shown + 10:
                self.screen.line(f"  {what}")
                shown = done
            next_at = time.monotonic() + 0.7
            while time.monotonic() < next_at:
                self.look(what)
            run = self.airflow.call("GET", f"dags/{DAG_ID}/dagRuns/{run_id}")
        tasks = self.airflow.task_instances(DAG_ID, run_id)
        if run["state"] == "failed":
            bad = sorted({task["task_id"] for task in tasks if task["state"] == "failed"})
            raise PartFailed(f"{DAG_ID} {run_id}", f"failed at {', '.join(bad)}", self.processes.logs / "agent.log")
        self.screen.done(f"{DAG_ID}: {len(tasks)} tasks", time.monotonic() - began)
        return Outcome(run_id, self._worker_of(run_id), run["duration"], len(tasks))

    # The parts. Where several could start at once, the one with the longest way to go comes first.

    def _steps(self) -> list[Step]:
        of = self.programs
        manage = str(CHECKOUT / "manage.py")
        airflow = ("-m", "airflow")
        database = "Airflow database"
        return [
            self._part(
                "PostgreSQL",
                ["-m", "deploy.demo.database", str(self.state_dir)],
                env=lambda: of.plain,
                is_ready=addresses(self.state_dir).exists,
            ),
            self._part(
                database,
                [*airflow, "db", "migrate"],
                env=lambda: of.airflow,
                after=("PostgreSQL",),
                is_done=self._airflow_is_migrated,
            ),
            self._part(
                "control plane",
                [manage, "serve"],
                env=lambda: of.control_plane,
                after=("PostgreSQL",),
                is_ready=self._control_plane_answers,
            ),
            self._part(
                "api-server",
                [*airflow, "api-server", "--host=127.0.0.1", f"--port={of.airflow_port}"],
                env=lambda: of.airflow,
                after=(database,),
                is_ready=lambda: "metadatabase" in self._airflow_health(),
            ),
            *(
                self._part(
                    name,
                    [*airflow, name, *options],
                    env=lambda: of.airflow,
                    after=(database,),
                    is_ready=partial(self._is_alive, name.replace("-", "_")),
                )
                for name, options in (
                    ("dag-processor", ()),
                    ("scheduler", ("--skip-serve-logs",)),
                    ("triggerer", ("--skip-serve-logs",)),
                )
            ),
            self._part(
                "worker token",
                [manage, "create_worker_token", WORKER, "--force", "--file", str(of.token_file)],
                env=lambda: of.control_plane,
                after=("control plane",),
                is_done=self._token_exists,
            ),
            self._part(
                "agent",
                [
                    *("-m", "agent", "run", f"--queues={','.join(QUEUES)}", f"--concurrency={CONCURRENCY}"),
                    *(f"--name={WORKER}", f"--state-dir={self.state_dir / 'agent'}"),
                ],
                env=lambda: of.agent,
                after=("worker token",),
                is_ready=self._agent_is_registered,
                stop_signal=signal.SIGINT,  # lets running tasks end; the second one ends them
            ),
            self._part(
                "admin login",
                [manage, "createsuperuser", "--noinput"],
                env=lambda: of.superuser,
                after=("control plane",),
                is_done=lambda: self._finds("SELECT 1 FROM edgecontrol.auth_user WHERE username = %s", ADMIN),
            ),
            Step("Execution API", ("api-server",), lambda: None, self.airflow.warm_up),
            Step("example DAG", ("api-server", "dag-processor"), self._configure_airflow, self._dag_is_known),
        ]

    def _part(
        self,
        name: str,
        argv: list[str],
        *,
        env: Callable[[], dict[str, str]],
        after: tuple[str, ...] = (),
        is_ready: Callable[[], bool] | None = None,
        is_done: Callable[[], bool] = lambda: False,
        **kwargs: Any,
    ) -> Step:
        """Describe a part that is a process of this Python: without `is_ready` a command that ends by itself.

        `is_done` tells of a command that an earlier demo has left nothing to do for.
        """
        children: list[Child] = []

        def begin() -> None:
            if not is_done():
                serves = is_ready is not None
                argv_ = [sys.executable, *argv]
                children.append(self.processes.start(name, argv_, env=env(), cwd=CHECKOUT, serves=serves, **kwargs))

        return Step(name, after, begin, is_ready or (lambda: all(child.succeeded for child in children)))

    def _control_plane_answers(self) -> bool:
        try:
            return requests.get(f"{self.programs.control_plane_url}/api/v1/edge/health", timeout=5).ok
        except requests.RequestException:
            return False

    def _airflow_health(self) -> dict[str, Any]:
        """Ask at most every half second: four parts want to know, and the api-server has work to do."""
        asked_at, health = self._health
        if time.monotonic() > asked_at + 0.5:
            health = self.airflow.health()
            self._health = time.monotonic(), health
        return health

    def _is_alive(self, component: str) -> bool:
        heartbeat = self._airflow_health().get(component, {}).get(f"latest_{component}_heartbeat")
        # A demo that ended a moment ago leaves heartbeats which still look healthy.
        return heartbeat is not None and datetime.fromisoformat(heartbeat) > self.began_at

    def _agent_is_registered(self) -> bool:
        return self._finds(
            "SELECT 1 FROM edgecontrol.worker WHERE name = %s AND last_heartbeat > %s", WORKER, self.began_at
        )

    def _token_exists(self) -> bool:
        return self.programs.token_file.exists() and self._finds(
            "SELECT 1 FROM edgecontrol.worker_token t JOIN edgecontrol.worker w ON w.id = t.worker_id"
            " WHERE w.name = %s AND t.revoked_at IS NULL",
            WORKER,
        )

    def _finds(self, query: LiteralString, *values: object) -> bool:
        return bool(self.edgecontrol_rows(query, *values))

    def edgecontrol_rows(self, query: LiteralString, *values: object) -> list[Any]:
        """Read from the control plane's database."""
        with psycopg.connect(self.programs.databases["edgecontrol"]) as connection:
            return connection.execute(query, values).fetchall()

    def _airflow_is_migrated(self) -> bool:
        """Whether an earlier demo has brought Airflow's database to this version (looking takes Airflow 4 s)."""
        return self._migrated.exists() and self._migrated.read_text() == version("apache-airflow-core")

    def _configure_airflow(self) -> None:
        self.airflow.login()
        self.airflow.put("variables", VARIABLE["key"], VARIABLE)
        self.airflow.put("connections", str(CONNECTION["connection_id"]), CONNECTION)

    def _dag_is_known(self) -> bool:
        return self.airflow.call("GET", f"dags/{DAG_ID}", missing_ok=True) is not None

    def _worker_of(self, run_id: str) -> str:
        names = self.edgecontrol_rows(
            "SELECT DISTINCT w.name FROM edgecontrol.job j JOIN edgecontrol.worker w ON w.id = j.worker_id"
            " WHERE j.dag_id = %s AND j.run_id = %s",
            DAG_ID,
            run_id,
        )
        return ", ".join(sorted(name for (name,) in names))
