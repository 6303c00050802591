"""One real Airflow with its control plane and database, and machines; each of its processes can be killed by name.

It serves all cases on real Airflow, one after the other, so every case leaves everything running.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from deploy.demo.airflow_api import AirflowApi
from deploy.demo.database import addresses
from deploy.demo.environments import ADMIN, CHECKOUT, free_port
from deploy.demo.parts import bring_up
from deploy.demo.processes import PartFailed
from tests.acceptance.faults.airflow_machine import AirflowMachine
from tests.acceptance.faults.airflow_programs import (
    DAGS,
    PACE,
    PARTS,
    SiteEnvironments,
    SiteParts,
    SiteProcesses,
    stop_postgres,
)
from tests.acceptance.faults.pipe import Pipe
from tests.acceptance.faults.proxy import FaultProxy
from tests.acceptance.keeper import Keeper
from tests.acceptance.site import kill_tree

#: Beyond the patience: how long a job of a dead scheduler may stay untold, with its next one's looks and starts.
UNTOLD_SECONDS = 200
START_SECONDS = 240.0

_MAKE_TOKENS = """
from pathlib import Path
from workers_app import auth, registry
from workers_app.audit import Actor
for name in {names!r}:
    worker = registry.create(name=name, allowed_queues=None, team_name={team!r}, by=Actor.of_command())
    Path({folder!r}, name + ".token").write_text(auth.issue(worker=worker, valid_for=None, by=Actor.of_command()))
"""


class AirflowSite:
    """Everything of Airflow and EdgeControl on this machine. `kept` will hold what tasks logged on their machines."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: dict[str, str] | None = None,
        machine_settings: dict[str, str] | None = None,
        dags: Path = DAGS,
        first_dag: str = "work_beside",
        more: Sequence[str] = (),
        teams: Sequence[str] = (),
    ) -> None:
        """`more` names what there is a second one of; once `first_dag` is known the site is up."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        (folder / "kept").mkdir()
        self.processes = SiteProcesses(folder)
        # Not those that the system gives to outgoing connections: a part that is away must find its port free.
        ports = [free_port(start) for start in random.sample(range(20000, 30000, 250), 3)]
        self.database = Pipe(target=folder / "none")
        self.way_to_airflow = FaultProxy(target=f"http://127.0.0.1:{ports[1]}", name="airflow")
        self.programs = SiteEnvironments(
            folder,
            *ports[:2],
            database_port=self.database.port,
            way_to_airflow=self.way_to_airflow.url,
            settings=tuple((settings or {}).items()),
            machine_settings=tuple((machine_settings or {}).items()),
            dags=dags,
            other_airflow_port=ports[2],
        )
        urls = (self.programs.airflow_url, f"http://127.0.0.1:{ports[2]}")
        self.airflow, self.other_airflow = (
            AirflowApi(url, user=ADMIN, password=self.programs.password, seconds=120) for url in urls
        )
        self.parts = SiteParts(
            self.programs,
            self.processes,
            self.airflow,
            other_airflow=self.other_airflow,
            more=more,
            teams=teams,
            first_dag=first_dag,
        )
        #: Those that can be killed by name.
        self.mortal = (*PARTS, *more)
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
        for part in self.mortal:
            if self.processes.newest(part).popen.poll() is not None:
                self.start_again(part)
                self.until_ready(part)

    # --- machines

    def make_machines(
        self,
        *names: str,
        queues: str,
        concurrency: int = 4,
        team: str = "",
        url: str | None = None,
        **environ: str,
    ) -> list[AirflowMachine]:
        """Machines with tokens of their own, in one go; start them. `environ` is what all on it are told."""
        folder = self.folder / "machines"
        folder.mkdir(exist_ok=True)
        self.manage("shell", "-c", _MAKE_TOKENS.format(names=names, team=team, folder=str(folder)))
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

    def stop_machines(self, *names: str) -> None:
        """Drain them, so that they are not missed afterwards."""
        for name in names:
            self.machines[name].stop()

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

    def knows(self, dag_id: str) -> bool:
        """Whether Airflow has found the DAG."""
        return self.airflow.call("GET", f"dags/{dag_id}", missing_ok=True) is not None

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

    def open_jobs(self, run_id: str, *, scheduler: str) -> int:
        """How many jobs of a run this scheduler looks after."""
        mine = self.parts.dispatchers(scheduler)
        return sum(job["finished_at"] is None and job["dispatcher"] in mine for job in self.jobs(run_id))

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

    def witnessed_beside(self, run_id: str) -> list[dict[str, Any]]:
        """The same of those that ran in another executor."""
        path = self.programs.witness_beside
        said = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in said if line["run"] == run_id]

    def starts(self, run_id: str) -> list[dict[str, Any]]:
        return [line for line in self.witnessed(run_id) if line["what"] == "start"]

    def ends(self, run_id: str) -> list[dict[str, Any]]:
        return [line for line in self.witnessed(run_id) if line["what"] == "end"]

    def process_of(self, line: dict[str, Any]) -> psutil.Process:
        """The process that has witnessed this, while it lives."""
        return psutil.Process(line["pid"])

    def until(self, holds: Callable[[], Any], *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s; the logs: {self.processes.logs}"
            time.sleep(0.1)

    def finish(self, run_id: str, *, seconds: float = 300) -> str:
        """Wait until the run has ended and everything of it has arrived; return how it ended."""
        self.until(lambda: self.run_state(run_id) in ("success", "failed"), seconds=seconds)
        self.settle(run_id)
        return self.run_state(run_id)

    def settle(self, run_id: str, *, seconds: float = 120) -> None:
        """Wait until every job of the run is final and every log of it has arrived."""

        def settled() -> bool:
            return all(
                job["finished_at"] and job["log_size"] == (job["log_final_size"] or job["log_size"])
                for job in self.jobs(run_id)
            )

        self.until(settled, seconds=seconds)
