"""The only writer of `Job.state` on the server: claim, confirm, report, release, lose, revoke, purge.

Every transition is guarded by the states it may come from and, where an agent asks, the attempt and the
worker: in the WHERE of its UPDATE, or in the lock right before it. Zero rows is an answer. Times are the database's.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import connection, models, transaction
from django.db.models.functions import Coalesce, Now

from jobs_app import notices, picking
from jobs_app.models import Job
from jobs_app.states import HELD, JobState, ReportState, sources
from workers_app import audit, registry
from workers_app import notices as worker_notices
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.models import Worker
from workers_app.outcomes import Outcome
from workers_app.states import Requested

log = logging.getLogger(__name__)

#: A job that was handed out this often without being confirmed is failed: something eats it.
#: Far more often than an outage within the patience can cause it.
MAX_UNCONFIRMED_CLAIMS = 20
#: A job whose starts failed this often before they reached Airflow, and for so long, is failed with the last reason.
#: Many idle machines use up any number within seconds of an outage.
MAX_ATTEMPTS = 20
MIN_START_TROUBLE_SECONDS = 3600
#: A running job that its own worker does not mention this often in a row is lost.
MAX_MISSED_HEARTBEATS = 2

Pair = tuple[UUID, int]


class StaleAttempt(Refusal):
    """This attempt is no longer this worker's: the job was lost, revoked or handed out again. Stop it and forget it."""

    code = "stale_attempt"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one look at the queues brought."""

    jobs: list[Job]
    #: A newer claim of this worker exists; this one must end empty.
    superseded: bool = False
    #: The worker's revision differs from the one the agent knows.
    heartbeat_due: bool = False


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the holder of an attempt says became of it."""

    attempt: int
    state: ReportState
    exit_code: int | None = None
    airflow_outcome: str = ""
    reason: str = ""
    log_size: int = 0
    log_sha256: str = ""
    #: Why the rest of the log has not been sent yet.
    log_trouble: str = ""


