"""Admin pages of queues: what waits, what runs, who serves them, and the operations on them. Nothing is decided here.

A page costs the same number of queries however many queues, jobs and workers there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import quote, unquote
from django.contrib.postgres.expressions import ArraySubquery
from django.core.exceptions import BadRequest, PermissionDenied
from django.db.models import Count, Func, IntegerField, OuterRef, Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString, mark_safe
from unfold.contrib.filters.admin import RadioFilter
from unfold.views import ChangeList

from jobs_app import admin_queue_words as words
from jobs_app import figures, operations, waiting
from jobs_app.models import Job, Queue
from jobs_app.states import HELD, JobState
from workers_app import admin_words, selection
from workers_app.admin_changes import rows_of
from workers_app.admin_lists import RemembersList
from workers_app.admin_operations import MenuItem, OperationsAdmin
from workers_app.models import Change, Worker
from workers_app.operations import Operation
from workers_app.states import GONE

SEE_JOBS, SEE_WORKERS, SEE_CHANGES = "jobs_app.view_job", "workers_app.view_worker", "workers_app.view_change"
LIVE_SECONDS = 3
#: As many rows as the page of a queue shows of each; the rest is a link away.
WAITING_SHOWN = 10
WORKERS_SHOWN = 25
CHANGES_SHOWN = 25
#: The list's order by what waits tells queues apart up to here.
_MOST_ORDERED = 1000


def _storable(text: str) -> bool:
    """PostgreSQL has no text with a NUL or with half a character, and says so by an error."""
    return not any(each == "\0" or "\ud800" <= each <= "\udfff" for each in text)


def _has_address(name: str) -> bool:
    """Browsers take these as steps between addresses, however they are written; what has no name has no address."""
    return name not in ("", ".", "..")


class _YesFilter(RadioFilter):  # type: ignore[misc]
    """All of them, or only those that are so."""

    says = ""

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [("1", self.says)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Queue]) -> QuerySet[Queue]:
        return queryset.filter(self.condition()) if self.value() == "1" else queryset

    def condition(self) -> Q:
        raise NotImplementedError


class PausedFilter(_YesFilter):
    title = "paused"
    parameter_name = "paused"
    says = "Paused"

    def condition(self) -> Q:
        return Q(paused=True)


class WaitingFilter(_YesFilter):
    title = "with waiting jobs"
    parameter_name = "waiting"
    says = "Jobs wait"

    def condition(self) -> Q:
        return Q(pk__in=figures.with_waiting_jobs())


class UnservedFilter(_YesFilter):
    title = "jobs wait and nobody serves"
    parameter_name = "unserved"
    says = "Jobs wait, nobody serves"

    def condition(self) -> Q:
        return Q(pk__in=_unserved())


def _unserved() -> set[str]:
    return {each.queue for each in waiting.unserved_queues()}


class QueueList(ChangeList):  # type: ignore[misc]
    """A page of the list, with what its rows show beside their own columns: as many queries for each number of rows."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        queues: list[Any] = list(self.result_list)  # type: ignore[has-type]
        if queues:
            _add_figures(request, queues)
        self.result_list = queues

    def url_for_result(self, result: Queue) -> str:
        if not _has_address(result.name):
            raise NoReverseMatch
        return str(super().url_for_result(result))


def _add_figures(request: HttpRequest, queues: Iterable[Any]) -> None:
    """Put the figures of this moment, and what this person may see of it, to the queues' own columns."""
    queues = list(queues)
    numbers = figures.of_queues([queue.name for queue in queues])
    ended, unserved = figures.ended_in_the_last_hour(), _unserved()
    for queue in queues:
        queue.now, queue.ended = numbers[queue.name], ended[queue.name]
        queue.unserved = queue.name in unserved
        queue.see_jobs, queue.see_workers = request.user.has_perm(SEE_JOBS), request.user.has_perm(SEE_WORKERS)


# How many jobs wait in a queue, by the index of a claim and no further than _MOST_ORDERED.
_WAITING_JOBS = Func(
    ArraySubquery(
        Job.objects.filter(state=JobState.QUEUED.value, queue=OuterRef("pk"))
        .order_by("queue", "team_name")
        .values("slots")[:_MOST_ORDERED]
    ),
    function="cardinality",
    output_field=IntegerField(),
)


