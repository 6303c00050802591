"""The page of one worker host: what it is, does and did. Its state and jobs renew themselves while somebody looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models.functions import Now
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from workers_app import admin_filters, admin_words, enrolment, operations
from workers_app.admin_changes import rows_of
from workers_app.admin_operations import OperationsAdmin
from workers_app.models import Change, Sample, Worker, WorkerToken
from workers_app.states import GONE, Requested, Shown

#: As many rows as the page shows of finished jobs and of changes; the rest is a link away.
SHOWN = 25
#: No worker holds as many; a wrong number must not make the page endless.
_MOST_JOBS = 200
LONGEST_HOURS = 7 * 24
LIVE_SECONDS = 3

#: Name in figures.js, title.
CHARTS = (
    ("load", "Load per CPU"),
    ("memory", "Memory used"),
    ("disk", "Disk free"),
    ("jobs", "Jobs, of slots"),
)
#: What the agent tells under its own names, in words; the rest is shown as it comes.
_SYSINFO = {
    "hostname": "Host name",
    "platform": "Platform",
    "cpu_count": "CPUs",
    "memory_gb": "Memory (GB)",
    "agent_python": "Agent's Python",
    "task_python": "Task interpreter",
    "user": "Runs as",
    "state_dir": "State directory",
    "cpu_percent": "CPU busy (%)",
    "load_per_cpu": "Load per CPU",
    "memory_used_percent": "Memory used (%)",
    "disk_used_percent": "Disk used (%)",
    "disk_free_gb": "Disk free (GB)",
    "airflow_version": "Airflow",
    "clock_off_seconds": "Clock is off by (s)",
    "not_served": "Cannot serve",
    "not_working": "Takes no work",
    "status": "Own check, as a level",
    "status_text": "Own check says",
    "extended_sysinfo_error": "Own check does not work",
}

#: What one waits for after a wish, in the order in which the states come.
_STEPS: dict[str, tuple[tuple[str, str], ...]] = {
    Requested.MAINTENANCE: (
        (Shown.MAINTENANCE_REQUEST, "Asked"),
        (Shown.MAINTENANCE_PENDING, "Finishing its jobs"),
        (Shown.MAINTENANCE_MODE, "In maintenance"),
    ),
    Requested.SHUTDOWN: (
        (Shown.SHUTDOWN_REQUEST, "Asked"),
        (Shown.TERMINATING, "Finishing its jobs"),
        (Shown.OFFLINE, "Offline"),
    ),
}


class WorkerPage(OperationsAdmin):
    """The change form of workers, the fragment of it that renews itself, and the figures behind its charts."""

    change_form_template = "workers_app/worker/page.html"

    def get_urls(self) -> list[URLPattern]:
        site = self.admin_site
        return [
            path("<path:object_id>/live/", site.admin_view(self.live_view), name="workers_app_worker_live"),
            path("<path:object_id>/samples/", site.admin_view(self.samples_view), name="workers_app_worker_samples"),
            *super().get_urls(),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Worker | None = None) -> list[str]:
        # The page is made below; the form behind it shows nothing.
        return []

    def get_fieldsets(self, request: HttpRequest, obj: Worker | None = None) -> list[Any]:
        return []

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        worker = kwargs.get("obj")
        if worker is not None:
            context |= self.live(request, worker) | self._still(request, worker)
        return super().render_change_form(request, context, *args, **kwargs)

    def live_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What changes while one watches: the state, the figures and the jobs of this moment."""
        worker = self._worker(request, object_id)
        return TemplateResponse(request, "workers_app/worker/live.html", self.live(request, worker))

    def samples_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """The figures of the last hours: moments in milliseconds, and a column for each figure."""
        worker = self._worker(request, object_id)
        asked = request.GET.get("hours", "")
        hours = min(int(asked), LONGEST_HOURS) if asked.isascii() and asked.isdigit() else 24
        since = Now() - timedelta(hours=hours)
        columns = ("at", "load_per_cpu", "memory_used_percent", "disk_free_gb", "jobs_active", "concurrency")
        rows = Sample.objects.filter(worker=worker, at__gte=since).order_by("at").values_list(*columns)
        points = [[int(at.timestamp() * 1000), *figures] for at, *figures in rows]
        return JsonResponse({"hours": hours, "now": int(timezone.now().timestamp() * 1000), "points": points})

    def _worker(self, request: HttpRequest, object_id: str) -> Worker:
        if not self.has_view_permission(request):
            raise PermissionDenied
        worker: Worker | None = self.get_object(request, unquote(object_id))
        if worker is None:
            raise Http404
        return worker

    # -- what the page shows ----------------------------------------------------

    def live(self, request: HttpRequest, worker: Worker) -> dict[str, Any]:
        # The related manager knows the words for jobs, which this app does not.
        held = list(worker.jobs.held_by(worker.pk).defer("workload").order_by("claimed_at", "id")[:_MOST_JOBS])
        see_jobs = request.user.has_perm("jobs_app.view_job")
        allowed = self.allowed_operations(request)
        wanted = [each for each in _foremost(worker) if each in allowed and self.offered(each, worker)]
        return {
            "worker": worker,
            "badge": admin_words.badge(worker.state, ""),
            "meaning": admin_words.meaning(worker),
            "wish": admin_words.wish(worker),
            "steps": _steps(worker),
            "heard": admin_words.moment(worker.last_heartbeat, never="never"),
            "gone": worker.state in GONE,
            "as_of": f"{timezone.now():%H:%M:%S} UTC",
            "slots_used": sum(job.slots for job in held),
            "slots": worker.effective_concurrency,
            "figures": admin_words.figures(worker.sysinfo),
            "own_check": admin_words.own_check(worker.sysinfo),
            "foremost": self.operation_items(wanted, worker),
            "held": [_job(job) for job in held] if see_jobs else [],
            "held_count": len(held),
            "see_jobs": see_jobs,
        }

    def _still(self, request: HttpRequest, worker: Worker) -> dict[str, Any]:
        user, key = request.user, quote(worker.pk)
        see_changes = user.has_perm("workers_app.view_change")
        see_tokens = user.has_perm("workers_app.view_workertoken")
        of_worker = {"subject_kind__exact": "worker", "subject_id__exact": str(worker.pk)}
        return {
            "live_url": reverse("admin:workers_app_worker_live", args=[key]),
            "live_seconds": LIVE_SECONDS,
            "samples_url": reverse("admin:workers_app_worker_samples", args=[key]),
            "charts": CHARTS,
            "facts": _facts(worker),
            "sysinfo": _sysinfo(worker),
            "history": _history(worker) if user.has_perm("jobs_app.view_job") else None,
            "jobs_url": f"{reverse('admin:jobs_app_job_changelist')}?{urlencode({'worker': worker.pk})}",
            "tokens": _tokens(worker) if see_tokens else None,
            "anew_url": self._anew_url(request, worker),
            "changes": rows_of(Change.objects.filter(**of_worker).order_by("-pk")[:SHOWN]) if see_changes else None,
            "changes_url": self._record_url(request, worker.pk),
            "shown": SHOWN,
        }

    def _anew_url(self, request: HttpRequest, worker: Worker) -> str:
        if not request.user.has_perms(("workers_app.add_enrolmenttoken", enrolment.REPLACE_PERMISSION)):
            return ""
        return f"{reverse('admin:connect_machine')}?{urlencode({'name': worker.name, 'replace': '1'})}"


