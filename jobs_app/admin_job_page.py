"""The page of one job: where it stands, why it waits, its logs and its changes. It renews itself while the job is open.

Airflow's token is on none of it: the workload is stored without, and the column with it is never read here.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from jobs_app import admin_job_words as words
from jobs_app import logs, waiting
from jobs_app.admin_job_list import SEE_QUEUES, SEE_WORKERS, link
from jobs_app.models import Job, LogChunk
from jobs_app.states import FINAL, JobState
from workers_app import admin_words
from workers_app.admin_changes import rows_of
from workers_app.admin_operations import OperationsAdmin
from workers_app.models import Change

LIVE_SECONDS = 3
CHANGES_SHOWN = 25
#: A job that was handed out more often shows the latest of its attempts.
ATTEMPTS_SHOWN = 20
#: Airflow's side of a log, such as the triggerer's, by its number.
_AIRFLOWS_PART = 0


class JobPage(OperationsAdmin):
    """The change form of jobs, and the fragment of it that renews itself."""

    change_form_template = "jobs_app/job/page.html"

    def get_urls(self) -> list[URLPattern]:
        live = path("<uuid:job_id>/live/", self.admin_site.admin_view(self.live_view), name="jobs_app_job_live")
        return [live, *super().get_urls()]

    def get_readonly_fields(self, request: HttpRequest, obj: Job | None = None) -> list[str]:
        # The page is made below; the form behind it shows nothing.
        return []

    def get_fieldsets(self, request: HttpRequest, obj: Job | None = None) -> list[Any]:
        return []

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        job = kwargs.get("obj")
        if job is not None:
            context |= self.live(request, job) | _still(request, job)
        return super().render_change_form(request, context, *args, **kwargs)

    def live_view(self, request: HttpRequest, job_id: UUID) -> HttpResponse:
        """What changes while one watches."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        job: Job | None = self.get_object(request, unquote(str(job_id)))
        if job is None:
            raise Http404
        return TemplateResponse(request, "jobs_app/job/live.html", self.live(request, job))

    def live(self, request: HttpRequest, job: Job) -> dict[str, Any]:
        now = timezone.now()
        length = words.ran(job, now)
        return {
            "job": job,
            "badge": words.badge(job),
            "meaning": words.MEANINGS.get(job.state, ""),
            "is_open": job.state not in FINAL,
            "because": waiting.because([job]).get(job.pk, ""),
            "steps": _steps(job),
            "foremost": self.operation_items(self.allowed_operations(request), job),
            "airflow_url": words.airflow_url(job),
            "waited": admin_words.span(words.waited(job, now)),
            "ran": admin_words.span(length) if length is not None else admin_words.NOTHING,
            "worker": _worker(request, job),
            "outcome": words.outcome(job) or admin_words.NOTHING,
            "process": words.process(job) or admin_words.NOTHING,
            "logs": _logs(job),
            "no_log": job.state in FINAL and not job.attempt,
            "log_missing": logs.missing(job),
            "as_of": f"{now:%H:%M:%S} UTC",
        }


def _still(request: HttpRequest, job: Job) -> dict[str, Any]:
    of_job = {"kind": "job", "q": str(job.pk)}
    changes = Change.objects.filter(subject_kind="job", subject_id=str(job.pk)).order_by("-pk")[:CHANGES_SHOWN]
    jobs = reverse("admin:jobs_app_job_changelist")
    return {
        "live_url": reverse("admin:jobs_app_job_live", args=[job.pk]),
        "live_seconds": LIVE_SECONDS,
        "identity": _identity(request, job),
        "course": _course(job),
        "workload": json.dumps(job.workload, indent=2, ensure_ascii=False, sort_keys=True),
        "run_url": f"{jobs}?{urlencode({'q': job.run_id})}" if job.run_id else "",
        "dag_url": f"{jobs}?{urlencode({'dag': job.dag_id})}" if job.dag_id else "",
        "changes": rows_of(changes) if request.user.has_perm("workers_app.view_change") else None,
        "changes_url": f"{reverse('admin:workers_app_change_changelist')}?{urlencode(of_job)}",
    }


