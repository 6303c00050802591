"""A whole story of one scheduler with our executor, told beside Airflow's own code for what follows from an event.

Each workload has a name, which says what happens to it, and an end that it must come to whatever fails meanwhile.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from airflow._shared.timezones import timezone
from airflow.executors.workloads import ExecuteTask
from airflow.jobs.job import Job
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from psycopg.sql import SQL, Identifier
from sqlalchemy import delete, func, insert, select, update

from airflow_bridge import routing
from airflow_bridge.airflow_features import CONNECTION_TESTS, ConnectionTestRequest, workload_key
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.breaking import Clock
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import as_orphan
from tests.unit.airflow_bridge.builders import callback, connection_test, task

#: Airflow's number of this scheduler.
SCHEDULER = 4711
LONG_AGO, LATER = (timezone.utcnow() + timedelta(hours=hours) for hours in (-1, 1))
#: What Airflow queues while something is broken.
NEW = frozenset({"is unfit", "is new", "is new and starts"})
OPEN = {"queued", "claimed", "running"}
_WAITED_FOR = ("queued", "running", "restarting")

#: What Airflow has to hear of each task in the end, once; None: its job goes on. Nothing of GIVEN_BACK and WITHDRAWN.
TOLD: dict[str, TaskInstanceState | None] = {
    "succeeds": TaskInstanceState.SUCCESS,
    "fails": TaskInstanceState.FAILED,
    "is lost": TaskInstanceState.FAILED,
    "was cleared": TaskInstanceState.SUCCESS,
    "was given up": TaskInstanceState.FAILED,  # by Airflow itself
    "waits for too long": TaskInstanceState.FAILED,
    "is deleted": TaskInstanceState.FAILED,
    "is revoked": TaskInstanceState.FAILED,
    "is unfit": TaskInstanceState.FAILED,
    "has an old token": None,
    "is resumed": None,
    "is queued again under its id": None,
    "is new": None,
    "is new and starts": None,
    "was queued and is nowhere": None,
    "dead: waits": None,
    "dead: runs": None,
    "dead: never written": None,
    "dead: failed": TaskInstanceState.FAILED,
}
#: Airflow has to schedule it anew: the id with which it is queued is that of a job that has been told.
GIVEN_BACK = "is queued as a job that is over"
#: Whether its first INSERT arrived cannot always be told from an earlier queueing under the same id.
MAY_BE_GIVEN_BACK = ("is queued again under its id",)
#: Airflow waits for these no longer, so their jobs have to be revoked.
WITHDRAWN = ("is marked by hand", "dead: is deleted")
#: Nobody offers it, and nobody has to.
UNOFFERED = "dead: told Airflow itself"


class Story:
    """One living scheduler, one that has died, and their workloads."""

    def __init__(
        self, make_executor: Callable[[], EdgeControlExecutor], database: Database, worker: int, clock: Clock
    ) -> None:
        self.database, self.worker, self.clock = database, worker, clock
        self.make_executor = make_executor
        self.dead = make_executor()
        self.executor = make_executor()
        self._is_known_to_airflow()
        names = [*TOLD, GIVEN_BACK, *WITHDRAWN, UNOFFERED]
        self.tasks: dict[str, Any] = {
            name: task(map_index=number, pool_slots=0 if name == "is unfit" else 1) for number, name in enumerate(names)
        }
        self.alerts = {name: callback() for name in ("runs", "ends", "is new", "is nowhere", "dead: ended")}
        self.tests = {name: connection_test() for name in ("waits", "ends", "was given up")} if CONNECTION_TESTS else {}
        #: Everything that was told, by Airflow's key.
        self.told: defaultdict[Any, list[Any]] = defaultdict(list)

    def _is_known_to_airflow(self) -> None:
        self.executor.job_id = SCHEDULER
        self.executor.name = routing.executor_names()[0]
        self.executor._meters.on = True

    # The story, part by part.

    def begins(self) -> None:
        """Jobs are stored; some of them are held."""
        task_instances.add_run(self.tasks["succeeds"])
        for workload in self.tasks.values():
            task_instances.add(workload, state="queued")
        for name in (GIVEN_BACK, "was queued and is nowhere"):
            task_instances.change(self.tasks[name], state="deferred")
        for alert in self.alerts.values():
            task_instances.add_callback(alert)
        with create_session(scoped=False) as session:
            session.execute(update(TaskInstance.__table__).values(queued_by_job_id=SCHEDULER, queued_dttm=LONG_AGO))
            for model in (Job, Log):
                session.execute(delete(model.__table__))
            values = {"id": SCHEDULER, "job_type": "SchedulerJob", "state": "running", "latest_heartbeat": LATER}
            session.execute(insert(Job.__table__).values(**values))
            self._add_connection_tests(session)
        for name in self.tasks.keys() - NEW - {"was queued and is nowhere", "dead: never written"}:
            owner = self.dead if name.startswith("dead") or name == GIVEN_BACK else self.executor
            owner.queue_workload(self.tasks[name], session=None)
        for workload in (self.alerts["runs"], self.alerts["ends"], *self.tests.values()):
            self.executor.queue_workload(workload, session=None)
        self.dead.queue_workload(self.alerts["dead: ended"], session=None)
        self.dead.heartbeat()
        rows.end(self.database, self._job_id(GIVEN_BACK), state="success", outcome="deferred")
        self.database.execute("UPDATE edgecontrol.job SET told_at = now() WHERE finished_at IS NOT NULL")
        self.turn()
        for name in ("succeeds", "fails", "is lost", "was cleared", "was given up", "is resumed", "is revoked"):
            self._hold(name)
        self._hold("dead: runs")
        for workload in self.alerts["runs"], self.alerts["ends"]:
            rows.hold(self.database, UUID(workload.callback.id), worker=self.worker)
        self.clock.advance(1)
        self.turn()

    def _add_connection_tests(self, session: Any) -> None:
        if not self.tests:
            return
        table = ConnectionTestRequest.__table__
        session.execute(delete(table))
        for name, test in self.tests.items():
            values = {"connection_id": name, "state": "queued", "conn_type": "http", "token": name}
            session.execute(insert(table).values(id=test.connection_test_id, **values))

    def goes_on(self) -> None:
        """Everything happens at once; call it while something is broken."""
        self.clock.advance(61)
        self.work_ends()
        self.work_comes()
        dead = [self.tasks[name] for name in self.tasks if name.startswith("dead") and name in TOLD]
        assert self.executor.try_adopt_task_instances([as_orphan(workload) for workload in dead]) == []
        self.turn()
        self.executor.queue_workload(self.tasks["is unfit"], session=None)
        for _ in range(3):
            self.clock.advance(1)
            self.turn()
            self._hold("is new and starts")

    def ends_well(self) -> None:
        """Nothing is broken any more, and time passes."""
        for _ in range(8):
            self.clock.advance(61)
            self.turn()

    def work_ends(self) -> None:
        """At the edge, and in Airflow."""
        for name, state, outcome in (
            ("succeeds", "success", "success"),
            ("fails", "failed", ""),
            ("is lost", "lost", ""),
            ("was cleared", "failed", ""),
            ("is revoked", "revoked", ""),
            ("is resumed", "success", "deferred"),
            ("is queued again under its id", "success", "deferred"),
            ("dead: failed", "failed", ""),
            (UNOFFERED, "success", "success"),
        ):
            rows.end(self.database, self._job_id(name), state=state, outcome=outcome, reason=f"{name}, for a test")
        for alert in (self.alerts["ends"], self.alerts["dead: ended"]):
            rows.end(self.database, UUID(alert.callback.id), state="success")
        if self.tests:
            rows.end(self.database, self.tests["ends"].connection_test_id, state="success")
            self.executor.fail_connection_test(workload_key(self.tests["was given up"]))
        self._age("finished_at", "1 hour", UNOFFERED)
        self.database.execute(
            "UPDATE edgecontrol.job SET finished_at = now() - interval '1 hour' WHERE id = %s",
            [self.alerts["dead: ended"].callback.id],
        )
        self._age("queued_at", "2 days", "waits for too long")
        self._age("token_until", "1 hour", "has an old token", "dead: is deleted")
        self.database.execute("DELETE FROM edgecontrol.job WHERE id = %s", [self._job_id("is deleted")])
        task_instances.change(self.tasks["fails"], state="running", silence=1)
        task_instances.change(self.tasks["is lost"], state="running", silence=10_000)
        for name in ("succeeds", UNOFFERED):
            task_instances.change(self.tasks[name], state="success")
        for name in (GIVEN_BACK, "was queued and is nowhere"):
            task_instances.change(self.tasks[name], state="queued")
        for name in ("is marked by hand", "was given up"):
            task_instances.change(self.tasks[name], state="failed")
        self.executor.change_state(workload_key(self.tasks["was given up"]), TaskInstanceState.FAILED)
        self._clear("was cleared")
        with create_session(scoped=False) as session:
            gone = self.tasks["dead: is deleted"].ti.id
            session.execute(delete(TaskInstance.__table__).where(TaskInstance.id == gone))

    def _clear(self, name: str) -> None:
        """As somebody clears a task that runs: it has a new id, and waits for its job to end."""
        with create_session(scoped=False) as session:
            new_id = uuid4()
            session.execute(
                update(TaskInstance.__table__)
                .where(TaskInstance.id == self.tasks[name].ti.id)
                .values(id=new_id, state="restarting")
            )

    def work_comes(self) -> None:
        """From Airflow's scheduler."""
        old = self.tasks["is resumed"]
        resumed = task(id=old.ti.id, map_index=old.ti.map_index)
        task_instances.change(resumed, state="queued", job_id=resumed.ti.external_executor_id)
        self.tasks["is resumed"] = resumed
        new = ["is new", "is new and starts", "is resumed", "is queued again under its id"]
        for workload in [self.tasks[name] for name in new] + [self.alerts["is new"]]:
            self.executor.queue_workload(workload, session=None)

    # What Airflow does.

    def turn(self) -> None:
        """One loop of the scheduler."""
        executor = self.executor
        executor.heartbeat()
        for key, (state, _) in executor.event_buffer.items():
            self.told[key].append(state)
        if not executor.event_buffer and not executor._task_event_logs:
            return
        bag: Any = SimpleNamespace(get_dag_for_run=lambda dag_run, session: None)
        with create_session(scoped=False) as session:
            SchedulerJobRunner.process_executor_events(executor, SCHEDULER, bag, session)
            SchedulerJobRunner._process_task_event_logs(executor._task_event_logs, session)

    def another_scheduler(self) -> None:
        """The one that lived has ended; a new one is offered what Airflow waits for."""
        self.executor = self.make_executor()
        self._is_known_to_airflow()
        offered = [ti for ti in self._tis().values() if ti.state in _WAITED_FOR]
        assert self.executor.try_adopt_task_instances(offered) == []

    def hours_pass(self) -> None:
        """For what has ended already."""
        self.database.execute(
            "UPDATE edgecontrol.job SET finished_at = now() - interval '1 hour' WHERE finished_at IS NOT NULL"
        )

    # What has to have come of it.

    def check(self) -> None:
        """Each workload has the one job that goes on, or Airflow has heard its end once."""
        tis = self._tis()
        wrong = [f"{name}: {trouble}" for name in TOLD if (trouble := self._trouble_of(name, tis[name]))]
        for name in (GIVEN_BACK, *WITHDRAWN):
            states = [row.state for row in self._rows(self.tasks[name])]
            wanted = ["success"] if name == GIVEN_BACK else ["revoked"]
            if states != wanted or self.told[workload_key(self.tasks[name])]:
                wrong.append(f"{name}: jobs {states}, told {self.told[workload_key(self.tasks[name])]}")
        if tis[GIVEN_BACK].state != "scheduled":
            wrong.append(f"{GIVEN_BACK}: Airflow has it as {tis[GIVEN_BACK].state}")
        wrong += self._troubles_of_alerts()
        for name, state in (("was given up", "revoked"), ("waits", "queued")) if self.tests else ():
            if (now := self._row(self.tests[name].connection_test_id).state) != state:
                wrong.append(f"the connection test that {name}: {now}")
        untold = self.database.execute(
            "SELECT kind, map_index, state FROM edgecontrol.job WHERE finished_at IS NOT NULL AND told_at IS NULL"
        ).fetchall()
        wrong += [f"not noted as told: {row}" for row in untold]
        held = self.database.execute(
            "SELECT FROM edgecontrol.job WHERE state IN ('claimed', 'running') AND dispatcher = %s",
            [self.executor.dispatcher],
        ).fetchall()
        if self.executor.slots_occupied != len(held):
            wrong.append(f"{self.executor.slots_occupied} slots are occupied, but {len(held)} jobs held")
        if (times := self._said_of("is lost", "edgecontrol lost")) != 1:
            wrong.append(f"the audit log has {times} times that a job was lost")
        assert not wrong, "\n".join(wrong)

    def _troubles_of_alerts(self) -> list[str]:
        told = {name: self.told[workload_key(alert)] for name, alert in self.alerts.items()}
        now = {name: task_instances.callback_state(alert) for name, alert in self.alerts.items()}
        jobs = {
            name: [self._row(UUID(alert.callback.id)).state]
            for name, alert in self.alerts.items()
            if name not in ("is new", "is nowhere")
        }
        wrong = []
        for name, events in told.items():
            if len(events) != len(set(events)):
                wrong.append(f"the alert that {name} was told {events}")
        for name, state in (("ends", "success"), ("dead: ended", "success"), ("runs", "running")):
            if now[name] != state or jobs[name] != [state]:
                wrong.append(f"the alert that {name} is {now[name]}, its job {jobs[name]}")
        if now["is nowhere"] != "pending":
            wrong.append(f"the alert that is nowhere is {now['is nowhere']}")
        new = self.database.execute(
            "SELECT state FROM edgecontrol.job WHERE id = %s", [self.alerts["is new"].callback.id]
        ).fetchall()
        if (now["is new"], [row.state for row in new]) not in (("queued", ["queued"]), ("pending", [])):
            wrong.append(f"the alert that is new is {now['is new']}, its job {new}")
        return wrong

    def _said_of(self, name: str, event: str) -> int:
        """How often the audit log has this event of the task."""
        ti = self.tasks[name].ti
        query = select(func.count()).where(Log.event == event, Log.map_index == ti.map_index, Log.dag_id == ti.dag_id)
        with create_session(scoped=False) as session:
            return int(session.scalar(query) or 0)

    def _trouble_of(self, name: str, ti: Any) -> str | None:
        workload, expected = self.tasks[name], TOLD[name]
        told = [state for state in self.told[workload_key(workload)] if state != TaskInstanceState.QUEUED]
        open_jobs = [row for row in self._rows(workload) if row.state in OPEN]
        if expected:
            if told != [expected]:
                return f"Airflow was told {told}"
            return f"has an open job ({open_jobs[0].state})" if open_jobs else None
        if told:
            return f"Airflow was told {told}"
        if not open_jobs and ti.state == "scheduled" and name in MAY_BE_GIVEN_BACK:
            return None
        if len(open_jobs) != 1:
            return f"{len(open_jobs)} open jobs of {[row.state for row in self._rows(workload)]}"
        (job,) = open_jobs
        if str(job.id) != ti.external_executor_id:
            return "its job has an id that Airflow does not know"
        if job.dispatcher != self.executor.dispatcher or not self.executor.has_task(ti):
            return "no living scheduler has it"
        return f"its token has run out ({job.token_until})" if job.state == "queued" and job.ran_out else None

    # Rows.

    def _age(self, column: str, ago: str, *names: str) -> None:
        query = SQL("UPDATE edgecontrol.job SET {} = now() - %s::interval WHERE id = ANY(%s)").format(
            Identifier(column)
        )
        self.database.execute(query, [ago, [self._job_id(name) for name in names]])

    def _hold(self, name: str) -> None:
        self.database.execute(
            "UPDATE edgecontrol.job SET state = 'running', worker_id = %s, attempt = attempt + 1"
            " WHERE id = %s AND state = 'queued'",
            [self.worker, self._job_id(name)],
        )

    def _job_id(self, name: str) -> UUID:
        return UUID(self.tasks[name].ti.external_executor_id)

    def _row(self, job_id: UUID) -> Any:
        return rows.job(self.database, job_id)

    def _rows(self, workload: ExecuteTask) -> list[Any]:
        return self.database.execute(
            "SELECT *, token_until < now() AS ran_out FROM edgecontrol.job WHERE map_index = %s AND dag_id = %s",
            [workload.ti.map_index, workload.ti.dag_id],
        ).fetchall()

    def _tis(self) -> dict[str, Any]:
        """The task instances as Airflow has them, by the names of their tasks."""
        names = list(self.tasks)
        with create_session(scoped=False) as session:
            found = session.execute(select(TaskInstance.__table__)).all()
        return {
            names[ti.map_index]: SimpleNamespace(
                id=ti.id,
                key=TaskInstanceKey(ti.dag_id, ti.task_id, ti.run_id, ti.try_number, ti.map_index),
                state=ti.state,
                external_executor_id=ti.external_executor_id,
            )
            for ti in found
        }
