"""The stored jobs that this executor believes to be open: memory only; where the table differs, the table is right."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenJob:
    """A stored job that is not known to have ended."""

    id: UUID
    key: Hashable
    airflow_id: UUID
    queue: str = ""
    #: A worker had it when it came here, so that its start was another scheduler's to count.
    handed_out: bool = False


class Ledger:
    """Open jobs by id and by Airflow's key; a key belongs to its newest job."""

    def __init__(self) -> None:
        self._by_id: dict[UUID, OpenJob] = {}
        self._by_key: dict[Hashable, UUID] = {}
        self._renewals: list[tuple[float, UUID]] = []
        #: Of several moments of one job, the one that counts.
        self._renew_at: dict[UUID, float] = {}
        self._rounds: dict[str, list[UUID]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._by_key

    def add(self, job: OpenJob, *, renew_at: float) -> None:
        """Note a stored job whose token is worth renewing at that moment."""
        self.forget_key(job.key)
        self._by_id[job.id] = job
        self._by_key[job.key] = job.id
        self.renew(job.id, at=renew_at)

    def get(self, job_id: UUID) -> OpenJob | None:
        return self._by_id.get(job_id)

    def newest(self, key: Hashable) -> UUID | None:
        """The job that the key stands for now."""
        return self._by_key.get(key)

    def forget(self, job_id: UUID) -> None:
        job = self._by_id.pop(job_id, None)
        self._renew_at.pop(job_id, None)
        if job and self._by_key.get(job.key) == job_id:
            del self._by_key[job.key]

    def forget_key(self, key: Hashable) -> None:
        job_id = self._by_key.get(key)
        if job_id:
            self.forget(job_id)

    def keys_of(self, ids: Collection[UUID]) -> set[Hashable]:
        """Keys of those of the jobs that are known here."""
        return {job.key for job_id in ids if (job := self._by_id.get(job_id))}

    def renew(self, job_id: UUID, *, at: float) -> None:
        """Let the job come up for renewal at that moment, and at no other."""
        self._renew_at[job_id] = at
        heapq.heappush(self._renewals, (at, job_id))

    def due_for_renewal(self, *, now: float, limit: int) -> list[OpenJob]:
        """Take at most `limit` jobs whose token should be renewed now; the caller says when they are next."""
        due: dict[UUID, OpenJob] = {}
        while self._renewals and self._renewals[0][0] <= now and len(due) < limit:
            at, job_id = heapq.heappop(self._renewals)
            if self._renew_at.get(job_id) == at and (job := self._by_id.get(job_id)):
                due[job_id] = job
                del self._renew_at[job_id]
        return list(due.values())

    def next_renewal(self) -> float:
        """When the next token is worth renewing."""
        return self._renewals[0][0] if self._renewals else float("inf")

    def next_to_check(self, what: str, *, seconds_per_round: int, limit: int) -> list[UUID]:
        """The next slice of all jobs, sized so that one call a second goes through all of them in one round.

        Each kind of check, `what`, goes its own rounds.
        """
        remaining = self._rounds.setdefault(what, [])
        if not remaining:
            remaining.extend(self._by_id)
        size = min(limit, 1 + len(self._by_id) // seconds_per_round)
        taken = remaining[-size:]
        del remaining[-size:]
        return taken