def _worker(request: HttpRequest, job: Job) -> SafeString:
    if job.worker is None:
        return admin_words.NOTHING
    if not request.user.has_perm(SEE_WORKERS):
        return format_html("{}", job.worker.name)
    return link("workers_app_worker", job.worker_id, job.worker.name)


def _steps(job: Job) -> list[tuple[str, SafeString, str]]:
    """(words, when, past, present, future or trouble) of a job's way; of one that ended, only what it went through."""
    way: list[tuple[str, datetime | None]] = [
        ("Queued", job.queued_at),
        ("Claimed", job.claimed_at),
        ("Started", job.started_at),
    ]
    if job.state in FINAL:
        ending = "past" if job.state == JobState.SUCCESS else "trouble"
        steps = [(name, at, "past") for name, at in way if at] + [(job.state.capitalize(), job.finished_at, ending)]
    else:
        present = (JobState.QUEUED, JobState.CLAIMED, JobState.RUNNING).index(JobState(job.state))
        tenses = ["past" if at < present else "present" if at == present else "future" for at in range(len(way) + 1)]
        steps = [(name, at, tense) for (name, at), tense in zip([*way, ("Ended", None)], tenses, strict=True)]
    return [(name, admin_words.moment(at, never=" "), tense) for name, at, tense in steps]


def _logs(job: Job) -> list[tuple[str, str]]:
    """(name, address) of the log of each hand-out, the latest first; and of what Airflow's own side wrote."""
    # Of a job that nobody has had yet, the page of the first one waits for it.
    last = max(1, job.attempt)
    numbers = [*range(last, max(0, last - ATTEMPTS_SHOWN), -1)]
    if LogChunk.objects.filter(job_id=job.pk, attempt=_AIRFLOWS_PART).exists():
        numbers.append(_AIRFLOWS_PART)
    return [
        (
            f"Attempt {number}" if number else "Airflow's side",
            reverse("admin:jobs_app_job_log", args=[job.pk, number]),
        )
        for number in numbers
    ]


def _identity(request: HttpRequest, job: Job) -> list[tuple[str, Any]]:
    queue = link("jobs_app_queue", job.queue, job.queue) if request.user.has_perm(SEE_QUEUES) else job.queue
    return [
        ("DAG", job.dag_id or admin_words.NOTHING),
        ("Task", job.task_id or admin_words.NOTHING),
        ("Run", job.run_id or admin_words.NOTHING),
        ("Map index", job.map_index if job.map_index >= 0 else admin_words.NOTHING),
        ("Try", job.try_number),
        ("Kind", job.kind),
        ("Queue", queue),
        ("Team", job.team_name or admin_words.NOTHING),
        ("Slots", job.slots),
        ("Priority", job.priority),
        ("Id", _code(job.pk)),
        ("Airflow's id of it", _code(job.airflow_id)),
        ("Dispatcher", _code(job.dispatcher) if job.dispatcher else admin_words.NOTHING),
    ]


def _course(job: Job) -> list[tuple[str, Any]]:
    size = "-" if job.log_final_size is None else f"{job.log_final_size:,} bytes"
    return [
        ("Queued", _moment(job.queued_at)),
        ("Claimed", _moment(job.claimed_at)),
        ("Started", _moment(job.started_at)),
        ("Ended", _moment(job.finished_at)),
        ("Airflow was told", _moment(job.told_at)),
        ("Handed out", f"{job.attempt} time{'' if job.attempt == 1 else 's'}"),
        ("Of these, not confirmed", job.unconfirmed_claims),
        ("Heartbeats that left it out", job.missed_heartbeats),
        ("Log here", f"{job.log_size:,} bytes"),
        ("Log as the agent reported it", size),
        ("Its SHA-256", _code(job.log_sha256) if job.log_sha256 else admin_words.NOTHING),
        ("Log path", job.log_path or admin_words.NOTHING),
    ]


def _moment(when: datetime | None) -> SafeString:
    if when is None:
        return admin_words.NOTHING
    return format_html('{} <span class="ec-sub">{}</span>', admin_words.exactly(when), admin_words.moment(when))


def _code(said: Any) -> SafeString:
    return format_html("<code>{}</code>", said)
