"""The control plane as agents call it: what each view of `jobs_app.agent_api` and `agent_jobs_api` does, without HTTP.

A request may arrive late: then whether the session is current was asked when it was sent, or is asked when it arrives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db import connection, transaction

from jobs_app import agent_api, lifecycle, logs
from jobs_app.lifecycle import Claim, Pair, Report
from jobs_app.models import Job
from jobs_app.states import ReportState
from workers_app import registry, versions
from workers_app.models import Worker
from workers_app.registry import Introduction, SessionReplaced
from workers_app.states import Reported


def caller(worker_id: int, session: UUID | None) -> Worker:
    """What the permission `IsCurrentSession` checks."""
    worker = Worker.objects.get(pk=worker_id)
    if worker.session != session:
        raise SessionReplaced
    return worker


def register(*, worker_id: int, session: UUID, boot: str, concurrency: int, held: list[Pair]) -> dict[str, Any]:
    worker = Worker.objects.get(pk=worker_id)
    introduction = Introduction(session=session, boot_id=boot, concurrency=concurrency)
    with transaction.atomic():
        lifecycle.lock_held(worker_id=worker.pk)
        rebooted = registry.register(worker=worker, introduction=introduction)
        if rebooted is not None:
            lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=held, rebooted=rebooted)
    return agent_api.orders(worker, held=_said(held), protocol=versions.PROTOCOL)


def heartbeat(worker: Worker, *, concurrency: int, held: list[Pair]) -> dict[str, Any]:
    registry.heartbeat(
        worker=worker,
        reported=Reported.RUNNING if held else Reported.IDLE,
        jobs_active=len(held),
        queues=None,
        concurrency=concurrency,
        sysinfo=None,
    )
    return agent_api.orders(worker, held=_said(held), protocol=versions.PROTOCOL)


def claim(worker: Worker, *, claim_id: UUID, free_slots: int, revision: int) -> Claim:
    """One look. Who asks again under the same id gets all that is still claimed under it."""
    answer = lifecycle.claim(worker=worker, claim_id=claim_id, free_slots=free_slots, revision=revision, first=True)
    if not answer.superseded:
        stored = Job.objects.filter(claim_id=claim_id, state="claimed").values_list("pk", flat=True)
        assert {job.pk for job in answer.jobs} == set(stored), "a claim was answered with other jobs than it holds"
    return answer


def confirm(worker: Worker, *, pairs: list[Pair]) -> set[Pair]:
    return lifecycle.confirm(worker_id=worker.pk, pairs=pairs)


def report(worker: Worker, *, job: UUID, attempt: int, result: dict[str, Any], log: bytes) -> None:
    """Raises StaleAttempt. Whatever it is, it changes nothing that this attempt of this worker does not own."""
    before = _row(job)
    said = Report(
        attempt=attempt,
        state=ReportState(result["state"]),
        exit_code=0,
        airflow_outcome=result.get("airflow_outcome", ""),
        reason=result.get("reason", ""),
        log_size=len(log),
        log_sha256=hashlib.sha256(log).hexdigest(),
    )
    try:
        lifecycle.report(worker_id=worker.pk, job_id=job, report=said)
    finally:
        if before and (before["worker_id"], before["attempt"]) != (worker.pk, attempt):
            assert _row(job) == before, f"a report of attempt {attempt} changed what is not its own: {before}"


def append(worker: Worker, *, job: UUID, attempt: int, offset: int, data: bytes) -> int:
    return logs.append(worker_id=worker.pk, job_id=job, attempt=attempt, offset=offset, data=data, cap_bytes=1 << 20)


def losing_its_claim(worker: Worker, call: Callable[[], Claim]) -> Claim:
    """PostgreSQL crashes before the claim's asynchronous commit reached the disk, and after it was answered."""
    sessions = ["worker", "job"]
    with connection.cursor() as cursor:
        for table in sessions:
            cursor.execute(f"CREATE TEMPORARY TABLE before_{table} AS SELECT * FROM {table}")  # noqa: S608
        try:
            return call()
        finally:
            cursor.execute(
                "UPDATE job SET state = b.state, attempt = b.attempt, worker_id = b.worker_id, claim_id = b.claim_id,"
                " claimed_at = b.claimed_at, started_at = b.started_at, log_size = b.log_size, reason = b.reason"
                " FROM before_job AS b WHERE b.id = job.id AND b.attempt <> job.attempt"
            )
            cursor.execute(
                "UPDATE worker SET claim_id = b.claim_id, last_heartbeat = b.last_heartbeat"
                " FROM before_worker AS b WHERE b.id = worker.id AND worker.id = %s",
                [worker.pk],
            )
            for table in sessions:
                cursor.execute(f"DROP TABLE before_{table}")


def _said(held: list[Pair]) -> list[dict[str, Any]]:
    return [{"id": job, "attempt": attempt} for job, attempt in held]


def _row(job: UUID) -> dict[str, Any] | None:
    return Job.objects.filter(pk=job).values().first()
