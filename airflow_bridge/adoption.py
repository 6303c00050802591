"""How jobs of schedulers that are gone become this one's, whatever they had come to."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from airflow_bridge import queueing
from airflow_bridge.ledger import Ledger, OpenJob
from airflow_bridge.states import FINAL
from airflow_bridge.store import JobRow, NewJob, Place, Store

#: Jobs taken over in one statement.
HAND_OVER_LIMIT = 1000
#: Ended jobs of dispatchers that are gone are looked for this often. They are told when they ended that much more than
#: the patience ago: a living dispatcher keeps none longer. Callbacks and connection tests are told at once, or their
#: dispatcher is gone.
OVERDUE_SECONDS = 60
#: So long after a waiting job's token has run out its dispatcher is gone, since a living one renews it in time.
ABANDONED_SECONDS = 60
#: Waiting jobs that are looked at in one statement, once a second until all have been.
ABANDONED_LIMIT = 200


class Adoption:
    """The jobs of others that one dispatcher is to go on with."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        *,
        workloads_of: Callable[[Sequence[UUID]], Sequence[Any]],
        queue_again: Callable[[Any, UUID], None],
        patience: int,
    ) -> None:
        """`workloads_of` makes those task instances' workloads anew that are queued; `queue_again` buffers one."""
        self._store = store
        self._ledger = ledger
        self._workloads_of = workloads_of
        self._queue_again = queue_again
        self._patience = patience
        #: Jobs of dead schedulers that could not be taken over yet, with their task instances.
        self.hand_over: dict[UUID, UUID] = {}
        #: Buffered ones that another scheduler had queued, and may write yet.
        self._inherited: set[UUID] = set()
        self.next_overdue = float("-inf")
        self.next_abandoned = float("-inf")
        self._after: Place | None = None

    def take_over(self, *, dispatcher: UUID, ends: float) -> Iterator[tuple[UUID, UUID]]:
        """Make ours what is noted for it, slice by slice until that moment; yield what nobody can go on with.

        Each slice is done with when its statement is, so that any number of jobs gets there in the end. What
        somebody has locked at the moment comes up again.
        """
        locked: dict[UUID, UUID] = {}
        try:
            while self.hand_over:
                jobs = dict(itertools.islice(self.hand_over.items(), HAND_OVER_LIMIT))
                found = self._adopt(list(jobs), dispatcher=dispatcher)
                missing = {job_id: jobs[job_id] for job_id in jobs.keys() - found}
                if missing:
                    there = {standing.id for standing in self._store.standing(list(missing))}
                    locked.update({job_id: missing.pop(job_id) for job_id in there})
                nobodys = missing.keys() - self._go_on_with(missing)
                for job_id in jobs:
                    del self.hand_over[job_id]
                yield from ((job_id, missing[job_id]) for job_id in nobodys)
                if time.monotonic() >= ends:
                    return
        finally:
            self.hand_over.update(locked)

    def take_over_ended(self, *, dispatcher: UUID) -> None:
        """Tell what a dead scheduler left untold and Airflow does not offer, since the task has told Airflow itself."""
        if time.monotonic() >= self.next_overdue:
            self.next_overdue = time.monotonic() + OVERDUE_SECONDS
            self._store.adopt_overdue(
                dispatcher=dispatcher,
                seconds=self._patience + OVERDUE_SECONDS,
                seconds_of_others=OVERDUE_SECONDS,
            )

    def take_over_abandoned(self, *, dispatcher: UUID, team_name: str) -> list[OpenJob]:
        """Make ours what waits, and Airflow does not offer, since it waits for it no longer or adopts none of its kind.

        One slice of all that waits; returns what is ours now.
        """
        if time.monotonic() < self.next_abandoned:
            return []
        rows, self._after = self._store.adopt_abandoned(
            dispatcher=dispatcher,
            team_name=team_name,
            seconds=ABANDONED_SECONDS,
            before=self._after,
            limit=ABANDONED_LIMIT,
        )
        if self._after is None:
            self.next_abandoned = time.monotonic() + OVERDUE_SECONDS
        return [self._open(row) for row in rows]

    def note_stored(self, job: NewJob) -> None:
        """Of what another scheduler had queued, it may have been faster: then its row is still to be taken over."""
        if job.id in self._inherited:
            self._inherited.remove(job.id)
            self.hand_over[job.id] = job.airflow_id

    def _adopt(self, job_ids: Sequence[UUID], *, dispatcher: UUID) -> set[UUID]:
        rows = self._store.adopt(job_ids, dispatcher=dispatcher)
        for row in rows:
            if row.state not in FINAL:
                self._open(row)
        return {row.id for row in rows}

    def _open(self, row: JobRow) -> OpenJob:
        job = OpenJob(
            id=row.id,
            key=queueing.key_of(row),
            airflow_id=row.airflow_id,
            queue=row.queue,
            handed_out=row.attempt > 0,
        )
        self._ledger.add(job, renew_at=float("-inf"))  # nobody knows how old its token is
        return job

    def _go_on_with(self, jobs: Mapping[UUID, UUID]) -> set[UUID]:
        """Buffer what another scheduler queued and never wrote; return which that were.

        Should that one live after all and write it too: the same id is stored once.
        """
        again: set[UUID] = set()
        for workload in self._workloads_of(list(jobs.values())) if jobs else ():
            job_id = queueing.assigned_id(workload)
            if job_id and job_id in jobs:
                self._queue_again(workload, job_id)
                self._inherited.add(job_id)
                again.add(job_id)
        return again
