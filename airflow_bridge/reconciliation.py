"""What is believed of open jobs, compared with the table and with Airflow, so that nothing stays wrong for long.

A slice of all at a time: one statement for the table, one query for Airflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID

from airflow.models.callback import CallbackKey
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_bridge import other_work
from airflow_bridge.endings import Endings
from airflow_bridge.ledger import Ledger, OpenJob
from airflow_bridge.states import FINAL, HELD, JobState
from airflow_bridge.store import Store
from airflow_bridge.task_instances import TaskInstanceNow, look_up
from airflow_bridge.verdict import AWAITED, AWAITED_OTHERWISE

#: Open jobs compared once a second, so that all are within a minute (or at this pace).
CHECK_LIMIT = 500
CHECK_ROUND_SECONDS = 60
#: What a worker has and Airflow waits for no longer is given this much more than the patience: it has most often ended,
#: and its report is on the way, or its supervisor is about to be told by Airflow.
GRACE_SECONDS = 60

LookUp = Callable[[Collection[UUID]], dict[UUID, TaskInstanceNow]]
States = Callable[[Collection[UUID]], dict[UUID, str]]


class Reconciliation:
    """The open jobs of one dispatcher."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        endings: Endings,
        *,
        queue_wait_limit: int,
        patience: int,
        note: Callable[[str, OpenJob, str], None],
        look_up: LookUp = look_up,
        callback_states: States = other_work.callback_states,
        connection_test_states: States = other_work.connection_test_states,
    ) -> None:
        """`note` tells people what became of a job, and why."""
        self._store = store
        self._ledger = ledger
        self._endings = endings
        self._queue_wait_limit = queue_wait_limit
        self._patience = patience
        self._note = note
        self._look_up = look_up
        self._callback_states = callback_states
        self._connection_test_states = connection_test_states
        #: What a worker has and Airflow waits for no longer, since when.
        self._unwanted_since: dict[UUID, float] = {}

    def compare_with_table(self, *, dispatcher: UUID) -> None:
        """Compare a slice of what is believed open with the table, which is right."""
        ids = self._slice("table")
        if not ids:
            return
        standings = {standing.id: standing for standing in self._store.standing(ids)}
        for job_id in ids:
            job, standing = self._ledger.get(job_id), standings.get(job_id)
            if job and standing is None:
                self._endings.add(
                    job_id=job_id, airflow_id=job.airflow_id, state=JobState.LOST, reason="its job was deleted"
                )
                self._ledger.forget(job_id)
            elif standing and (standing.dispatcher != dispatcher or (standing.told and standing.state in FINAL)):
                # Adopted by another scheduler, which took us for dead; or over, and nobody will tell it again.
                self._ledger.forget(job_id)
        limit = self._queue_wait_limit
        if late := [s.id for s in standings.values() if s.state == JobState.QUEUED and s.age > limit]:
            for job_id, reason in self._store.expire(late, limit_seconds=limit).items():
                if job := self._ledger.get(job_id):
                    self._note("expired", job, reason)

    def compare_with_airflow(self, *, held: Collection[UUID]) -> None:
        """Revoke those of a slice that Airflow waits for no longer: deleted, cleared, or marked by hand.

        What waits goes at once. What a worker has mostly ends by itself, since Airflow tells its supervisor; only
        where that hangs is it revoked, after the patience.
        """
        self.withdraw([job for job_id in self._slice("airflow") if (job := self._ledger.get(job_id))], held=held)

    def withdraw(self, jobs: Sequence[OpenJob], *, held: Collection[UUID]) -> None:
        """The same for these jobs."""
        unwanted = self._unwanted(jobs)
        now = time.monotonic()
        since = {job_id: at for job_id, at in self._unwanted_since.items() if self._ledger.get(job_id)}
        for job in jobs:
            if job.id in unwanted and job.id in held:
                since.setdefault(job.id, now)
            else:
                since.pop(job.id, None)
        self._unwanted_since = since
        if waiting := {job_id: reason for job_id, reason in unwanted.items() if job_id not in held}:
            # Guarded by the state: it may have been taken, and have ended well, since Airflow was asked.
            self._store.revoke_each(waiting, states=[JobState.QUEUED])
        limit = self._patience + GRACE_SECONDS
        if hanging := {job_id: reason for job_id, reason in unwanted.items() if since.get(job_id, now) < now - limit}:
            self._store.revoke_each(hanging, states=HELD)

    def _slice(self, name: str) -> list[UUID]:
        return self._ledger.next_to_check(name, seconds_per_round=CHECK_ROUND_SECONDS, limit=CHECK_LIMIT)

    def _unwanted(self, jobs: Sequence[OpenJob]) -> dict[UUID, str]:
        """Those of the jobs that Airflow waits for no longer, and why."""
        ids: dict[type[Any], set[UUID]] = {}
        for job in jobs:
            ids.setdefault(type(job.key), set()).add(job.airflow_id)
        found: dict[UUID, str | None] = {}
        for kind, of_kind in ids.items():
            if kind is TaskInstanceKey:
                found.update({ti_id: now.state for ti_id, now in self._look_up(of_kind).items()})
            elif kind is CallbackKey:
                found.update(self._callback_states(of_kind))
            else:
                found.update(self._connection_test_states(of_kind))
        unwanted = {}
        for job in jobs:
            if job.airflow_id not in found:
                unwanted[job.id] = f"Airflow withdrew it: the {_what(job)} was deleted or cleared"
            elif (state := found[job.airflow_id]) not in (AWAITED if _is_task(job) else AWAITED_OTHERWISE):
                unwanted[job.id] = f"Airflow withdrew it: the {_what(job)} is {state or 'to be scheduled anew'}"
        return unwanted


def _is_task(job: OpenJob) -> bool:
    return isinstance(job.key, TaskInstanceKey)


def _what(job: OpenJob) -> str:
    if _is_task(job):
        return "task instance"
    return "callback" if isinstance(job.key, CallbackKey) else "connection test"
