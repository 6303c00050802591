"""From ended jobs to Airflow's events: what is told once, what is told again, and what must wait.

`told_at` is set only after Airflow had its chance to act: it drops events of task instances that another scheduler
has locked, and those are then emitted again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from airflow_bridge import queueing
from airflow_bridge.ledger import Ledger
from airflow_bridge.other_work import callback_states
from airflow_bridge.states import JobState, Kind
from airflow_bridge.store import JobRow, Store
from airflow_bridge.task_instances import TaskInstanceNow, look_up, look_up_cleared
from airflow_bridge.verdict import Verdict, needs_airflow, reach, settled

#: Ended jobs read in one turn.
LIMIT = 1000
#: Seconds until a job that ended in doubt is looked at again.
LOOK_AGAIN_SECONDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What the executor has to do about a job that ended."""

    job_id: UUID
    key: Any
    verdict: Verdict
    state: str
    reason: str
    row: JobRow
    #: It is seen for the first time.
    is_news: bool


class Endings:
    """The ended jobs of one dispatcher, until Airflow knows."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        patience: int,
        look_up: Callable[[Collection[UUID]], dict[UUID, TaskInstanceNow]] = look_up,
        look_up_cleared: Callable[[Collection[Any]], dict[UUID, TaskInstanceNow]] = look_up_cleared,
        callback_states: Callable[[Collection[UUID]], dict[UUID, str]] = callback_states,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._patience = patience
        self._look_up = look_up
        self._look_up_cleared = look_up_cleared
        self._callback_states = callback_states
        self._clock = clock
        #: Given out last turn; on the next one Airflow is asked, and `told_at` set.
        self._telling: dict[UUID, JobRow] = {}
        #: Jobs to leave alone until that moment.
        self._paused: dict[UUID, float] = {}
        #: Those that have been seen and are not told yet.
        self._seen: set[UUID] = set()
        #: Endings that no row tells of: never stored, or deleted.
        self._without_row: dict[UUID, JobRow] = {}

    def add(self, *, job_id: UUID, airflow_id: UUID, state: JobState, reason: str, kind: str = Kind.TASK) -> None:
        """Let a job that is not in the table end like one that is."""
        self._without_row[job_id] = JobRow(
            id=job_id,
            kind=kind,
            airflow_id=airflow_id,
            dag_id="",
            task_id="",
            run_id="",
            map_index=-1,
            try_number=0,
            state=state,
            airflow_outcome="",
            reason=reason,
        )

    def confirm(self) -> None:
        """Note as told what Airflow has acted upon since the last turn; the rest comes up again."""
        if not self._telling:
            return
        now = self._ask(self._telling.values())
        callbacks = self._ask_of_callbacks(self._telling.values())
        told = [
            row.id
            for row in self._telling.values()
            if settled(row, now=now.get(row.airflow_id), callback=callbacks.get(row.airflow_id))
        ]
        if told:
            self._store.mark_told(told)
        again_at = self._clock() + LOOK_AGAIN_SECONDS
        self._paused.update(dict.fromkeys(self._telling.keys() - set(told), again_at))
        for job_id in told:
            self._without_row.pop(job_id, None)
        self._telling.clear()

    def knows_of(self, job_id: UUID) -> bool:
        """True while the end of this job is being told."""
        return job_id in self._telling or job_id in self._paused or job_id in self._without_row

    def collect(self, *, dispatcher: UUID) -> list[Ending]:
        """Jobs that ended since, with what to do about each. The caller must do it before the next `confirm`.

        What needs patience is among them only as news.
        """
        moment = self._clock()
        self._paused = {job_id: again_at for job_id, again_at in self._paused.items() if again_at > moment}
        rows = self._store.untold(dispatcher=dispatcher, besides=[*self._telling, *self._paused], limit=LIMIT)
        besides = self._paused.keys() | self._telling.keys()
        rows += itertools.islice((row for job_id, row in self._without_row.items() if job_id not in besides), LIMIT)
        now, callbacks = self._ask(rows), self._ask_of_callbacks(rows)
        endings = []
        for row in rows:
            ending = self._ending(row, now.get(row.airflow_id), callbacks.get(row.airflow_id))
            if ending.verdict is Verdict.PATIENCE:
                self._paused[row.id] = moment + LOOK_AGAIN_SECONDS
            else:
                self._telling[row.id] = row
            if ending.is_news or ending.verdict is not Verdict.PATIENCE:
                endings.append(ending)
            self._seen.add(row.id)
        self._seen &= self._telling.keys() | self._paused.keys()
        return endings

    def _ask(self, rows: Iterable[JobRow]) -> dict[UUID, TaskInstanceNow]:
        """One query of Airflow's tables for all jobs that need it, none if no job does; one more for cleared tasks."""
        asking = [row for row in rows if needs_airflow(row)]
        found = self._look_up({row.airflow_id for row in asking})
        missing = {row.id: row for row in asking if row.airflow_id not in found}
        cleared = self._look_up_cleared([queueing.key_of(row) for row in missing.values()])
        return found | {missing[job_id].airflow_id: now for job_id, now in cleared.items() if job_id in missing}

    def _ask_of_callbacks(self, rows: Iterable[JobRow]) -> dict[UUID, str]:
        return self._callback_states({row.airflow_id for row in rows if row.kind == Kind.CALLBACK})

    def _ending(self, row: JobRow, now: TaskInstanceNow | None, callback: str | None) -> Ending:
        key = now.key if now and row.kind == Kind.TASK else queueing.key_of(row)
        verdict = reach(row, now=now, patience=self._patience, callback=callback)
        if self._ledger.newest(key) not in (None, row.id):
            # Airflow has queued it again (a deferred task that resumed): an event would hit the new job.
            verdict = Verdict.SILENCE
        return Ending(
            job_id=row.id,
            key=key,
            verdict=verdict,
            state=row.state,
            reason=row.reason,
            row=row,
            is_news=row.id not in self._seen,
        )
