"""Notices what becomes of the jobs' processes and stops those that have to go; it never speaks to the control plane."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import psutil

from agent import processes
from agent.gate import Gate
from agent.held import Held
from agent.jobs import Found, Job
from agent.runner_link import RunnerAway
from agent.runners import Runners

log = logging.getLogger("agent.jobs")

#: How often all jobs are looked at. The runner tells of its own jobs at once; this is for those of earlier runners.
LOOK_SECONDS = 1.0
#: A confirmed job that no runner has started for this long goes back to the control plane.
START_SECONDS = 60.0
#: For how long what was killed is waited for at one look; the next look waits for what is left.
KILLED_WAIT_SECONDS = 1.0
#: How many of the jobs that were turned away last are remembered.
MOST_TURNED_AWAY = 1000
MOST_REASON = 500
#: What a result may say.
RESULTS = frozenset({"success", "failed", "refused", "not_started"})


class JobWatch:
    """Orders starts, follows the runner's word and the disk, and stops jobs: SIGTERM, a grace, SIGKILL."""

    def __init__(self, *, runner: Runners, held: Held, gate: Gate, boot_id: str, grace_seconds: float) -> None:
        self.runner = runner
        self.held = held
        self.gate = gate
        self.boot_id = boot_id
        self.grace_seconds = grace_seconds
        self._looked_at = 0.0
        self._turned_away: deque[str] = deque(maxlen=MOST_TURNED_AWAY)

    def step(self) -> float:
        """Follow the runners for up to a second, bring those back that are gone, then look at every job."""
        self._mend()
        for event in self.runner.events(timeout=LOOK_SECONDS):
            self._follow(event)
        if self.runner.look():
            self.held.on_change()
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self.look_at_all()
        return 0.0

    def order(self, job: Job) -> None:
        """Have the job started. When its runner is away, the next look at the job tries again."""
        if job.ordered or job.result is not None or job.stopping_at is not None:
            return
        if reason := self.runner.why_not(job):
            self._turn_away(job, reason)
            return
        if not self.runner.can_start(job.queue):
            return
        try:
            job.ordered = True
            self.runner.start(job)
        except RunnerAway:
            job.ordered = False

    def stop(self, job: Job, *, gone: bool, because: str = "") -> None:
        """Ask the job to end; `gone` says that its result interests nobody any more, `because` is told with it.

        A job that has ended is left alone: its report may be what made the control plane call it gone, and if not, the
        answer to its report says so.
        """
        with self._telling_trouble(job):
            if job.result is None and job.look() is Found.ENDED:
                self._ended(job)
        if job.result is not None:
            return
        job.gone = job.gone or gone
        if job.stopping_at is None:
            job.stopping_at, job.stopped_because = time.monotonic(), because
            with self._telling_trouble(job):
                self._ask_to_stop(job)

    def look_at_all(self) -> None:
        """Compare every job that has not ended with what the disk says of it."""
        self._looked_at = time.monotonic()
        for job in self.held.active():
            with self._telling_trouble(job):
                self._look(job)

    def take_over(self, job: Job) -> Found | None:
        """Hold a job that an earlier agent process left behind; its start or its end follow by the usual looks.

        Returns how it was found; None when that cannot be told yet.
        """
        self.held.add(job)
        found = None
        with self._telling_trouble(job):
            found = job.look()
            if found is Found.ENDED:
                self._ended(job)
            elif found is Found.DIED:
                self._died(job)
            elif found is not Found.RUNNING and job.boot_id != self.boot_id:
                self.held.forget(job)  # not accounted for, so the control plane gives it to somebody anew
                return found
            self.held.settle(job)  # it may have been done with, but for its directory
            log.info("job %s attempt %d is taken over: %s", job.id, job.attempt, found.value)
        return found

    @contextlib.contextmanager
    def _telling_trouble(self, job: Job) -> Iterator[None]:
        """Let one job that cannot be looked at now hide no other, nor be taken for dead: the next look may tell."""
        try:
            yield
        except Exception as error:
            if job.trouble != repr(error):
                log.error("job %s attempt %d cannot be looked at: %r", job.id, job.attempt, error)
            job.trouble = repr(error)
        else:
            job.trouble = ""

    def _mend(self) -> None:
        mended = self.runner.mend()
        for job in self.held.active():
            if job.uid in mended:
                # An order to the old runner may have been lost; `started` guards against a second start.
                job.ordered = False

    def _follow(self, event: dict[str, Any]) -> None:
        job = self.held.by_name(str(event.get("job", "")))
        if job is None or job.uid != event.get("uid"):
            return
        with self._telling_trouble(job):
            if event["event"] == "started" and type(event.get("pid")) is int:
                job.note_supervisor(event["pid"])
            elif event["event"] == "unstarted":
                self._not_started(job, str(event.get("reason", ""))[:MOST_REASON])
            elif event["event"] == "ended":
                status = event.get("status")
                self._look(job, status=status if isinstance(status, int) else None)
                if job.result is None:
                    self._not_started(job, "its process ended before it began")

    def _look(self, job: Job, *, status: int | None = None) -> None:
        found = job.look()
        if found is Found.RUNNING:
            with contextlib.suppress(OSError):  # it ends just now, or the next look tells
                job.check_supervisor()
            self._escalate(job)
        elif found is Found.ENDED:
            self._ended(job)
        elif found is Found.DIED:
            self._died(job, status=status)
        elif job.stopping_at is not None:
            self._not_started(job, "stopped before its start")
        elif found is Found.WAITING:
            self.order(job)
            job.waiting_since = job.waiting_since or time.monotonic()
            if time.monotonic() - job.waiting_since > START_SECONDS:
                give_back = self._not_started if self.runner.can_start(job.queue) else self._turn_away
                give_back(job, "the task runner of its machine does not start it")

    def _ask_to_stop(self, job: Job) -> None:
        supervisor = job.supervisor(boot_id=self.boot_id)
        if supervisor is not None and not job.asked_to_stop:
            job.asked_to_stop = processes.ask_to_stop(supervisor)

    def _escalate(self, job: Job) -> None:
        if job.stopping_at is None:
            return
        self._ask_to_stop(job)
        if time.monotonic() - job.stopping_at > self.grace_seconds:
            log.warning("job %s attempt %d did not stop in time and is killed", job.id, job.attempt)
            self._kill(job)

    def _kill(self, job: Job) -> bool:
        """End everything of the job; False while something of it is left.

        What is killed may have started more since it was found, so only a look that finds nothing is the last.
        """
        deadline = time.monotonic() + KILLED_WAIT_SECONDS
        while alive := processes.of_job(job.name, supervisor=job.supervisor(boot_id=self.boot_id)):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            processes.kill(alive)
            psutil.wait_procs(alive, timeout=left)
        return True

    def _ended(self, job: Job) -> None:
        result = job.read_result()
        if result.get("state") not in RESULTS:
            result = {"state": "failed", "reason": "the result on disk cannot be read"}
        # What outlived its supervisor: when it was stopped, or failed itself before its task had an outcome.
        failed_itself = result["state"] == "failed" and not result.get("airflow_outcome")
        if (failed_itself or job.stopping_at is not None) and not self._kill(job):
            return  # somebody else must not start it beside that
        self._finish(job, result)

    def _died(self, job: Job, *, status: int | None = None) -> None:
        """Its supervisor is gone without a word: stop what it left behind, then say how it ended."""
        if not self._kill(job):
            return
        how = f"by signal {-status}" if status is not None and status < 0 else "without a result"
        if job.boot_id != self.boot_id:
            how = "with its machine, which restarted"
        elif job.stopping_at is not None:
            how = "when it was stopped"
        reason = f"the job's process on the machine ended {how}"
        state = "failed" if job.was_asked() or job.kind != "ExecuteTask" else "not_started"
        if job.boot_id == self.boot_id:  # else the log is of a machine that may still write it: we may be its clone
            job.note(reason)
        result = {"state": state, "exit_code": status, "airflow_outcome": "", "reason": reason}
        try:
            job.finish(result)
        except OSError as error:
            log.error("cannot write the end of job %s down: %s", job.id, error)
        self._finish(job, result)

    def _turn_away(self, job: Job, reason: str) -> None:
        """Give back what the runner of its queue cannot start; that hinders no other queue.

        Unless it comes here again: whoever hands it out has not understood which queues are served, and is slowed down.
        """
        again = job.id in self._turned_away
        self._turned_away.append(job.id)
        self._not_started(job, reason, brakes=again)

    def _not_started(self, job: Job, reason: str, *, brakes: bool = True) -> None:
        """Give the job back, unless a process of it has begun after all: then the next look sees what becomes of it.

        `brakes`: the machine takes no job of any queue for a while.
        """
        if job.result is not None or not job.give_up_start():
            return
        result = {"state": "not_started", "reason": reason}
        with contextlib.suppress(OSError):
            job.finish(result)
        self._finish(job, result, brakes=brakes)

    def _finish(self, job: Job, result: dict[str, Any], *, brakes: bool = True) -> None:
        if job.stopped_because and result["state"] == "failed":
            reasons = (job.stopped_because, result.get("reason", ""))
            result = {**result, "reason": "; ".join(reason for reason in reasons if reason)}
        if result["state"] == "not_started":
            if brakes:
                self.gate.start_failed(f"the last start did not work: {result['reason']}")
        else:
            self.gate.start_worked()
        log.info("job %s attempt %d ended: %s %s", job.id, job.attempt, result["state"], result.get("reason", ""))
        # What Airflow accepted is told in any case: the job may have been given up because nobody heard of it.
        if job.gone and not result.get("airflow_outcome"):
            self.held.forget(job)
        else:
            self.held.ended(job, result)
