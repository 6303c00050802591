"""`manage.py revoke_job`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, F, Q
from django.db.models.functions import Now

from jobs_app import operations
from jobs_app.management.job_command import JobCommand
from jobs_app.models import Job
from jobs_app.states import FINAL, JobState
from workers_app.management.operation_command import Sight, Subject
from workers_app.states import Shown

#: A revoked job's worker hears of it within moments, and its next count of jobs comes within seconds.
_COUNTED_AFTER = timedelta(seconds=10)
#: A worker that was told this long ago has stopped the job, by force if need be, whatever else it runs.
_STOPPED_AFTER = timedelta(minutes=2)


class Command(JobCommand):
    operation = operations.REVOKE_JOB
    awaited = "until the job's worker host has stopped it, as far as that can be known"

    def look(self, subjects: Sequence[Subject]) -> Mapping[Any, Sight]:
        jobs = Job.objects.filter(pk__in=[subject.id for subject in subjects]).select_related("worker")
        # What its worker held with it and still runs: if the worker counts no more than that, this one has ended.
        beside = Q(worker__jobs__state=JobState.RUNNING, worker__jobs__started_at__lt=F("finished_at"))
        jobs = jobs.annotate(beside=Count("worker__jobs", filter=beside), now=Now()).defer("workload", "token")
        sights = {job.pk: _sight(job, beside=job.beside, now=job.now) for job in jobs}  # type: ignore[attr-defined]
        return {subject.id: sights.get(subject.id, Sight("deleted", there=True)) for subject in subjects}


def _sight(job: Job, *, beside: int, now: datetime) -> Sight:
    worker, finished_at = job.worker, job.finished_at
    if job.state not in FINAL or finished_at is None:
        return Sight(job.state, failed=True)
    if job.state != JobState.REVOKED or worker is None or job.started_at is None:
        return Sight(f"{job.state}; nothing of it runs", there=True)
    if worker.state in (Shown.OFFLINE, Shown.OFFLINE_MAINTENANCE):
        return Sight(f"{worker.name} is {worker.state}", there=True)
    if worker.last_heartbeat is None or worker.last_heartbeat <= finished_at:
        return Sight(f"{worker.name} is {worker.state} and has not heard of it yet")
    if worker.jobs_active <= beside and now - finished_at >= _COUNTED_AFTER:
        return Sight(f"{worker.name} has stopped it", there=True)
    if worker.last_heartbeat - finished_at >= _STOPPED_AFTER:
        return Sight(f"{worker.name} was told more than two minutes ago", there=True)
    return Sight(f"{worker.name} is stopping it")