def claim(
    *,
    worker: Worker,
    claim_id: UUID,
    free_slots: int,
    revision: int,
    first: bool,
    able: picking.Able = picking.ALL,
) -> Claim:
    """Hand this worker the jobs that fit, in order of priority and age; an empty claim is normal.

    `first` is the arrival of the request: it makes `claim_id` the worker's newest and counts as a
    heartbeat; later looks of the same parked request end when a newer one has come. The same
    `claim_id` again gets every job that is still claimed under it, since its answer was lost.
    Limits are enforced under the worker's row lock, so concurrent claims cannot exceed them.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Need not reach the disk at once: nothing starts before it is confirmed, and that commit takes this one along.
        cursor.execute("SET LOCAL synchronous_commit TO off")
        if first:
            registry.touch(worker=worker, changes={"claim_id": claim_id})
        else:
            locked = Worker.objects.raw("SELECT * FROM worker WHERE id = %s FOR NO KEY UPDATE", [worker.pk])
            fresh = next(iter(locked), None)
            if fresh is None or fresh.session != worker.session or fresh.claim_id != claim_id:
                return Claim(jobs=[], superseded=True)
            worker = fresh
        # Before the revision: an agent that hears of new orders takes a new claim_id.
        answered = list(
            Job.objects.raw(
                "SELECT * FROM job WHERE worker_id = %s AND state = 'claimed' AND claim_id = %s", [worker.pk, claim_id]
            )
        )
        if answered:
            return Claim(jobs=answered)
        if worker.revision != revision:
            return Claim(jobs=[], heartbeat_due=True)
        if free_slots < 1 or worker.requested != Requested.ACTIVE:
            return Claim(jobs=[])
        picked = picking.pick(worker=worker, free_slots=free_slots, able=able)
        return Claim(jobs=_hand_out(picked, worker_id=worker.pk, claim_id=claim_id) if picked else [])


def _hand_out(job_ids: Sequence[UUID], *, worker_id: int, claim_id: UUID) -> list[Job]:
    """Give these locked jobs a new attempt number and their holder."""
    jobs = Job.objects.raw(
        """
        UPDATE job SET state = 'claimed', attempt = attempt + 1, worker_id = %s, claim_id = %s,
               claimed_at = now(), started_at = NULL, missed_heartbeats = 0, reason = '',
               log_size = 0, log_full = false, log_trouble = ''
         WHERE id = ANY (%s) AND coalesce(state, '') = 'queued' RETURNING *
        """,
        [worker_id, claim_id, list(job_ids)],
    )
    return sorted(jobs, key=lambda job: (-job.priority, job.queued_at))


def confirm(*, worker_id: int, pairs: Sequence[Pair]) -> set[Pair]:
    """Let this worker start these attempts; return those that are its own. Repeating is harmless."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE job SET state = 'running', started_at = coalesce(started_at, now()), missed_heartbeats = 0,
                   unconfirmed_claims = 0
              FROM unnest(%s::uuid[], %s::int[]) AS pair (id, attempt)
             WHERE job.id = pair.id AND job.attempt = pair.attempt
               AND worker_id = %s AND state IN ('claimed', 'running')
            RETURNING job.id, job.attempt
            """,
            [[job_id for job_id, _ in pairs], [attempt for _, attempt in pairs], worker_id],
        )
        return set(cursor.fetchall())


def report(*, worker_id: int, job_id: UUID, report: Report) -> JobState:
    """Record what the holder of this attempt says became of the job, and return the job's state.

    A success that Airflow accepted is the truth however late it is told, so it also corrects a job that was lost;
    a failure may be what the loss led to. Raises StaleAttempt when the job has otherwise been lost, revoked or
    handed out again: the agent must stop the process and forget the job.
    """
    mine = Job.objects.filter(pk=job_id, attempt=report.attempt, worker_id=worker_id)
    if report.state is ReportState.NOT_STARTED:
        return _not_started(mine=mine, report=report)
    state = JobState(report.state)
    accepted = state is JobState.SUCCESS and report.airflow_outcome
    correctable = [JobState.RUNNING, JobState.LOST] if accepted else [JobState.RUNNING]
    written = mine.filter(state__in=correctable).update(
        **_ending(state, report.reason),
        exit_code=report.exit_code,
        airflow_outcome=report.airflow_outcome,
        log_final_size=report.log_size,
        log_sha256=report.log_sha256,
        log_trouble=report.log_trouble,
    )
    # The state itself is accepted, so that a report whose answer was lost can be repeated.
    if not written and not mine.filter(state=state).exists():
        log.warning("refused: worker %s reports %s for job %s attempt %d", worker_id, state, job_id, report.attempt)
        raise StaleAttempt
    return state


def _not_started(*, mine: models.QuerySet[Job], report: Report) -> JobState:
    long_ago = Now() - timedelta(seconds=MIN_START_TROUBLE_SECONDS)
    if mine.filter(state__in=HELD, attempt__gte=MAX_ATTEMPTS, first_failed_start_at__lt=long_ago).update(
        **_ending(JobState.FAILED, f"could not be started {MAX_ATTEMPTS} times; last: {report.reason}")
    ):
        return JobState.FAILED
    # A repeated report is refused, since the job has no holder any more; the agent forgets it either way.
    if not _release(
        mine.filter(state__in=HELD),
        reason=report.reason,
        skip_locked=False,
        first_failed_start_at=Coalesce("first_failed_start_at", Now()),
    ):
        raise StaleAttempt
    return JobState.QUEUED


def release_unconfirmed(*, after_seconds: int) -> int:
    """Put claims back that were not confirmed in time: nothing was started. Return how many.

    A job that nobody ever confirms is failed after MAX_UNCONFIRMED_CLAIMS hand-outs.
    """
    stale = Job.objects.filter(state=JobState.CLAIMED, claimed_at__lt=Now() - timedelta(seconds=after_seconds))
    failed = stale.filter(unconfirmed_claims__gte=MAX_UNCONFIRMED_CLAIMS - 1).update(
        **_ending(JobState.FAILED, f"handed out {MAX_UNCONFIRMED_CLAIMS} times and never confirmed by a worker")
    )
    return failed + _release(
        stale,
        reason="a worker claimed it and did not confirm in time",
        unconfirmed_claims=models.F("unconfirmed_claims") + 1,
    )


def _release(jobs: models.QuerySet[Job], *, reason: str, skip_locked: bool = True, **changes: Any) -> int:
    """Back to the queue, and wake whoever may take them.

    The lock guards the state they are in. Of many, those that an agent is confirming at this moment are
    skipped: nobody waits for anybody.
    """
    with transaction.atomic():
        locked = jobs.select_for_update(no_key=True, skip_locked=skip_locked).order_by("pk")
        rows = list(locked.values_list("pk", "queue", "team_name", "slots"))
        if rows:
            Job.objects.filter(pk__in=[row[0] for row in rows]).update(
                state=JobState.QUEUED,
                worker=None,
                claim_id=None,
                claimed_at=None,
                started_at=None,
                log_size=0,
                reason=reason,
                **changes,
            )
            notices.announce(row[1:] for row in rows)
    return len(rows)


def not_held_any_more(*, worker_id: int, listed: Collection[Pair], young_seconds: int) -> list[tuple[UUID, int, str]]:
    """Compare what a worker lists with what it holds; return (id, attempt, why) of each pair that is not its own.

    The other way round, a running job that its own worker leaves out of MAX_MISSED_HEARTBEATS
    heartbeats in a row is lost: its process is gone without a trace. Jobs that were confirmed less
    than `young_seconds` ago do not count, since the list may have been written before and sent twice.
    A job that was lost, and is listed before Airflow has heard of that, is this worker's again.
    """
    held = {
        (pk, attempt): (state, missed)
        for pk, attempt, state, missed in Job.objects.held_by(worker_id).values_list(
            "pk", "attempt", "state", "missed_heartbeats"
        )
    }
    running = {pair for pair, (state, _) in held.items() if state == JobState.RUNNING}
    missing = running - set(listed)
    if missing:
        _count_missed(worker_id=worker_id, missing=missing, young_seconds=young_seconds)
    recovered = [pk for pk, attempt in running & set(listed) if held[pk, attempt][1]]
    if recovered:
        Job.objects.filter(pk__in=recovered, worker_id=worker_id).update(missed_heartbeats=0)
    gone = [pair for pair in listed if pair not in held]
    if gone and (found := _take_back(worker_id=worker_id, pairs=gone)):
        gone = [pair for pair in gone if pair not in found]
    why = {
        pk: f"{state}: {reason}" if reason else state
        for pk, state, reason in (
            Job.objects.filter(pk__in=[pk for pk, _ in gone]).values_list("pk", "state", "reason") if gone else ()
        )
    }
    return [(pk, attempt, why.get(pk, "unknown job")) for pk, attempt in gone]


def _take_back(*, worker_id: int, pairs: Sequence[Pair]) -> set[Pair]:
    """Let jobs run on that were lost and are found again where they were; return them.

    Airflow is not told of a loss while it hears the task itself: only the way to us was cut. Once it is told, it
    may have queued the task anew, and the job stays lost.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE job SET state = 'running', finished_at = NULL, reason = '', missed_heartbeats = 0
              FROM unnest(%s::uuid[], %s::int[]) AS pair (id, attempt)
             WHERE job.id = pair.id AND job.attempt = pair.attempt
               AND worker_id = %s AND state = 'lost' AND told_at IS NULL AND NOT process_gone
               AND NOT EXISTS (SELECT 1 FROM job AS newer WHERE newer.airflow_id = job.airflow_id
                                  AND newer.state IN ('queued', 'claimed', 'running'))
            RETURNING job.id, job.attempt
            """,
            [[job_id for job_id, _ in pairs], [attempt for _, attempt in pairs], worker_id],
        )
        found = set(cursor.fetchall())
    for job_id, attempt in found:
        log.warning("job %s attempt %d was lost and is found again on worker %s", job_id, attempt, worker_id)
    return found


def _count_missed(*, worker_id: int, missing: set[Pair], young_seconds: int) -> None:
    jobs = Job.objects.filter(
        pk__in=[pk for pk, _ in missing],
        worker_id=worker_id,
        state=JobState.RUNNING,
        started_at__lt=Now() - timedelta(seconds=young_seconds),
    )
    jobs.update(missed_heartbeats=models.F("missed_heartbeats") + 1)
    jobs.filter(missed_heartbeats__gte=MAX_MISSED_HEARTBEATS).update(
        **_ending(JobState.LOST, "its worker no longer knows it")
    )


def lock_held(*, worker_id: int) -> None:
    """Lock what this worker holds, for a transaction that goes on to lock the worker."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM job WHERE worker_id = %s AND state IN ('claimed', 'running') ORDER BY id FOR NO KEY UPDATE",
            [worker_id],
        )


