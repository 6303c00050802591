"""Ships the new bytes of every job's log from the acknowledged offset; a log never decides anything about its job."""

from __future__ import annotations

import logging
import time

from agent.client import SAY_AGAIN_SECONDS, ApiError, Client
from agent.held import Held
from agent.jobs import Job
from agent.retry import Backoff

log = logging.getLogger("agent.logs")

#: How often running jobs are looked at, for a live view.
LIVE_SECONDS = 1.0
#: Chunks of one log in one turn, so that a big log does not hold up the others.
CHUNKS_PER_TURN = 4
SMALLEST_CHUNK = 1024
#: How long after a gateway refused a size a larger one is tried again.
LARGER_SECONDS = 600.0
#: Wrong offsets in a row after which a log pauses as after any other failure.
MOST_JUMPS = 10
#: How often the disk is looked at while logs do not get through.
ROOM_SECONDS = 30.0
#: Answers by which the control plane wants no more of this log.
FINAL_CODES = frozenset({"stale_attempt", "log_full"})


class LogShipper:
    """Every job's log, in turns. Byte-exact: the offset moves only when the control plane says how far it is.

    A log that does not get through waits on disk, for as long as it takes: only a nearly full disk ends that.
    """

    def __init__(self, *, client: Client, held: Held, chunk_bytes: int) -> None:
        self.client = client
        self.held = held
        #: Halved when a gateway refuses the size; for all logs, since they pass the same gateway.
        self.chunk_bytes = chunk_bytes
        self._most_chunk_bytes = chunk_bytes
        self._too_large_at = 0.0
        self._room_at = 0.0
        self._said = False
        self._said_at = float("-inf")

    def step(self) -> float:
        """One turn over all logs. Returns at once when some have more, else after the time of a live view."""
        self._make_room()
        more = False
        for job in self.held.all():
            if not job.log_done and time.monotonic() >= job.ship_after:
                more = self._turn(job) or more
        self._say()
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
            job.failures["told to wait"] = int(error.retry_after is not None)
            job.log_trouble = str(error)
            if error.status == 401 or (error.status is None and self.client.contact.silent):
                raise
            return False
        return True

    def _ship(self, job: Job) -> bool:
        """Ship one chunk; False when there is nothing to ship now."""
        ended = job.result is not None  # read first: what is in the file then, is all
        if job.result is not None and job.result["state"] == "not_started":
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
        job.mark_shipped(size, done=False)
        self._got_through(job)
        return True

    def _got_through(self, job: Job) -> None:
        for what in ("log", "offset", "told to wait"):
            job.failures.pop(what, None)
        if job.log_trouble:
            job.log_trouble = ""
            for other in self.held.all():
                if not other.failures.get("told to wait"):
                    other.ship_after = 0.0  # what held this one up may have held them up
        if self.chunk_bytes < self._most_chunk_bytes and time.monotonic() - self._too_large_at > LARGER_SECONDS:
            self.chunk_bytes = min(self._most_chunk_bytes, self.chunk_bytes * 2)
            self._too_large_at = time.monotonic()

    def _refused(self, job: Job, error: ApiError, *, sent: int) -> bool:
        """What follows from a refusal; True when the next chunk may follow at once. Raises what is worth a pause."""
        if error.code in FINAL_CODES:
            log.info("the log of job %s attempt %d ends at the control plane: %s", job.id, job.attempt, error.code)
            self._done(job)
            return False
        if error.status == 413 and sent > SMALLEST_CHUNK:
            self.chunk_bytes = max(SMALLEST_CHUNK, min(sent, self.chunk_bytes) // 2)
            self._too_large_at = time.monotonic()
            return True
        if error.code == "wrong_offset":
            return self._jump(job, error)
        raise error

    def _jump(self, job: Job, error: ApiError) -> bool:
        """Go on from where the control plane is; True when that may follow at once."""
        size = int(error.body.get("size", -1))
        if size > job.log_size():
            log.error("the log of job %s attempt %d is shorter than what has arrived of it", job.id, job.attempt)
            self._done(job)
            return False
        job.failures["offset"] = job.failures.get("offset", 0) + 1
        if size < 0 or job.failures["offset"] >= MOST_JUMPS:
            raise error
        job.mark_shipped(size, done=False)
        return True

    def _done(self, job: Job) -> None:
        if not job.log_given_up:
            job.log_trouble = ""
        job.mark_shipped(job.shipped, done=True)
        self.held.settle(job)
        self.held.on_change()

    def _make_room(self) -> None:
        """Give up the oldest logs that do not get through, before they fill the disk that running tasks need."""
        if time.monotonic() < self._room_at:
            return
        self._room_at = time.monotonic() + ROOM_SECONDS
        stuck = [job for job in self.held.all() if job.reported and job.log_trouble and not job.log_done]
        for job in sorted(stuck, key=lambda job: job.ended_at):
            if not self.held.spool.nearly_full():
                return
            log.error("the log of job %s attempt %d is deleted: the disk is nearly full", job.id, job.attempt)
            job.log_trouble, job.log_given_up = "deleted, since its disk was nearly full", True
            job.drop_log()
            self._done(job)

    def _say(self) -> None:
        """One line a minute for all logs that do not get through, and one when all do again."""
        stuck = [job for job in self.held.all() if job.log_trouble and not job.log_done]
        if not stuck:
            if self._said:
                log.info("all logs get through again")
            self._said = False
        elif time.monotonic() - self._said_at >= SAY_AGAIN_SECONDS:
            self._said, self._said_at = True, time.monotonic()
            log.warning("logs of %d jobs wait on disk and do not get through: %s", len(stuck), stuck[-1].log_trouble)


def read_at(job: Job, offset: int, size: int) -> bytes:
    """Up to `size` bytes of the log from the offset; none while there is no log."""
    try:
        with job.open_log() as file:
            file.seek(offset)
            return file.read(size)
    except (OSError, ValueError):
        return b""


def pause(failures: int, error: ApiError) -> float:
    """How long one log, or one report, waits after so many failures of its own."""
    backoff = Backoff(most_seconds=60.0 if error.repeatable else 300.0)
    backoff.failures = failures
    return backoff.next_seconds(retry_after=error.retry_after)
