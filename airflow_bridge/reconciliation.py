"""What is believed, compared with what is: a slice of all in each round, so that nothing stays wrong for long."""

from __future__ import annotations

from uuid import UUID

from airflow_bridge.endings import Endings
from airflow_bridge.ledger import Ledger
from airflow_bridge.states import JobState
from airflow_bridge.store import Store

#: Open jobs compared with the table once a second, so that all are within a minute (or at this pace).
CHECK_LIMIT = 500
CHECK_ROUND_SECONDS = 60


class Reconciliation:
    """The open jobs of one dispatcher."""

    def __init__(self, store: Store, ledger: Ledger, endings: Endings, *, queue_wait_limit: int) -> None:
        self._store = store
        self._ledger = ledger
        self._endings = endings
        self._queue_wait_limit = queue_wait_limit

    def compare_with_table(self, *, dispatcher: UUID) -> None:
        """Compare a slice of what is believed open with the table, which is right."""
        ids = self._ledger.next_to_check(seconds_per_round=CHECK_ROUND_SECONDS, limit=CHECK_LIMIT)
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
            elif standing and standing.dispatcher != dispatcher:
                self._ledger.forget(job_id)  # adopted by another scheduler, which took us for dead
        limit = self._queue_wait_limit
        if late := [s.id for s in standings.values() if s.state == JobState.QUEUED and s.age > limit]:
            self._store.expire(late, limit_seconds=limit)