@admin.register(Queue)
class QueueAdmin(RemembersList, OperationsAdmin):
    operations = operations.QUEUES
    change_list_template = "jobs_app/queue/list.html"
    change_form_template = "jobs_app/queue/page.html"
    list_display = ("queue", "condition", "waiting", "oldest", "claimed", "running", "slots", "served", "last_hour")
    list_filter = (PausedFilter, WaitingFilter, UnservedFilter)
    list_filter_submit = True
    list_fullwidth = True
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    search_fields = ("name",)
    search_help_text = "Part of a name"
    ordering = ("name",)

    class Media:
        css = {"all": ["jobs_app/queue.css"]}

    def get_urls(self) -> list[URLPattern]:
        live = path("<path:object_id>/live/", self.admin_site.admin_view(self.live_view), name="jobs_app_queue_live")
        return [live, *super().get_urls()]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return QueueList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if not all(map(_storable, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            raise BadRequest
        return super().changelist_view(request, extra_context)

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Queue | None:
        found: Queue | None = super().get_object(request, object_id, from_field) if _storable(object_id) else None
        return found

    def _visible(self, request: HttpRequest, chosen: str) -> list[Any]:
        try:
            keys = [key for key in json.loads(chosen) if isinstance(key, str) and _storable(key)]
        except (ValueError, TypeError):
            return []
        return super()._visible(request, json.dumps(keys))

    def get_readonly_fields(self, request: HttpRequest, obj: Queue | None = None) -> list[str]:
        # The page is made below; the form behind it shows nothing.
        return []

    def get_fieldsets(self, request: HttpRequest, obj: Queue | None = None) -> list[Any]:
        return []

    # -- operations -----------------------------------------------------------------

    def offered(self, operation: Operation, subject: Queue) -> bool:
        if operation is operations.PAUSE_QUEUE:
            return not subject.paused
        return operation is not operations.RESUME_QUEUE or subject.paused

    def initial(self, operation: Operation, subject: Queue) -> dict[str, Any]:
        if operation is operations.PAUSE_QUEUE:
            return {"comment": subject.pause_comment}
        if operation is operations.SET_QUEUE_CONCURRENCY:
            return {"concurrency": subject.concurrency_limit}
        return {}

    def operation_items(self, operations: Sequence[Operation], subject: Queue) -> list[MenuItem]:
        # The others are chosen in the list.
        return super().operation_items(operations, subject) if _has_address(subject.name) else []

    # -- the list ---------------------------------------------------------------------

    @admin.display(description="queue", ordering="name")
    def queue(self, queue: Queue) -> SafeString:
        if not queue.name:
            return mark_safe('<span class="ec-none">(no name)</span>')
        return format_html('<span class="ec-host">{}</span>', queue.name)

    @admin.display(description="state", ordering="paused")
    def condition(self, queue: Any) -> SafeString:
        return format_html('<span class="ec-stack">{}{}</span>', words.badges(queue), words.why_paused(queue))

    @admin.display(description="waiting", ordering=_WAITING_JOBS)
    def waiting(self, queue: Any) -> SafeString:
        return words.jobs(queue, JobState.QUEUED, queue.now.waiting, shown=words.counted(queue.now.waiting))

    @admin.display(description="oldest wait")
    def oldest(self, queue: Any) -> SafeString:
        return words.wait(queue.now)

    @admin.display(description="claimed")
    def claimed(self, queue: Any) -> SafeString:
        return words.jobs(queue, JobState.CLAIMED, queue.now.held - queue.now.running)

    @admin.display(description="running")
    def running(self, queue: Any) -> SafeString:
        return words.jobs(queue, JobState.RUNNING, queue.now.running)

    @admin.display(description="slots", ordering="concurrency_limit")
    def slots(self, queue: Any) -> SafeString:
        return words.slots(queue)

    @admin.display(description="worker hosts")
    def served(self, queue: Any) -> SafeString:
        return words.served(queue)

    @admin.display(description="last hour")
    def last_hour(self, queue: Any) -> SafeString:
        return words.last_hour(queue.ended)

    # -- the page -----------------------------------------------------------------------

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        queue = kwargs.get("obj")
        if queue is not None:
            context |= self.live(request, queue) | _changes(request, queue)
            context |= {
                "live_url": reverse("admin:jobs_app_queue_live", args=[quote(queue.pk)]),
                "live_seconds": LIVE_SECONDS,
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def live_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What changes while one watches: the state, the figures, the next jobs and the workers."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        queue = self.get_object(request, unquote(object_id))
        if queue is None:
            raise Http404
        return TemplateResponse(request, "jobs_app/queue/live.html", self.live(request, queue))

    def live(self, request: HttpRequest, queue: Any) -> dict[str, Any]:
        _add_figures(request, [queue])
        allowed = self.allowed_operations(request)
        may_comment = queue.paused and operations.PAUSE_QUEUE in allowed
        return {
            "queue": queue,
            "badges": words.badges(queue),
            "meaning": words.PAUSED if queue.paused else words.OPEN,
            "wish": words.why_paused(queue),
            "comment_url": reverse("admin:jobs_app_queue_pause_queue", args=[quote(queue.pk)]) if may_comment else "",
            "foremost": self.operation_items(allowed, queue),
            "waits": words.counted(queue.now.waiting),
            "oldest": words.wait(queue.now),
            "claimed": queue.now.held - queue.now.running,
            "slots": words.slots(queue),
            "served": words.served(queue),
            "last_hour": words.last_hour(queue.ended),
            "as_of": f"{timezone.now():%H:%M:%S} UTC",
            "first": _first_waiting(queue) if queue.see_jobs else None,
            "waiting_url": words.jobs_url(queue, JobState.QUEUED),
            "claimed_url": words.jobs_url(queue, JobState.CLAIMED),
            "running_url": words.jobs_url(queue, JobState.RUNNING),
            "jobs_url": words.jobs_url(queue),
            "workers": _workers(queue) if queue.see_workers else None,
            "workers_url": words.workers_url(queue),
        }


# -- what the page lists ---------------------------------------------------------------------


def _first_waiting(queue: Queue) -> list[dict[str, Any]]:
    """What is handed out next, and why it has not been yet."""
    ids = figures.first_waiting(queue.name, most=WAITING_SHOWN)
    jobs = Job.objects.defer("workload", "token").in_bulk(ids)
    because: dict[UUID, str] = waiting.because(jobs.values())
    return [
        {
            "job": jobs[key],
            "url": reverse("admin:jobs_app_job_change", args=[quote(key)]),
            "queued": admin_words.moment(jobs[key].queued_at),
            "because": because[key],
        }
        for key in ids
        # One that was handed out in between is left out.
        if key in because
    ]


def _workers(queue: Queue) -> dict[str, Any]:
    """The workers that serve it and are there, by name."""
    live = Worker.objects.filter(selection.serving(queue.name)).exclude(state__in=sorted(GONE)).order_by("name")
    shown = list(live[: WORKERS_SHOWN + 1])
    held = Job.objects.filter(state__in=sorted(HELD), queue=queue.name, worker__in=[worker.pk for worker in shown])
    holds = dict(held.values_list("worker").annotate(Count("pk")))
    rows = [
        {
            "worker": worker,
            "url": reverse("admin:workers_app_worker_change", args=[quote(worker.pk)]),
            "badge": admin_words.badge(worker.state),
            "wish": admin_words.wish(worker),
            "jobs": holds.get(worker.pk, 0),
            "slots": worker.effective_concurrency,
            "heard": admin_words.moment(worker.last_heartbeat, never="never"),
        }
        for worker in shown
    ]
    return {"rows": rows[:WORKERS_SHOWN], "more": len(rows) > WORKERS_SHOWN}


def _changes(request: HttpRequest, queue: Queue) -> dict[str, Any]:
    of_queue = {"subject_kind__exact": "queue", "subject_id__exact": queue.pk}
    found = Change.objects.filter(**of_queue).order_by("-pk")[:CHANGES_SHOWN]
    return {
        "changes": rows_of(found) if request.user.has_perm(SEE_CHANGES) else None,
        "changes_url": f"{reverse('admin:workers_app_change_changelist')}?{urlencode(of_queue)}",
    }
