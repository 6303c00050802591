"""Reports what became of each job until the control plane accepts it; the log gets a few seconds first, never more."""

from __future__ import annotations

import logging
import time

from agent.client import ApiError, Client
from agent.held import Held
from agent.jobs import Job
from agent.log_shipper import pause

log = logging.getLogger("agent.reports")

#: How long the final report waits for the rest of the log.
FLUSH_SECONDS = 5.0
REASON_CHARACTERS = 2000
#: Of a larger log no digest is made, where the control plane does not say how much it keeps.
MOST_LOG_BYTES = 1 << 28


class Reporter:
    """Every ended job's final report, each repeated by itself so that a bad one holds up no other."""

    def __init__(self, *, client: Client, held: Held, log_cap_bytes: int | None = None) -> None:
        self.client = client
        self.held = held
        #: What the control plane keeps of a log; of more there is nothing to compare a digest with.
        self._log_cap_bytes = log_cap_bytes or MOST_LOG_BYTES

    def step(self) -> float:
        """Send the reports that are due. Returns how long none can become due by itself."""
        next_at = time.monotonic() + 60.0
        for job in self.held.all():
            if job.result is None or job.reported:
                continue
            due_at = self._due_at(job)
            if due_at <= time.monotonic():
                self._report(job)
                due_at = self._due_at(job)
            next_at = min(next_at, due_at)
        return max(0.05, next_at - time.monotonic())

    def _due_at(self, job: Job) -> float:
        flushed_at = job.ended_at if job.log_done else job.ended_at + FLUSH_SECONDS
        return max(flushed_at, job.report_after)

    def _report(self, job: Job) -> None:
        """Send one report. Raises ApiError when nobody answers any more."""
        result = job.result or {}
        size, digest = job.log_digest(most_bytes=self._log_cap_bytes)
        trouble = job.log_trouble
        try:
            self.client.report(
                job.id,
                {
                    "attempt": job.attempt,
                    "state": result["state"],
                    "exit_code": result.get("exit_code"),
                    "airflow_outcome": result.get("airflow_outcome", ""),
                    "reason": str(result.get("reason", ""))[:REASON_CHARACTERS],
                    "log_size": size,
                    "log_sha256": digest,
                    "log_trouble": trouble,
                },
            )
        except ApiError as error:
            self._refused(job, error)
            return
        job.log_trouble_told = trouble
        if result["state"] == "not_started":
            self.held.forget(job)
            return
        self.held.told(job)

    def _refused(self, job: Job, error: ApiError) -> None:
        if error.code == "stale_attempt":
            log.warning("job %s attempt %d is no longer ours; its report was refused", job.id, job.attempt)
            self.held.forget(job)
            return
        job.failures["report"] = job.failures.get("report", 0) + 1
        job.report_after = time.monotonic() + pause(job.failures["report"], error)
        if error.status == 401 or (error.status is None and self.client.contact.silent):
            raise error
        if not error.repeatable:
            log.error("the report of job %s attempt %d is refused: %s", job.id, job.attempt, error)
