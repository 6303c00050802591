"""The programs of a real Airflow with its control plane: what each is told, how it is started and stopped.

Intervals are a tenth of the real ones where Airflow lets them be, so that cases take a minute and not ten.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from deploy.demo.airflow_api import AirflowApi
from deploy.demo.environments import CHECKOUT, Environments, airflow_variables
from deploy.demo.parts import Part, Parts
from deploy.demo.processes import MARK, Child, Processes
from tests.acceptance.faults.pace import FULL, REAL, Pace

DAGS = Path(__file__).resolve().parent / "dags"
#: What the tasks of all acceptance DAGs have in common.
WITNESSED = Path(__file__).resolve().parents[1] / "witnessed"
#: What Airflow itself waits for cannot all be a tenth: a patience of 60 s is twice what its SDK alone would endure.
PACE = REAL if FULL else Pace(heartbeat=3, silent=10, patience=60, release=5, claim_wait=10, housekeeping=1)
#: After so long in the queue Airflow takes a task for stuck. Its tokens are good for as long, so that it has to exceed
#: the patience, as it does by default: a start that meets an outage needs its token until then.
STUCK_SECONDS = 600 if FULL else 90
#: After so long without a heartbeat Airflow itself gives a task up: as by default, a moment after EdgeControl does.
DEAD_SECONDS = 300 if FULL else PACE.patience + 30 + 20
#: A scheduler is missed when its heartbeat is older.
HEALTH_SECONDS = 5
#: Those that can be killed by name, in the order in which they need each other.
PARTS = ("PostgreSQL", "control plane", "api-server", "dag-processor", "scheduler", "triggerer")
#: What a site may have twice.
SECOND_SCHEDULER = "other scheduler"
SECOND_API_SERVER = "other api-server"
_DISPATCHER = re.compile(r"this scheduler is dispatcher ([0-9a-f-]{36})")


@dataclass(frozen=True)
class SiteEnvironments(Environments):
    """The demo's environments, with other DAGs and quicker clocks."""

    #: The port at which the bridge finds EdgeControl's database.
    database_port: int = 0
    #: Where machines and their tasks find Airflow.
    way_to_airflow: str = ""
    #: More settings of Airflow, by `section.option`.
    settings: tuple[tuple[str, str], ...] = ()
    #: More settings of Airflow on the machines.
    machine_settings: tuple[tuple[str, str], ...] = ()
    dags: Path = DAGS
    other_airflow_port: int = 0

    @property
    def witness_beside(self) -> Path:
        """What tasks witness that run in another executor."""
        return self.state_dir / "beside" / "witness"

    @property
    def control_plane(self) -> dict[str, str]:
        return {
            **super().control_plane,
            **PACE.environ,
            "EDGECONTROL_THREADS": "128",
            "EDGECONTROL_EXECUTION_API_URL": f"{self.way_to_airflow}/execution/",
        }

    @property
    def airflow(self) -> dict[str, str]:
        database = conninfo_to_dict(self.databases["edgecontrol"])
        settings = {
            "core.executor": "airflow_bridge.executor.EdgeControlExecutor,LocalExecutor",
            "core.dags_folder": str(self.dags),
            "core.parallelism": "64",
            "core.default_pool_task_slot_count": "1000",
            "edgecontrol.database_url": make_conninfo(**{**database, "host": "127.0.0.1", "port": self.database_port}),
            "edgecontrol.outage_patience": str(PACE.patience),
            "scheduler.task_instance_heartbeat_timeout": str(DEAD_SECONDS),
            "scheduler.task_instance_heartbeat_timeout_detection_interval": "10" if FULL else "3",
            "scheduler.task_queued_timeout": str(STUCK_SECONDS),
            "scheduler.task_queued_timeout_check_interval": "2",
            # They only say how soon a scheduler is missed: with the real ones 50 kills would take hours.
            "scheduler.scheduler_health_check_threshold": str(HEALTH_SECONDS),
            "scheduler.scheduler_heartbeat_sec": "1",
            "scheduler.orphaned_tasks_check_interval": "5",
            **dict(self.settings),
        }
        self.witness_beside.parent.mkdir(exist_ok=True)
        variables = {"WITNESS": str(self.witness_beside), "PYTHONPATH": str(WITNESSED)}
        return {**super().airflow, **airflow_variables(settings), **variables}

    @property
    def other_api_server(self) -> dict[str, str]:
        """As on another machine: nothing of it is on a disk that the first one sees."""
        settings = {"logging.base_log_folder": str(self.state_dir / "airflow" / "other-logs")}
        return {**self.airflow, **airflow_variables(settings)}

    @property
    def machine(self) -> dict[str, str]:
        """What tasks at the edge are told of Airflow."""
        settings = {
            "core.dags_folder": str(self.dags),
            "core.load_examples": "false",
            "scheduler.task_instance_heartbeat_timeout": str(DEAD_SECONDS),
            "workers.min_heartbeat_interval": "5" if FULL else "1",
            "usage_data_collection.enabled": "false",
            **dict(self.machine_settings),
        }
        return {
            "AIRFLOW_HOME": str(self.state_dir / "machines" / "airflow"),
            "PYTHONPATH": f"{CHECKOUT}:{WITNESSED}",
            **airflow_variables(settings),
        }


