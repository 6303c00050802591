"""Job states and which may follow which; pure, and the only place on the server that spells them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where one queueing of one workload stands."""

    #: Waits for a worker. Also after a release: it was handed out but never started.
    QUEUED = "queued"
    #: Handed to a worker that has not yet confirmed it; it has not started.
    CLAIMED = "claimed"
    #: Confirmed by its worker, which may have started it.
    RUNNING = "running"
    #: Its process ended well and Airflow accepted the task's final state, whatever that was.
    SUCCESS = "success"
    #: Its process failed, its result was not delivered, or nobody could or would take it.
    FAILED = "failed"
    #: Airflow did not want this start any more; the slot is free and Airflow is told nothing.
    REFUSED = "refused"
    #: It ran and was given up with evidence: its machine rebooted, went silent, or forgot it.
    LOST = "lost"
    #: Withdrawn by an operator, by Airflow, or by a newer job of the same task instance.
    REVOKED = "revoked"


#: On a worker: its lease is that worker's heartbeat.
HELD = frozenset({JobState.CLAIMED, JobState.RUNNING})

#: Over. Only after a loss may the truth still follow: its worker is heard again with it, or Airflow has its outcome.
FINAL = frozenset({JobState.SUCCESS, JobState.FAILED, JobState.REFUSED, JobState.LOST, JobState.REVOKED})

FOLLOWERS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.CLAIMED, JobState.FAILED, JobState.REVOKED}),
    JobState.CLAIMED: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.FAILED, JobState.REVOKED}),
    JobState.RUNNING: FINAL | {JobState.QUEUED},
    **{final: frozenset() for final in FINAL},
    JobState.LOST: frozenset({JobState.RUNNING, JobState.SUCCESS}),
}


def may_follow(before: JobState, after: JobState) -> bool:
    """True when a job in `before` may become `after`; no state follows itself."""
    return after in FOLLOWERS[before]


def sources(after: JobState) -> list[JobState]:
    """The states from which `after` may be entered: the guard of every transition's WHERE."""
    return [before for before in JobState if may_follow(before, after)]


class ReportState(StrEnum):
    """What the holder of an attempt may say became of it."""

    SUCCESS = "success"
    FAILED = "failed"
    REFUSED = "refused"
    #: The start never reached Airflow, or its token had run out: the job goes back to the queue.
    NOT_STARTED = "not_started"