def _foremost(worker: Worker) -> Sequence[operations.Operation]:
    """The operations that stand as buttons beside the state."""
    if worker.requested == Requested.MAINTENANCE:
        return (operations.EXIT_MAINTENANCE, operations.UPDATE_MAINTENANCE_COMMENT, operations.SHUTDOWN_WORKER)
    if worker.requested == Requested.SHUTDOWN:
        return (operations.CANCEL_SHUTDOWN, operations.SHUTDOWN_WORKER)
    return (operations.REQUEST_MAINTENANCE, operations.SHUTDOWN_WORKER)


def _steps(worker: Worker) -> list[tuple[str, str]]:
    """(words, past, present or future) of the way to what somebody wants."""
    steps = _STEPS.get(worker.requested, ())
    states = [state for state, _ in steps]
    if worker.state not in states:
        return []
    now = states.index(worker.state)
    times = ["past" if at < now else "present" if at == now else "future" for at in range(len(steps))]
    return [(words, time) for (_, words), time in zip(steps, times, strict=True)]


def _job(job: Any) -> dict[str, Any]:
    ended, started = job.finished_at, job.started_at or job.claimed_at
    took = (ended or timezone.now()) - started if started else None
    return {
        "job": job,
        "url": reverse("admin:jobs_app_job_change", args=[quote(job.pk)]),
        "badge": admin_words.badge(job.state, ""),
        "started": admin_words.moment(started),
        "ended": admin_words.moment(ended),
        "took": admin_words.span(took) if took is not None else "-",
    }