def lose_unaccounted(*, worker_id: int, accounted_for: Collection[Pair], rebooted: bool) -> int:
    """Give up what this worker held and a new session of it cannot account for; return how many.

    A new session has no claim under way, so its list is complete. Claims that were never confirmed were never
    started, and the older session cannot confirm them any more: they go back to the queue.
    """
    held = Job.objects.held_by(worker_id)
    unaccounted = set(held.values_list("pk", "attempt")) - set(accounted_for)
    held = held.filter(pk__in=[pk for pk, _ in unaccounted])
    because = "its machine rebooted" if rebooted else "its worker restarted without it"
    with transaction.atomic():
        running = held.filter(state=JobState.RUNNING)
        lost = running.update(**_ending(JobState.LOST, because), process_gone=rebooted)
        released = _release(held.filter(state=JobState.CLAIMED), reason=because)
    return lost + released


def lose_silent(*, worker_ids: Sequence[int], silent_seconds: int) -> int:
    """Give up the running jobs of these workers if they are still silent; return how many.

    The caller has the evidence that the silence is theirs and not ours.
    """
    silent = Worker.objects.filter(pk__in=worker_ids, last_heartbeat__lt=Now() - timedelta(seconds=silent_seconds))
    return Job.objects.filter(state=JobState.RUNNING, worker__in=silent).update(
        **_ending(JobState.LOST, f"its worker was silent for more than {silent_seconds} s")
    )


