"""One real Airflow with its control plane and database, and machines; each of its processes can be killed by name.

It serves all cases on real Airflow, one after the other, so every case leaves everything running.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from deploy.demo.airflow_api import AirflowApi
from deploy.demo.database import addresses
from deploy.demo.environments import ADMIN, CHECKOUT, Environments, airflow_variables, free_port
from deploy.demo.parts import Part, Parts, bring_up
from deploy.demo.processes import MARK, Child, PartFailed, Processes
from tests.acceptance.faults.airflow_machine import AirflowMachine
from tests.acceptance.faults.pace import FULL, REAL, Pace
from tests.acceptance.faults.pipe import Pipe
from tests.acceptance.faults.proxy import FaultProxy
from tests.acceptance.keeper import Keeper
from tests.acceptance.site import kill_tree

DAGS = Path(__file__).resolve().parent / "dags"
#: What Airflow itself waits for cannot all be a tenth: a patience of 60 s is twice what its SDK alone would endure.
PACE = REAL if FULL else Pace(heartbeat=3, silent=10, patience=60, release=5, claim_wait=10, housekeeping=1)
#: After so long in the queue Airflow takes a task for stuck. Its tokens are good for as long, so that it has to exceed
#: the patience, as it does by default: a start that meets an outage needs its token until then.
STUCK_SECONDS = 600 if FULL else 90
#: After so long without a heartbeat Airflow itself gives a task up: as by default, a moment after EdgeControl does.
DEAD_SECONDS = 300 if FULL else PACE.patience + 30 + 20
#: A scheduler is missed when its heartbeat is older.
HEALTH_SECONDS = 5
#: Beyond the patience: how long a job of a dead scheduler may stay untold, with its next one's looks and starts.
UNTOLD_SECONDS = 200
START_SECONDS = 240.0
#: Those that can be killed by name, in the order in which they need each other.
PARTS = ("PostgreSQL", "control plane", "api-server", "dag-processor", "scheduler", "triggerer")

_MAKE_TOKENS = """
from pathlib import Path
from workers_app import auth, registry
from workers_app.audit import Actor
for name in {names!r}:
    worker = registry.create(name=name, allowed_queues=None, team_name="", by=Actor.of_command())
    Path({folder!r}, name + ".token").write_text(auth.issue(worker=worker, valid_for=None, by=Actor.of_command()))
"""


@dataclass(frozen=True)
class SiteEnvironments(Environments):
    """The demo's environments, with other DAGs and quicker clocks."""

    #: The port at which the bridge finds EdgeControl's database.
    database_port: int = 0
    #: Where machines and their tasks find Airflow.
    way_to_airflow: str = ""
    #: More settings of Airflow, by `section.option`.
    settings: tuple[tuple[str, str], ...] = ()

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
            "core.dags_folder": str(DAGS),
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
        witness = self.state_dir / "beside" / "witness"
        witness.parent.mkdir(exist_ok=True)
        return {**super().airflow, **airflow_variables(settings), "WITNESS": str(witness)}

    @property
    def machine(self) -> dict[str, str]:
        """What tasks at the edge are told of Airflow."""
        settings = {
            "core.dags_folder": str(DAGS),
            "core.load_examples": "false",
            "scheduler.task_instance_heartbeat_timeout": str(DEAD_SECONDS),
            "workers.min_heartbeat_interval": "5" if FULL else "1",
            "usage_data_collection.enabled": "false",
        }
        return {"AIRFLOW_HOME": str(self.state_dir / "machines" / "airflow"), **airflow_variables(settings)}


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
    """Those of the demo's parts that a case needs; it starts its machines itself."""

    def all(self) -> list[Part]:
        return [part for part in super().all() if part.name not in ("worker token", "agent", "admin login")]

    def _configure_airflow(self) -> None:
        self.airflow.login()

    def _dag_is_known(self) -> bool:
        return self.airflow.call("GET", "dags/work_beside", missing_ok=True) is not None