def _history(worker: Worker) -> list[dict[str, Any]]:
    # In the order of the index over a worker's history, which has no finished_at.
    return [_job(job) for job in worker.jobs.final().defer("workload").order_by("-queued_at")[:SHOWN]]


def _tokens(worker: Worker) -> list[dict[str, Any]]:
    return [
        {
            "key": token.key,
            "made": admin_words.moment(token.created_at),
            "expires": admin_words.moment(token.expires_at, never="never"),
            "revoked": admin_words.moment(token.revoked_at),
            "usable": _usable(token),
        }
        for token in worker.tokens.defer("digest").order_by("-created_at")[:SHOWN]
    ]


def _usable(token: WorkerToken) -> bool:
    return token.revoked_at is None and (token.expires_at is None or token.expires_at > timezone.now())


def _facts(worker: Worker) -> list[tuple[str, SafeString | str]]:
    override = worker.queues_override is not None
    slots = f"{worker.effective_concurrency}"
    if worker.concurrency_override is not None:
        slots = f"{slots} (set by an operator; the agent says {worker.concurrency})"
    return [
        ("Name", worker.name),
        ("Team", worker.team_name or admin_words.NOTHING),
        ("Agent · Airflow", admin_words.release(worker, server_version=admin_filters.server_version())),
        ("Serves", format_html('<span class="ec-tags">{}</span>', admin_words.queues(worker.effective_queues))),
        ("Queues set by an operator", admin_words.queues(worker.queues_override) if override else admin_words.NOTHING),
        ("Queues the agent asks for", _asked(worker.queues)),
        ("Queues the agent may ask for", admin_words.queues(worker.allowed_queues)),
        ("Slots", slots),
        ("First online", admin_words.moment(worker.first_online, never="never")),
        ("Last heartbeat", admin_words.moment(worker.last_heartbeat, never="never")),
        ("Number", str(worker.pk)),
    ]


def _asked(queues: list[str] | None) -> SafeString:
    if queues is None:
        return format_html('<span class="ec-none">{}</span>', "all it may ask for")
    return admin_words.queues(queues)


def _sysinfo(worker: Worker) -> list[tuple[str, str]]:
    """What the agent told of its machine; any JSON at all may have come."""
    told = worker.sysinfo if isinstance(worker.sysinfo, dict) else {"": worker.sysinfo}
    known = [(words, told[name]) for name, words in _SYSINFO.items() if name in told]
    further = [(name, said) for name, said in told.items() if name not in _SYSINFO]
    return [(name, said if isinstance(said, str) else json.dumps(said)) for name, said in known + further]
