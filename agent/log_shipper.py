"""Ships the new bytes of every job's log from the acknowledged offset; a log never decides anything about its job."""

from __future__ import annotations

import logging
import time

from agent.client import ApiError, Client
from agent.held import Held
from agent.jobs import Job
from agent.retry import Backoff

log = logging.getLogger("agent.logs")

#: How often running jobs are looked at, for a live view.
LIVE_SECONDS = 1.0
#: Chunks of one log in one turn, so that a big log does not hold up the others.
CHUNKS_PER_TURN = 4
SMALLEST_CHUNK = 1024
#: Answers by which the control plane wants no more of this log.
FINAL_CODES = frozenset({"stale_attempt", "log_full"})


class LogShipper:
    """Every job's log, in turns. Byte-exact: the offset moves only when the control plane says how far it is."""

    def __init__(self, *, client: Client, held: Held, chunk_bytes: int) -> None:
        self.client = client
        self.held = held
        #: Halved when a gateway refuses the size; for all logs, since they pass the same gateway.
        self.chunk_bytes = chunk_bytes

    def step(self) -> float:
        """One turn over all logs. Returns at once when some have more, else after the time of a live view."""
        more = False
        for job in self.held.all():
            if not job.log_done and time.monotonic() >= job.ship_after:
                more = self._turn(job) or more
        if more:
            return 0.0
        unfinished = any(not job.log_done for job in self.held.all())
        return LIVE_SECONDS if unfinished else 60.0

    def _turn(self, job: Job) -> bool:
        """Ship a few chunks; True when there are more at once. Raises ApiError when nobody answers any more."""
        try:
            for _ in range(CHUNKS_PER_TURN):
                if not self._ship(job):
                    return False
        except ApiError as error:
            job.failures["log"] = job.failures.get("log", 0) + 1
            job.ship_after = time.monotonic() + pause(job.failures["log"], error)
            if error.status == 401 or (error.status is None and self.client.contact.silent):
                raise
            if not error.repeatable:
                log.error("the log of job %s is refused: %s", job.id, error)
            return False
        return True

    def _ship(self, job: Job) -> bool:
        """Ship one chunk; False when there is nothing to ship now."""
        ended = job.result is not None  # read first: what is in the file then, is all
        if job.gone or (ended and job.result is not None and job.result["state"] == "not_started"):
            self._done(job)
            return False
        data = read_at(job, job.shipped, self.chunk_bytes)
        if not data:
            if ended:
                self._done(job)
            return False
        try:
            size = self.client.append_log(job.id, job.attempt, offset=job.shipped, data=data)
        except ApiError as error:
            return self._refused(job, error, sent=len(data))
        job.failures.pop("log", None)
        job.mark_shipped(size, done=False)
        return True

    def _refused(self, job: Job, error: ApiError, *, sent: int) -> bool:
        """What follows from a refusal; True when the next chunk may follow at once. Raises what is worth a pause."""
        if error.code in FINAL_CODES:
            log.info("the log of job %s attempt %d ends at the control plane: %s", job.id, job.attempt, error.code)
            self._done(job)
            return False
        if error.status == 413 and sent > SMALLEST_CHUNK:
            self.chunk_bytes = max(SMALLEST_CHUNK, min(sent, self.chunk_bytes) // 2)
            return True
        if error.code == "wrong_offset" and 0 <= int(error.body.get("size", -1)) <= job.log_size():
            job.mark_shipped(int(error.body["size"]), done=False)
            job.failures["offset"] = job.failures.get("offset", 0) + 1
            if job.failures["offset"] < 10:
                return True
        if error.status == 413 or error.code == "wrong_offset":
            log.error("the log of job %s attempt %d cannot be shipped further: %s", job.id, job.attempt, error)
            self._done(job)
            return False
        raise error

    def _done(self, job: Job) -> None:
        job.mark_shipped(job.shipped, done=True)
        self.held.settle(job)
        self.held.on_change()


def read_at(job: Job, offset: int, size: int) -> bytes:
    """Up to `size` bytes of the log from the offset; none while there is no log."""
    try:
        with job.log_file.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except (OSError, ValueError):
        return b""


def pause(failures: int, error: ApiError) -> float:
    """How long one log, or one report, waits after so many failures of its own."""
    backoff = Backoff(most_seconds=60.0 if error.repeatable else 300.0)
    backoff.failures = failures
    return backoff.next_seconds(retry_after=error.retry_after)