class AirflowSite:
    """Everything of Airflow and EdgeControl on this machine. `kept` will hold what tasks logged on their machines."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "kept").mkdir()
        self.processes = SiteProcesses(folder)
        # Not those that the system gives to outgoing connections: a part that is away must find its port free.
        ports = [free_port(start) for start in random.sample(range(20000, 30000, 250), 2)]
        self.database = Pipe(target=folder / "none")
        self.way_to_airflow = FaultProxy(target=f"http://127.0.0.1:{ports[1]}", name="airflow")
        self.programs = SiteEnvironments(
            folder,
            *ports,
            database_port=self.database.port,
            way_to_airflow=self.way_to_airflow.url,
            settings=tuple((settings or {}).items()),
        )
        self.airflow = AirflowApi(self.programs.airflow_url, user=ADMIN, password=self.programs.password, seconds=120)
        self.parts = SiteParts(self.programs, self.processes, self.airflow)
        self.all_parts = {part.name: part for part in self.parts.all()}
        self.machines: dict[str, AirflowMachine] = {}
        self.keeper = Keeper(kept=folder / "kept", every_seconds=0.05)

    def start(self) -> None:
        """Bring everything up. Raises PartFailed."""
        deadline = time.monotonic() + START_SECONDS

        def look(what: str) -> None:
            self.processes.check()
            if self.database.target.name == "none" and "PostgreSQL" not in what:
                socket = conninfo_to_dict(self.programs.databases["edgecontrol"])["host"]
                self.database.target = Path(str(socket)) / ".s.PGSQL.5432"
            if time.monotonic() > deadline:
                raise PartFailed(what, f"and not done after {START_SECONDS:.0f} s", self.processes.logs)
            time.sleep(0.1)

        bring_up(self.all_parts.values(), look=look, done=lambda name, seconds: None)
        self.keeper.start()

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()
        self.keeper.end()
        self.processes.stop()
        self.database.close()
        self.way_to_airflow.close()

    # --- what can be broken

    def kill(self, part: str) -> None:
        """SIGKILL to the part and to all processes below it."""
        child = self.processes.newest(part)
        kill_tree(child.popen.pid)
        child.popen.wait()

    def start_again(self, part: str) -> None:
        """Start a part that was killed, without waiting for it."""
        self.parts.began_at = datetime.now(UTC)
        if part == "PostgreSQL":
            addresses(self.folder).unlink()
        self.all_parts[part].begin()

    def until_ready(self, part: str) -> None:
        self.until(self.all_parts[part].is_ready, seconds=START_SECONDS)

    def stop_postgres_at_once(self) -> None:
        """Immediate shutdown; whatever has no connection any more may end over it."""
        stop_postgres(self.folder)
        self.processes.newest("PostgreSQL").popen.wait(timeout=60)

    def mend(self) -> None:
        """Let everything run again that a case left broken."""
        self.database.thaw()
        self.way_to_airflow.heal()
        for part in PARTS:
            if self.processes.newest(part).popen.poll() is not None:
                self.start_again(part)
                self.until_ready(part)

    # --- machines

    def make_machines(
        self, *names: str, queues: str, concurrency: int = 4, url: str | None = None, **environ: str
    ) -> list[AirflowMachine]:
        """Machines with tokens of their own, in one go; start them. `environ` is what all on it are told."""
        folder = self.folder / "machines"
        folder.mkdir(exist_ok=True)
        self.manage("shell", "-c", _MAKE_TOKENS.format(names=names, folder=str(folder)))
        made = []
        for name in names:
            (folder / name).mkdir()
            machine = AirflowMachine(
                name=name,
                folder=folder / name,
                url=url or self.programs.control_plane_url,
                token=(folder / f"{name}.token").read_text(),
                concurrency=concurrency,
                queues=queues,
                airflow={**self.programs.machine, **environ},
            )
            self.machines[name] = machine
            self.keeper.spools.append(machine.spool)
            made.append(machine)
        return made

    def start_machines(self, *machines: AirflowMachine, flags: tuple[str, ...] = ()) -> None:
        """Start them and wait until the control plane has heard of each."""
        began = datetime.now(UTC)
        for machine in machines:
            machine.start(*flags)
        self.until(lambda: all(self.heard_since(machine, began) for machine in machines), seconds=90)

    def heard_since(self, machine: AirflowMachine, moment: datetime) -> bool:
        query: LiteralString = "SELECT 1 FROM edgecontrol.worker WHERE name = %s AND last_heartbeat > %s"
        return bool(self.parts.rows("edgecontrol", query, machine.name, moment))

    def manage(self, *arguments: str) -> None:
        """Run a command of the control plane."""
        command = [self.programs.plain["PATH"].partition(":")[0] + "/python", str(CHECKOUT / "manage.py"), *arguments]
        child = self.processes.start("manage", command, env=self.programs.control_plane, cwd=CHECKOUT, serves=False)
        if child.popen.wait(timeout=60):
            raise PartFailed("manage.py", child.log.read_text()[-2000:], child.log)

    # --- runs of DAGs

    def trigger(self, dag_id: str, **conf: Any) -> str:
        """Start a run; return its id."""
        run = self.airflow.call("POST", f"dags/{dag_id}/dagRuns", json={"logical_date": None, "conf": conf})
        return str(run["dag_run_id"])

    def run_state(self, run_id: str) -> str:
        """As Airflow's database has it, so that it can be asked while the api-server is away."""
        query: LiteralString = "SELECT state FROM dag_run WHERE run_id = %s"
        rows = self.parts.rows("airflow", query, run_id)
        return str(rows[0][0]) if rows else "deleted"

    def queued(self, run_id: str) -> int:
        """How many of its task instances Airflow has queued."""
        query: LiteralString = "SELECT count(*) FROM task_instance WHERE run_id = %s AND state = 'queued'"
        return int(self.parts.rows("airflow", query, run_id)[0][0])

    def jobs(self, run_id: str) -> list[dict[str, Any]]:
        """Every job of a run, oldest first."""
        with psycopg.connect(self.programs.databases["edgecontrol"], row_factory=dict_row) as connection:
            query: LiteralString = (
                "SELECT j.*, w.name AS machine FROM edgecontrol.job j LEFT JOIN edgecontrol.worker w"
                " ON w.id = j.worker_id WHERE run_id = %s ORDER BY queued_at, id"
            )
            return connection.execute(query, [run_id]).fetchall()

    def never_told(self) -> list[str]:
        """Jobs of any run that ended so long ago that some scheduler should have told Airflow."""
        query: LiteralString = (
            "SELECT task_id || ' ' || map_index || ' of ' || run_id FROM edgecontrol.job"
            " WHERE told_at IS NULL AND finished_at < now() - make_interval(secs => %s)"
        )
        return [name for (name,) in self.parts.rows("edgecontrol", query, PACE.patience + UNTOLD_SECONDS)]

    def stored_log(self, job: dict[str, Any], attempt: int) -> bytes:
        query: LiteralString = (
            'SELECT data FROM edgecontrol.log_chunk WHERE job_id = %s AND attempt = %s ORDER BY "offset"'
        )
        return b"".join(bytes(data) for (data,) in self.parts.rows("edgecontrol", query, job["id"], attempt))

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """What Airflow's REST API says of each task instance, with all its `tries`."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        found: list[dict[str, Any]] = []
        while page := self.airflow.call("GET", f"{path}?limit=100&offset={len(found)}")["task_instances"]:
            found += page
        for ti in found:
            place = f"{ti['task_id']}/{ti['map_index']}" if ti["map_index"] >= 0 else ti["task_id"]
            many = ti["try_number"] > 1
            ti["tries"] = self.airflow.call("GET", f"{path}/{place}/tries")["task_instances"] if many else [ti]
        return found

    def witnessed(self, run_id: str) -> list[dict[str, Any]]:
        """What the tasks of a run said themselves, with the name of their machine."""
        said = [{**line, "machine": machine.name} for machine in self.machines.values() for line in machine.witnessed()]
        return [line for line in said if line["run"] == run_id]

    def starts(self, run_id: str) -> list[dict[str, Any]]:
        return [line for line in self.witnessed(run_id) if line["what"] == "start"]

    def ends(self, run_id: str) -> list[dict[str, Any]]:
        return [line for line in self.witnessed(run_id) if line["what"] == "end"]

    def until(self, holds: Callable[[], Any], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s; the logs: {self.processes.logs}"
            time.sleep(0.1)

    def settle(self, run_id: str, *, seconds: float = 120) -> None:
        """Wait until every job of the run is final and every log of it has arrived."""

        def settled() -> bool:
            return all(
                job["finished_at"] and job["log_size"] == (job["log_final_size"] or job["log_size"])
                for job in self.jobs(run_id)
            )

        self.until(settled, seconds=seconds)