class SiteProcesses(Processes):
    """Processes that may be started again; all starts come from one thread, with which they would die."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self._starter = ThreadPoolExecutor(1)
        self._times: dict[str, int] = {}

    def start(self, name: str, argv: list[str], **kwargs: Any) -> Child:
        """Start it, with the output of each start in a file of its own."""
        number = self._times[name] = self._times.get(name, 0) + 1
        known = name if number == 1 else f"{name} {number}"
        return self._starter.submit(Processes.start, self, known, argv, **kwargs).result()

    def newest(self, name: str) -> Child:
        number = self._times[name]
        known = name if number == 1 else f"{name} {number}"
        return next(child for child in self.children if child.name == known)

    def stop(self) -> None:
        """Kill all that was started here and all that comes of it, the database last: nothing here is to be kept."""
        keepers = {child.popen.pid for child in self.children if child.name.startswith("PostgreSQL")}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark and process.pid not in keepers:
                    process.kill()
        stop_postgres(self.record.parent)
        for child in self.children:
            child.popen.wait(timeout=60)
        self.children.clear()
        self._starter.shutdown()


def stop_postgres(state_dir: Path) -> None:
    """Immediate shutdown, as after a crash; the process that keeps the server ends over it."""
    with contextlib.suppress(OSError):
        os.kill(int((state_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0]), signal.SIGQUIT)


class SiteParts(Parts):
    """Those of the demo's parts that a case needs, some of them twice; it starts its machines itself."""

    def __init__(
        self,
        programs: SiteEnvironments,
        processes: SiteProcesses,
        airflow: AirflowApi,
        *,
        other_airflow: AirflowApi,
        more: Sequence[str],
        teams: Sequence[str],
        first_dag: str,
    ) -> None:
        super().__init__(programs, processes, airflow)
        self.site_programs, self.site_processes = programs, processes
        self.other_airflow, self.more, self.teams, self.first_dag = other_airflow, more, teams, first_dag

    def all(self) -> list[Part]:
        left_out = ("worker token", "agent", "admin login")
        parts = [*(part for part in super().all() if part.name not in left_out), *self._second_ones()]
        # Airflow's programs refuse to start where a team of their settings is missing.
        made = {f"team {name}" for name in self.teams}
        return [
            replace(part, after=(*part.after, *made)) if "Airflow database" in part.after else part for part in parts
        ] + [self._team(name) for name in self.teams]

    def _second_ones(self) -> list[Part]:
        of = self.site_programs
        server = ["-m", "airflow", "api-server", "--host=127.0.0.1", f"--port={of.other_airflow_port}"]
        scheduler = ["-m", "airflow", "scheduler", "--skip-serve-logs"]
        after = ("Airflow database",)
        # Its heartbeats are like the first one's; by the line it logs, its executors have begun.
        begun = partial(self.dispatchers, SECOND_SCHEDULER)
        all_ = [
            self._program(
                SECOND_SCHEDULER, scheduler, env=lambda: of.airflow, after=after, is_ready=lambda: bool(begun())
            ),
            self._program(
                SECOND_API_SERVER,
                server,
                env=lambda: of.other_api_server,
                after=(*after, "api-server"),
                is_ready=self.other_airflow.is_up,
            ),
        ]
        return [part for part in all_ if part.name in self.more]

    def _team(self, name: str) -> Part:
        argv = ["-m", "airflow", "teams", "create", name]
        return self._program(f"team {name}", argv, env=lambda: self.programs.airflow, after=("Airflow database",))

    def dispatchers(self, scheduler: str) -> set[UUID]:
        """What this scheduler's executors are called in the job table, one for each team; empty before they begin."""
        return {UUID(found) for found in _DISPATCHER.findall(self.site_processes.newest(scheduler).log.read_text())}

    def _configure_airflow(self) -> None:
        self.airflow.login()
        self.other_airflow.session.headers["Authorization"] = self.airflow.session.headers["Authorization"]

    def _dag_is_known(self) -> bool:
        return self.airflow.call("GET", f"dags/{self.first_dag}", missing_ok=True) is not None
