"""The workloads that Airflow has queued and that are not stored yet, and how they get into the table.

They stay in Airflow's own `queued_*` until they are: so its slots count them, and nothing is lost by a failure.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import UUID, uuid4

from airflow.configuration import conf as airflow_conf
from airflow.utils.state import TaskInstanceState

from airflow_bridge import outbox, queueing
from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import StoreAway
from airflow_bridge.store import NewJob, Store
from airflow_bridge.task_instances import look_up
from airflow_bridge.tokens import Tokens
from airflow_bridge.turns import Turns

#: Rows in one statement.
BATCH = 500


class Host(Protocol):
    """What is needed of the executor."""

    #: Airflow's number of the scheduler.
    job_id: Any
    dispatcher: UUID
    team_name: str | None
    queued_tasks: dict[Any, Any]
    queued_callbacks: dict[Any, Any]
    queued_connection_tests: dict[Any, Any]

    @property
    def log(self) -> Any: ...

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None: ...

    def fail(self, key: Any, info: Any = None) -> None: ...


class Buffer:
    """The workloads of one executor that wait to be stored."""

    def __init__(
        self,
        host: Host,
        store: Store,
        turns: Turns,
        tokens: Tokens,
        *,
        stored: Callable[[NewJob], None],
        refused: Callable[[NewJob, str], None],
    ) -> None:
        """`stored` and `refused` are told what became of each; the latter with PostgreSQL's words."""
        self._host = host
        self._store = store
        self._turns = turns
        self._tokens = tokens
        self._stored = stored
        self._refused = refused
        #: When each was queued.
        self.since: dict[Any, float] = {}
        #: Those whose INSERT may have had its effect, by id.
        self.tried: set[UUID] = set()
        #: Those that could not be stored while others could: each is a step of its own.
        self.set_apart: set[Any] = set()
        self.batch = BATCH

    def __contains__(self, key: Any) -> bool:
        return key in self.since

    def __len__(self) -> int:
        return len(self.since)

    def add(self, workload: Any) -> None:
        """Note when this one was queued; Airflow's own `queued_*` has it."""
        self.since[workload_key(workload)] = time.monotonic()

    def write(self, workloads: Sequence[Any]) -> None:
        """Store these, as many as the turn has time for."""
        together = [workload for workload in workloads if workload_key(workload) not in self.set_apart]
        batches = outbox.batches(together, size=self.batch)
        may_try = self._turns.outage.may_try
        batches += [[one] for one in workloads if (key := workload_key(one)) in self.set_apart and may_try(key)]
        for number, batch in enumerate(batches):
            if number and not self._turns.time_is_left():
                return
            with self._turns.reaching_store("store new jobs") as reachable:
                if not reachable:
                    return
                self._give_ids([workload for workload in batch if queueing.assigned_id(workload) is None])
                wanted = [workload for workload in batch if workload_key(workload) in self]
                if jobs := [job for workload in wanted if (job := self.job_of(workload))]:
                    self._write(jobs)

    def job_of(self, workload: Any) -> NewJob | None:
        """The row to write of a workload that has an id; None when there can be none, and then it has been failed."""
        key, job_id = workload_key(workload), queueing.assigned_id(workload)
        if job_id is None:
            return None
        try:
            waited = time.monotonic() - self.since.get(key, float("-inf"))
            return queueing.job_of(
                workload,
                token_seconds=self._tokens.left(age=waited),
                job_id=job_id,
                dispatcher=self._host.dispatcher,
                team_name=self._host.team_name or "",
                default_queue=self._default_queue,
            )
        except Exception as error:
            self._host.log.exception("EdgeControl: cannot make a job of %s", key)
            self.drop(key)
            self._host.fail(key, f"EdgeControl could not make a job of it: {error}")
            return None

    def drop(self, key: Any, *, job_id: UUID | None = None) -> None:
        """Forget this one."""
        host = self._host
        for queue in (host.queued_tasks, host.queued_callbacks, host.queued_connection_tests, self.since):
            queue.pop(key, None)
        if key in self.set_apart:
            self.set_apart.remove(key)
            self._turns.outage.forget(key)
        if job_id:
            self.tried.discard(job_id)

    def drop_rolled_back(self) -> None:
        """Forget what was queued in a transaction that never was committed: a signal ends a scheduler anywhere."""
        waiting = list(self._host.queued_tasks.values())
        now = look_up({workload.ti.id for workload in waiting})
        for workload in waiting:
            found = now.get(workload.ti.id)
            if (
                found is None
                or found.state != TaskInstanceState.QUEUED
                or found.job_id != queueing.assigned_id(workload)
            ):
                self.drop(workload_key(workload))

    def _write(self, jobs: Sequence[NewJob]) -> None:
        result = outbox.Result()
        try:
            outbox.write(self._store, jobs, tried=self.tried, time_is_left=self._turns.time_is_left, result=result)
            self.batch = max(1, len(jobs) // 2) if result.unfinished else min(2 * self.batch, BATCH)
        except StoreAway:
            # It may be too large for the way there.
            self.batch = max(1, len(jobs) // 2)
            raise
        finally:
            self._note(result)
        self._give_ids([self._host.queued_tasks[queueing.key_of(job)] for job in result.id_taken])

    def _note(self, result: outbox.Result) -> None:
        for job in result.stored:
            self.drop(queueing.key_of(job), job_id=job.id)
            self._stored(job)
        for job, reason in result.refused:
            key = queueing.key_of(job)
            self._host.log.error("EdgeControl: PostgreSQL refuses the job of %s: %s", key, reason)
            self.drop(key, job_id=job.id)
            self._refused(job, reason)
        for job, reason in result.stuck:
            key = queueing.key_of(job)
            self.set_apart.add(key)
            if self._turns.outage.failed(key, alone=True):
                self._host.log.error("EdgeControl: the job of %s cannot be stored now: %s", key, reason)

    def _give_ids(self, workloads: Sequence[Any]) -> None:
        """Give these queueings an id where Airflow gave none or an old one, and let Airflow store it.

        Only while Airflow still has them queued so, and by this scheduler. One that hung has been taken for dead; under
        a new id its job would take the place of the one that runs by now.
        """
        now = look_up({workload.ti.id for workload in workloads})
        for workload in workloads:
            key, found = workload_key(workload), now.get(workload.ti.id)
            if not found or (found.state, found.job_id, found.queued_by) != (
                TaskInstanceState.QUEUED,
                queueing.assigned_id(workload),
                self._host.job_id,
            ):
                self._host.log.info("EdgeControl: %s is queued here no longer", key)
                self.drop(key)
                continue
            workload.ti.external_executor_id = str(uuid4())
            event = TaskInstanceState.QUEUED, workload.ti.external_executor_id
            self._host.change_state(key, *event, remove_running=False)

    @functools.cached_property
    def _default_queue(self) -> str:
        return str(airflow_conf.get("operators", "default_queue"))
