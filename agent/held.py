"""The table of held jobs and of the slots they take; the only place where slots are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from agent.jobs import Job, Key
from agent.spool import Spool


class Held:
    """All jobs this agent answers for. Every thread reads and changes it; `on_change` tells the loops."""

    def __init__(self, *, spool: Spool, concurrency: int) -> None:
        self.spool = spool
        self.concurrency = concurrency
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        self._jobs: dict[Key, Job] = {}
        self._reserved = 0
        self.full_since = 0.0

    def all(self) -> list[Job]:
        with self._lock:
            return list(self._jobs.values())

    def get(self, key: Key) -> Job | None:
        with self._lock:
            return self._jobs.get(key)

    def by_name(self, name: str) -> Job | None:
        return next((job for job in self.all() if job.name == name), None)

    def active(self) -> list[Job]:
        """Jobs that run or are about to."""
        return [job for job in self.all() if job.result is None]

    def unreported(self) -> list[dict[str, Any]]:
        """What the control plane must hear that we hold: everything whose end it has not accepted yet."""
        return [{"id": job.id, "attempt": job.attempt} for job in self.all() if not job.reported and not job.gone]

    def log_troubles(self) -> list[dict[str, Any]]:
        """What has changed, since it was told, of logs that do not get through."""
        return [
            {"id": job.id, "attempt": job.attempt, "trouble": job.log_trouble}
            for job in self.all()
            if job.log_trouble != job.log_trouble_told and not job.gone
        ]

    def log_troubles_told(self, troubles: list[dict[str, Any]]) -> None:
        """The control plane has heard this of them."""
        for said in troubles:
            job = self.get(Key(said["id"], said["attempt"]))
            if job is not None:
                job.log_trouble_told = said["trouble"]
                self.settle(job)

    def free_slots(self) -> int:
        """Slots that neither a job nor a claim in flight has.

        A job has its slots until its end is told: the control plane counts them until then, and a claim that
        overtook the report would find no room and park.
        """
        with self._lock:
            used = sum(job.slots for job in self._jobs.values() if job.takes_slots)
            return max(0, self.concurrency - used - self._reserved)

    def reserve(self) -> int:
        """Set all free slots aside for one claim, so that slow answers cannot add up to more than fits."""
        with self._lock:
            free = self.free_slots()
            self._reserved += free
            return free

    def unreserve(self, slots: int) -> None:
        with self._lock:
            self._reserved = max(0, self._reserved - slots)
        self.on_change()

    def add(self, job: Job) -> bool:
        """Hold the job; False when it is held already (an answer that came twice)."""
        with self._lock:
            if job.key in self._jobs:
                return False
            self._jobs[job.key] = job
            if self.free_slots() == 0:
                self.full_since = time.monotonic()
            return True

    def fits(self, job: Job) -> bool:
        """Whether the job may run beside the others that have not ended: the control plane may count them as gone."""
        with self._lock:
            others = sum(other.slots for other in self._jobs.values() if other is not job and other.result is None)
            return others + job.slots <= self.concurrency

    def ended(self, job: Job, result: dict[str, Any]) -> None:
        """The job's process is gone; what is left is to tell it."""
        with self._lock:
            if job.result is not None:
                return
            job.result, job.ended_at = result, time.monotonic()
        self.on_change()

    def told(self, job: Job) -> None:
        """The control plane has accepted the job's end: its slots are free from now on."""
        job.mark_reported()
        self.settle(job)
        self.on_change()

    def forget(self, job: Job) -> None:
        """Nothing is left to do for the job. Its directory goes first: who sees no job left may end the process."""
        self.spool.forget(job)
        with self._lock:
            self._jobs.pop(job.key, None)
        self.on_change()

    def settle(self, job: Job) -> None:
        """Forget the job when its end is known and its log is done with."""
        if job.log_given_up and job.log_trouble != job.log_trouble_told:
            return
        if job.reported and job.log_done:
            self.forget(job)
