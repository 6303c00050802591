"""What happens between an offer and the order to start: write it down, have it confirmed, only then start."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol

from agent.client import ApiError, Client
from agent.gate import Gate
from agent.held import Held
from agent.jobs import Job, Key
from agent.orders import Orders
from agent.retry import Backoff
from agent.spool import Spool

log = logging.getLogger("agent.intake")

#: Whoever asks for a longer pause would have the job handed to somebody else meanwhile.
CONFIRM_PAUSE_SECONDS = 10.0


class Starter(Protocol):
    def order(self, job: Job) -> None: ...


class Intake:
    """Takes offered jobs in. Runs in the thread of the poll that brought them."""

    def __init__(
        self,
        *,
        client: Client,
        spool: Spool,
        held: Held,
        gate: Gate,
        orders: Orders,
        starter: Starter,
        settings: dict[str, Any],
    ) -> None:
        self.client = client
        self.spool = spool
        self.held = held
        self.gate = gate
        self.orders = orders
        self.starter = starter
        self.settings = settings  # what every job's process must know of the control plane's settings
        self._ended = threading.Event()

    def take(self, offers: list[dict[str, Any]], *, reserved: int) -> None:
        """Hold what was offered, then have it confirmed. `reserved` slots go back once the jobs have theirs."""
        jobs, homeless = [], []
        try:
            for offer in offers:
                try:
                    job = self.spool.add(offer, settings=self.settings)
                except OSError as error:
                    reason = f"the state directory takes no job: {error.strerror or error}"
                    self.gate.start_failed(reason)
                    homeless.append((offer, reason))
                except Exception as error:  # whatever it holds, the others of this answer are not to blame
                    log.error("an offer makes no sense and is left to the control plane: %r", error)
                else:
                    jobs += [job] if self.held.add(job) and self._fits(job) else []
        finally:
            self.held.unreserve(reserved)
        self.confirm(jobs)
        for offer, reason in homeless:
            self._give_back(offer, reason)

    def _fits(self, job: Job) -> bool:
        """Whether there is room for the job; else it goes back. An answer that comes late knows older slots."""
        if self.held.fits(job):
            return True
        self.held.ended(job, {"state": "not_started", "reason": "no slots are free for it on its machine"})
        return False

    def _give_back(self, offer: dict[str, Any], reason: str) -> None:
        """Let somebody else have it at once. When nobody hears that, it goes back by itself: it is unconfirmed."""
        report = {"attempt": offer["attempt"], "state": "not_started", "reason": reason}
        try:
            self.client.report(str(offer["id"]), report)
        except ApiError as error:
            log.warning("job %s could not be given back: %s", offer["id"], error)

    def confirm(self, jobs: list[Job]) -> None:
        """Ask until the control plane has answered for all jobs, then order the start of the confirmed ones."""
        backoff = Backoff(most_seconds=CONFIRM_PAUSE_SECONDS, obey_seconds=CONFIRM_PAUSE_SECONDS)
        while jobs and not self._ended.is_set():
            if self.orders.draining or self.orders.resting_untold:
                reason = "the agent is ending" if self.orders.draining else "its machine is in maintenance"
                for job in jobs:
                    self.held.ended(job, {"state": "not_started", "reason": reason})
                return
            try:
                answer = self.client.confirm([{"id": job.id, "attempt": job.attempt} for job in jobs])
            except ApiError as error:
                if not error.repeatable and error.status != 401:
                    log.error("confirming was refused: %s", error)
                    self._drop(jobs, why=error.code)
                    return
                self._ended.wait(backoff.next_seconds(retry_after=error.retry_after))
                continue
            confirmed = {Key(entry["id"], entry["attempt"]) for entry in answer.get("confirmed", [])}
            self._drop([job for job in jobs if job.key not in confirmed], why="no longer ours")
            self._start([job for job in jobs if job.key in confirmed])
            return

    def _start(self, jobs: list[Job]) -> None:
        for job in jobs:
            try:
                job.mark_confirmed()
            except OSError as error:
                self.gate.start_failed(f"the state directory takes no job: {error.strerror or error}")
                self.held.ended(job, {"state": "not_started", "reason": f"the disk of the machine: {error.strerror}"})
                continue
            log.info("job %s attempt %d of queue %s starts", job.id, job.attempt, job.queue)
            self.starter.order(job)

    def _drop(self, jobs: list[Job], *, why: str) -> None:
        for job in jobs:
            log.info("job %s attempt %d is dropped before its start: %s", job.id, job.attempt, why)
            self.held.forget(job)

    def end(self) -> None:
        """Stop asking; what is not confirmed stays on disk for the next agent process."""
        self._ended.set()
