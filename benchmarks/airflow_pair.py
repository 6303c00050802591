"""Two real Airflows for a benchmark, alike but for their executor: one with EdgeControl, one with Airflow's own edge3.

edge3 comes from PyPI into an environment of its own, with the versions of everything else pinned to this checkout's.
Each has its own PostgreSQL, api-server, scheduler, dag-processor and one worker, and is ended with all it started.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from report import add_json_option, command, machine, say

sys.path.append(str(Path(__file__).resolve().parent.parent))  # `deploy` is not installed

from deploy.demo.airflow_api import AirflowApi
from deploy.demo.database import addresses
from deploy.demo.environments import ADMIN, CHECKOUT, Environments, airflow_variables, free_port
from deploy.demo.parts import Part, answers, bring_up, program
from deploy.demo.processes import Child, PartFailed, Processes
from deploy.edge3_environment import edge3_python

DAGS = Path(__file__).resolve().parent / "dags"
QUEUE = "bench"
WORKER = "bench-1"
START_SECONDS = 240.0
#: Tasks that a worker has run before anything is measured.
WARM_UP = 8
#: As Airflow's api-server logs each request it has answered.
_ACCESS = re.compile(r"^(\S+) .*\[http\.access\].* method=(\w+) path=(\S+)")


@dataclass(frozen=True)
class BenchEnvironments(Environments):
    """The demo's, with the benchmark's DAG and room for all its tasks at once."""

    edge3: bool = False
    python: str = sys.executable
    #: Where the worker finds what it speaks to, when something stands between.
    way: str = ""

    @property
    def airflow(self) -> dict[str, str]:
        settings = {
            "core.dags_folder": str(DAGS),
            "core.parallelism": "1000",
            "core.default_pool_task_slot_count": "1000",
        }
        known = {**super().airflow, **airflow_variables(settings)}
        if self.edge3:
            del known["AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS"]
            known = {name: value for name, value in known.items() if not name.startswith("AIRFLOW__EDGECONTROL")}
            known |= airflow_variables(self._edge3_settings)
            known["PATH"] = f"{Path(self.python).parent}:{known['PATH']}"
        return known

    @property
    def _edge3_settings(self) -> dict[str, str]:
        return {
            "core.executor": "airflow.providers.edge3.executors.EdgeExecutor",
            "edge.api_enabled": "true",
            "edge.api_url": f"{self.way or self.airflow_url}/edge_worker/v1/rpcapi",
        }

    @property
    def worker(self) -> dict[str, str]:
        """What the machine at the edge knows. Intervals are those that each program has by itself."""
        home = self.state_dir / "machine"
        home.mkdir(exist_ok=True)
        settings = {
            "core.dags_folder": str(DAGS),
            "core.load_examples": "false",
            "usage_data_collection.enabled": "false",
        }
        if self.edge3:
            settings |= {
                **self._edge3_settings,
                "core.execution_api_server_url": f"{self.airflow_url}/execution/",
                "api_auth.jwt_secret": self.secrets["airflow_jwt"],
                "logging.base_log_folder": str(home / "logs"),
            }
        known = {**self._installed, "AIRFLOW_HOME": str(home), **airflow_variables(settings)}
        if self.edge3:
            return {**known, "PATH": f"{Path(self.python).parent}:{known['PATH']}"}
        return {
            **known,
            "EDGE_AGENT_URL": self.way or self.control_plane_url,
            "EDGE_AGENT_TOKEN_FILE": str(self.token_file),
        }


class Site:
    """One Airflow with one worker. `way` makes a detour in front of what the worker speaks to, given its URL."""

    def __init__(self, *, edge3: bool, concurrency: int, way: Callable[[str], str] | None = None) -> None:
        self.name = "edge3" if edge3 else "EdgeControl"
        self.edge3 = edge3
        self.concurrency = concurrency
        self.folder = Path(tempfile.mkdtemp(prefix="edgecontrol-bench-"))
        ports = free_port(26000), free_port(27000)
        target = f"http://127.0.0.1:{ports[1] if edge3 else ports[0]}"
        python = edge3_python() if edge3 else sys.executable
        self.programs = BenchEnvironments(self.folder, *ports, edge3, python, way(target) if way else "")
        self.processes = Processes(self.folder)
        self.airflow = AirflowApi(self.programs.airflow_url, user=ADMIN, password=self.programs.password, seconds=120)
        #: How long the worker took from its start until the centre knew it.
        self.registered_seconds = 0.0
        self._worker: Child | None = None

    def start(self) -> None:
        """Everything but the worker."""
        of = self.programs
        manage = str(CHECKOUT / "manage.py")
        token = ["create_worker_token", WORKER, "--force", "--file", str(of.token_file)]
        part = partial(program, processes=self.processes)
        airflow = partial(part, env=lambda: of.airflow, python=of.python)
        parts = [
            part(
                "PostgreSQL",
                ["-m", "deploy.demo.database", str(self.folder)],
                env=lambda: of.plain,
                is_ready=addresses(self.folder).exists,
            ),
            airflow("Airflow database", ["-m", "airflow", "db", "migrate"], after=("PostgreSQL",)),
            airflow(
                "api-server",
                ["-m", "airflow", "api-server", "--host=127.0.0.1", f"--port={of.airflow_port}"],
                after=("Airflow database",),
                is_ready=lambda: self.airflow.is_up() and self.airflow.warm_up(),
            ),
            airflow(
                "dag-processor",
                ["-m", "airflow", "dag-processor"],
                after=("Airflow database",),
                is_ready=partial(self._beats, "DagProcessorJob"),
            ),
            airflow(
                "scheduler",
                ["-m", "airflow", "scheduler", "--skip-serve-logs"],
                after=("Airflow database",),
                is_ready=partial(self._beats, "SchedulerJob"),
            ),
            Part("DAG", ("api-server", "dag-processor"), self.airflow.login, self._dag_is_known),
        ]
        if not self.edge3:
            control_plane = partial(part, env=lambda: of.control_plane)
            parts += [
                control_plane(
                    "control plane",
                    [manage, "serve"],
                    after=("PostgreSQL",),
                    is_ready=partial(answers, of.control_plane_url),
                ),
                control_plane("worker token", [manage, *token], after=("control plane",)),
            ]
        deadline = time.monotonic() + START_SECONDS

        def look(what: str) -> None:
            self.processes.check()
            if time.monotonic() > deadline:
                raise PartFailed(what, f"and not done after {START_SECONDS:.0f} s", self.processes.logs)
            time.sleep(0.1)

        bring_up(parts, look=look, done=lambda name, seconds: None)

    def start_worker(self) -> None:
        """Start the one worker, and wait until it is known."""
        of = self.programs
        if self.edge3:
            options = ["-m", "airflow", "edge", "worker", f"--concurrency={self.concurrency}", f"--queues={QUEUE}"]
            options.append(f"--edge-hostname={WORKER}")
        else:
            options = ["-m", "agent", "run", f"--concurrency={self.concurrency}", f"--queues={QUEUE}"]
            options.append(f"--state-dir={self.folder / 'agent'}")
        began = time.monotonic()
        self._worker = self.processes.start("worker", [of.python, *options], env=of.worker, cwd=self.folder)
        self.until(self._worker_is_known, seconds=60, pause_seconds=0.02)
        self.registered_seconds = time.monotonic() - began

    def start_warm_worker(self, *, settle_seconds: float) -> None:
        """Start the one worker, have it run a few tasks, and leave it alone for so long."""
        self.start_worker()
        say(f"{self.name}: warming up")
        self.run(tasks=WARM_UP)
        time.sleep(settle_seconds)

    def worker_processes(self) -> list[psutil.Process]:
        """The worker itself first, then those below it, whether tasks or what starts them."""
        assert self._worker is not None
        worker = psutil.Process(self._worker.popen.pid)
        return [worker, *worker.children(recursive=True)]

    def close(self) -> None:
        self.processes.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- runs

    def run(self, *, tasks: int, seconds: float = 0.0, limit_seconds: float = 900.0) -> str:
        """Run that many mapped tasks to their end; returns the run's id. Raises RuntimeError when one failed."""
        run_id = self.trigger(tasks=tasks, seconds=seconds)
        self.until(lambda: self.state(run_id) in ("success", "failed"), seconds=limit_seconds)
        if self.state(run_id) != "success":
            raise RuntimeError(f"{self.name}: the run failed; the logs: {self.processes.logs}")
        return run_id

    def trigger(self, *, tasks: int, seconds: float) -> str:
        body = {"logical_date": None, "conf": {"tasks": tasks, "seconds": seconds}}
        return str(self.airflow.call("POST", "dags/bench/dagRuns", json=body)["dag_run_id"])

    def state(self, run_id: str) -> str:
        # Of the database, so that looking costs the api-server nothing.
        return str(self.rows("airflow", "SELECT state FROM dag_run WHERE run_id = %s", run_id)[0][0])

    def running(self, run_id: str) -> int:
        query: LiteralString = (
            "SELECT count(*) FROM task_instance WHERE run_id = %s AND task_id = 'work' AND state = 'running'"
        )
        return int(self.rows("airflow", query, run_id)[0][0])

    def wall_seconds(self, run_id: str) -> float:
        """From the queueing of the first mapped task to the end of the last."""
        query: LiteralString = (
            "SELECT extract(epoch FROM max(end_date) - min(queued_dttm)) FROM task_instance"
            " WHERE run_id = %s AND task_id = 'work'"
        )
        return float(self.rows("airflow", query, run_id)[0][0])

    def slot_seconds(self, run_id: str) -> list[float]:
        """How long each mapped task held its slot: from its hand-out to the worker until the worker's last word."""
        if not self.edge3:
            query: LiteralString = (
                "SELECT extract(epoch FROM finished_at - claimed_at) FROM edgecontrol.job"
                " WHERE run_id = %s AND task_id = 'work'"
            )
            return [float(seconds) for (seconds,) in self.rows("edgecontrol", query, run_id)]
        told: dict[str, list[float]] = {}
        for moment, _, path in self.requests():
            place, _, state = path.rpartition("/")
            if "/jobs/state/" in path and "/work/" in path and state in ("running", "success"):
                told.setdefault(place, []).append(moment)
        return [max(moments) - min(moments) for moments in told.values()]

    def requests(self) -> list[tuple[float, str, str]]:
        """When, how and for what the api-server was asked."""
        found = []
        for line in (self.processes.logs / "api-server.log").read_text(errors="replace").splitlines():
            if match := _ACCESS.match(line):
                found.append((datetime.fromisoformat(match[1]).timestamp(), match[2], match[3]))
        return found

    def execution_requests(self, run_id: str) -> int:
        """How often the mapped tasks of a run, and their supervisors, called Airflow's Execution API."""
        query: LiteralString = "SELECT id::text FROM task_instance WHERE run_id = %s AND task_id = 'work'"
        ids = {id for (id,) in self.rows("airflow", query, run_id)}
        return sum(
            path.startswith("/execution/task-instances/") and path.split("/")[3] in ids
            for _, _, path in self.requests()
        )

    def rows(self, database: str, query: LiteralString, *values: object) -> list[Any]:
        with psycopg.connect(self.programs.databases[database]) as connection:
            return connection.execute(query, values).fetchall()

    def until(self, holds: Callable[[], bool], *, seconds: float, pause_seconds: float = 0.1) -> None:
        """Wait for it. Raises RuntimeError after that time, PartFailed when a program has ended."""
        deadline = time.monotonic() + seconds
        while not holds():
            self.processes.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: not within {seconds:.0f} s; the logs: {self.processes.logs}")
            time.sleep(pause_seconds)

    # --- parts

    def _beats(self, job_type: str) -> bool:
        return bool(self.rows("airflow", "SELECT 1 FROM job WHERE job_type = %s AND state = 'running'", job_type))

    def _dag_is_known(self) -> bool:
        return self.airflow.call("GET", "dags/bench", missing_ok=True) is not None

    def _worker_is_known(self) -> bool:
        if self.edge3:
            return bool(self.rows("airflow", "SELECT 1 FROM edge_worker WHERE worker_name = %s", WORKER))
        query: LiteralString = "SELECT 1 FROM edgecontrol.worker WHERE name = %s AND last_heartbeat IS NOT NULL"
        return bool(self.rows("edgecontrol", query, WORKER))


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that `compare` and whoever writes the figures read."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--without-edge3", action="store_true", help="EdgeControl alone")
    return parser


def compare(
    benchmark: str, options: argparse.Namespace, measured: Callable[[bool], dict[str, Any]], **beside: object
) -> dict[str, Any]:
    """The figures of EdgeControl, then of edge3 unless it is left out; `measured` is told which it is asked for."""
    figures: dict[str, Any] = {"benchmark": benchmark, "command": command(), "machine": machine()}
    programs = (False,) if options.without_edge3 else (False, True)
    return figures | {"cases": [measured(edge3) for edge3 in programs], **beside}


@contextmanager
def site(*, edge3: bool, concurrency: int, way: Callable[[str], str] | None = None) -> Iterator[Site]:
    """A running site whose worker is not started yet."""
    one = Site(edge3=edge3, concurrency=concurrency, way=way)
    try:
        say(f"{one.name}: starting PostgreSQL, Airflow{'' if edge3 else ' and the control plane'}")
        one.start()
        yield one
    finally:
        one.close()


def processor_seconds(processes: list[psutil.Process]) -> float:
    """Processor time of these and of all below them that have ended."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
