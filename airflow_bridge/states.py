"""The words of the job table as the bridge spells them; nothing here reads or writes it.

The control plane has its own copy; a contract test keeps the two equal.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where one queueing of one workload stands."""

    #: Waits for a worker.
    QUEUED = "queued"
    #: Handed to a worker that has not yet confirmed it.
    CLAIMED = "claimed"
    #: Confirmed by its worker.
    RUNNING = "running"
    #: Its process ended well and Airflow accepted the final state.
    SUCCESS = "success"
    #: Its process failed, its result was not delivered, or nobody took it.
    FAILED = "failed"
    #: Airflow did not want this start any more.
    REFUSED = "refused"
    #: Given up with evidence.
    LOST = "lost"
    #: Withdrawn by an operator or by a newer job of the same task instance.
    REVOKED = "revoked"


#: On a worker: these occupy Airflow's slots, waiting jobs do not.
HELD = frozenset({JobState.CLAIMED, JobState.RUNNING})

FINAL = frozenset({JobState.SUCCESS, JobState.FAILED, JobState.REFUSED, JobState.LOST, JobState.REVOKED})


class Kind(StrEnum):
    """What Airflow wants executed; the names are those of its workload classes."""

    TASK = "ExecuteTask"
    CALLBACK = "ExecuteCallback"
    CONNECTION_TEST = "TestConnection"