def revoke(job_ids: Iterable[UUID], *, by: Actor, comment: str = "") -> Outcome:
    """Withdraw jobs: waiting ones at once, held ones by telling their worker to stop."""
    because = f"revoked by {by.name}" + (f": {comment}" if comment else "")
    outcome = Outcome()
    with transaction.atomic():
        named = Job.objects.select_for_update(no_key=True).filter(pk__in=list(job_ids)).order_by("pk")
        rows = []
        for job in named.defer("workload", "token"):
            if job.state in sources(JobState.REVOKED):
                rows.append(job)
            else:
                outcome.skip(str(job), f"it is {job.state} already", id=job.pk)
        Job.objects.filter(pk__in=[job.pk for job in rows]).update(**_ending(JobState.REVOKED, because))
        audit.record(
            (
                audit.Entry(
                    action="revoke_job",
                    kind="job",
                    id=job.pk,
                    name=str(job),
                    before={"state": job.state},
                    after={"state": JobState.REVOKED},
                )
                for job in rows
            ),
            by=by,
            comment=comment,
        )
        worker_notices.announce(job.worker_id for job in rows if job.worker_id is not None)
    outcome.done, outcome.done_ids = [str(job) for job in rows], [job.pk for job in rows]
    return outcome


def purge(*, older_than_days: int, at_most: int = 1000) -> int:
    """Delete finished jobs of which Airflow was told, with their logs; return how many. Bounded, so call it again.

    A job that Airflow was never told of (its scheduler is gone for good) goes after twice the time.
    """
    age = Now() - timedelta(days=older_than_days)
    doomed = (
        Job.objects.final()
        .filter(finished_at__lt=age)
        .filter(models.Q(told_at__isnull=False) | models.Q(finished_at__lt=age - timedelta(days=older_than_days)))
        .order_by("finished_at")
        .values_list("pk", flat=True)[:at_most]
    )
    _, deleted = Job.objects.filter(pk__in=list(doomed)).delete()
    return deleted.get("jobs_app.Job", 0)


def _ending(state: JobState, reason: str) -> dict[str, Any]:
    """The columns that every final state sets."""
    return {"state": state, "finished_at": Now(), "token": None, "reason": reason}
