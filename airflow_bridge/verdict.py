"""What Airflow is told about a job that has ended: the rules, pure."""

from __future__ import annotations

from enum import Enum, auto

from airflow_bridge.states import JobState, Kind
from airflow_bridge.store import JobRow
from airflow_bridge.task_instances import TaskInstanceNow

#: Outcomes that end a task instance. Any other one (deferred, up_for_retry, up_for_reschedule ...) Airflow has
#: already acted upon; an event for it could hit the same try after it was scheduled again.
ENDINGS = frozenset({"success", "failed", "skipped", "removed"})
_SUCCESSFUL = frozenset({"success", "skipped"})
#: Airflow still waits for this queueing to end.
AWAITED = frozenset({"queued", "running", "restarting"})
#: The same for a callback, or a connection test.
AWAITED_OTHERWISE = frozenset({"scheduled", "pending", "queued", "running"})


#: Three heartbeats of a task that lives (`[workers] min_heartbeat_interval`): even where a machine is known to have
#: restarted, it may be a clone of one that still runs.
GONE_SILENCE_SECONDS = 15.0
#: A task that is cut off stops itself at its first heartbeat after the patience, which has a time limit of its own: it
#: has gone when this much more of the patience has passed.
STOPPED_AFTER = 1.125


class Verdict(Enum):
    """What to do about a final job."""

    #: Emit SUCCESS.
    SUCCESS = auto()
    #: Emit FAILED with the job's reason: Airflow retries or fails the task.
    FAILURE = auto()
    #: Airflow knows, or does not care any more: only free the slot.
    SILENCE = auto()
    #: The task may still be alive: look again later.
    PATIENCE = auto()


def needs_airflow(row: JobRow) -> bool:
    """True when the job does not say what Airflow accepted, so that only Airflow itself knows."""
    return row.kind == Kind.TASK and not row.airflow_outcome


def reach(
    row: JobRow,
    *,
    now: TaskInstanceNow | None,
    patience: float,
    callback: str | None = None,
    gone_silence: float = GONE_SILENCE_SECONDS,
) -> Verdict:
    """Decide about this final job.

    `now` is looked up for jobs that need it (see `needs_airflow`); `callback` is the state of what is a callback.
    """
    if row.kind == Kind.CALLBACK and callback not in AWAITED_OTHERWISE:
        return Verdict.SILENCE
    if row.kind != Kind.TASK:
        return Verdict.SUCCESS if row.state == JobState.SUCCESS else Verdict.FAILURE
    if row.airflow_outcome:
        if row.airflow_outcome not in ENDINGS:
            return Verdict.SILENCE
        return Verdict.SUCCESS if row.airflow_outcome in _SUCCESSFUL else Verdict.FAILURE
    if now is None or now.job_id != row.id or now.state not in AWAITED:
        return Verdict.SILENCE
    # A task that was cleared while it ran waits for a success to be scheduled again.
    failure = Verdict.SUCCESS if now.state == "restarting" else Verdict.FAILURE
    if row.state == JobState.SUCCESS:
        return Verdict.SUCCESS
    if row.state == JobState.FAILED or now.state == "queued":
        return failure
    # Lost, refused or revoked while Airflow sees it run: its process may be alive behind a cut line.
    # Where that is known to be gone, it is enough that no more heartbeats come.
    limit = STOPPED_AFTER * patience
    if row.process_gone:
        limit = min(limit, gone_silence)
    if now.silence is not None and now.silence <= limit:
        return Verdict.PATIENCE
    return failure


def settled(row: JobRow, *, now: TaskInstanceNow | None, callback: str | None = None) -> bool:
    """True when Airflow needs no further event for this job."""
    if row.kind == Kind.CALLBACK:
        return callback not in AWAITED_OTHERWISE
    return not needs_airflow(row) or now is None or now.job_id != row.id or now.state not in AWAITED
