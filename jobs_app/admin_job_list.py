"""The list of jobs in the admin: columns, filters and pages. Which jobs there are to see is decided in `listing`."""

from __future__ import annotations

from datetime import MAXYEAR, UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import quote
from django.contrib.admin.views.main import PAGE_VAR
from django.core.exceptions import BadRequest
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import CheckboxFilter, DropdownFilter, RangeDateFilter, TextFilter
from unfold.contrib.filters.forms import AutocompleteDropdownForm
from unfold.utils import parse_date_str
from unfold.views import ChangeList

from jobs_app import admin_job_words as words
from jobs_app import listing, waiting
from jobs_app.listing import Place, Wanted
from jobs_app.models import Job, Queue
from jobs_app.states import FINAL, JobState
from workers_app import admin_words
from workers_app.admin_lists import RemembersList
from workers_app.admin_operations import OperationsAdmin
from workers_app.models import Worker
from workers_app.operations import Operation

SEE_WORKERS, SEE_QUEUES = "workers_app.view_worker", "jobs_app.view_queue"
_MOST_CHOICES = 1000
#: How an address names a page, before a place: the jobs that are older or newer than it. Or the last page.
OLDER, NEWER, OLDEST = "older-", "newer-", "oldest"

Choices = list[tuple[str, str]]


class _Filter:
    """A filter that says what is wanted; the query is made of all of them at once, by `listing`."""

    #: The name in `Wanted`.
    narrows = ""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Job]) -> QuerySet[Job]:
        return queryset

    def wanted(self) -> dict[str, Any]:
        value = self.value()  # type: ignore[attr-defined]
        return {self.narrows: text(value)} if value else {}


def text(value: str) -> str:
    # PostgreSQL has no text with a NUL, and says so by an error.
    if "\0" in value:
        raise IncorrectLookupParameters
    return value


class StateFilter(_Filter, CheckboxFilter):  # type: ignore[misc]
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return [(state.value, state.value) for state in JobState]

    def wanted(self) -> dict[str, Any]:
        try:
            return {"states": frozenset(JobState(value) for value in self.value() or () if value)}
        except ValueError:
            raise IncorrectLookupParameters from None


class QueueFilter(_Filter, DropdownFilter):  # type: ignore[misc]
    title = "queue"
    parameter_name = narrows = "queue"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return _choices(Queue.objects.order_by("pk").values_list("pk", flat=True)[:_MOST_CHOICES], self.value())


class WorkerFilter(_Filter, DropdownFilter):  # type: ignore[misc]
    title = "worker host"
    parameter_name = "worker"
    form_class = AutocompleteDropdownForm

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        # The form asks for them while somebody types.
        self.page = model_admin
        self.request = request
        return [("", "")]

    def choices(self, changelist: Any) -> Any:
        yield {
            "form": self.form_class(
                request=self.request,
                label=f" By {self.title} ",
                name=self.parameter_name,
                choices=(),
                field=Job._meta.get_field("worker"),
                model_admin=self.page,
                data={self.parameter_name: self.value()},
            )
        }

    def wanted(self) -> dict[str, Any]:
        value = self.value()
        if not value:
            return {}
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise IncorrectLookupParameters
        return {"worker_id": int(value)}


class TeamFilter(_Filter, DropdownFilter):  # type: ignore[misc]
    title = "team"
    parameter_name = narrows = "team"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        teams = Worker.objects.exclude(team_name="").order_by("team_name").values_list("team_name", flat=True)
        return _choices(teams.distinct()[:_MOST_CHOICES], self.value())


class DagFilter(_Filter, TextFilter):  # type: ignore[misc]
    title = "DAG, its whole id"
    parameter_name = narrows = "dag"


class OutcomeFilter(_Filter, DropdownFilter):  # type: ignore[misc]
    title = "Airflow's outcome"
    parameter_name = narrows = "outcome"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return [(value, label.replace("_", " ")) for value, label in _choices(words.OUTCOMES, self.value())]


class QueuedFilter(_Filter, RangeDateFilter):  # type: ignore[misc]
    """From the beginning of a day to the end of another, in UTC."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = "day of queueing, in UTC"

    def wanted(self) -> dict[str, Any]:
        first, last = (_day(self.used_parameters.get(f"{self.parameter_name}_{end}")) for end in ("from", "to"))
        return {"queued_from": first, "queued_to": last + timedelta(days=1) if last else None}


def _choices(values: Any, asked: str | None) -> Choices:
    values = list(values)
    return [(value, value) for value in ([asked] if asked and asked not in values else []) + values]


def _day(said: Any) -> datetime | None:
    if not said:
        return None
    found = parse_date_str(said)
    if found is None or found.year >= MAXYEAR:
        raise IncorrectLookupParameters
    return datetime.combine(found, time.min, tzinfo=UTC)


class JobList(ChangeList):  # type: ignore[misc]
    """A page of the list: as many queries for any number of rows, and none that reads more than it shows."""

    def get_filters(self, request: HttpRequest) -> Any:
        filters = super().get_filters(request)
        # What no filter knows would be asked of the whole table.
        if filters[2]:
            raise IncorrectLookupParameters
        return filters

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Job]:
        """All jobs that are wanted, for operations on them; the page is made by `get_results`."""
        asked: str = self.query  # type: ignore[has-type]
        self.query = ""
        try:
            super().get_queryset(request, exclude_parameters)
        finally:
            self.query = asked
        wanted: dict[str, Any] = {"text": text(asked.strip())}
        for spec in self.filter_specs:
            wanted |= spec.wanted()
        self.wanted = Wanted(**wanted)
        return self.wanted.jobs()

    def get_results(self, request: HttpRequest) -> None:
        where = _where(request.GET.get(PAGE_VAR, ""))
        page = listing.look(self.wanted, size=self.list_per_page, **where)
        because = waiting.because(page.jobs)
        now = timezone.now()
        for job in page.jobs:
            job.waits_because, job.as_of = because.get(job.pk, ""), now  # type: ignore[attr-defined]
            job.see_workers, job.see_queues = (  # type: ignore[attr-defined]
                request.user.has_perm(SEE_WORKERS),
                request.user.has_perm(SEE_QUEUES),
            )
        self.elsewhere = bool(where)
        alone = not self.elsewhere and page.older is None
        self.result_list = page.jobs
        self.result_count = len(page.jobs) if alone else listing.count(self.wanted)
        # Equal, so that no second number is shown.
        self.full_result_count = self.result_count
        self.show_full_result_count = False
        self.show_admin_actions = True
        # There are no numbers of pages; see the template `pagination`.
        self.can_show_all = self.multi_page = False
        self.paginator = Paginator(page.jobs, self.list_per_page)
        self.newer_url = self.get_query_string({PAGE_VAR: f"{NEWER}{page.newer}"}) if page.newer else ""
        self.older_url = self.get_query_string({PAGE_VAR: f"{OLDER}{page.older}"}) if page.older else ""
        self.newest_url = self.get_query_string() if page.newer else ""
        self.oldest_url = self.get_query_string({PAGE_VAR: OLDEST}) if page.older else ""

    @property
    def counted(self) -> str:
        most = listing.MOST_COUNTED
        return f"more than {most:,}" if self.result_count > most else f"{self.result_count:,}"


def _where(page: str) -> dict[str, Any]:
    """How `listing.look` calls this page; the first one, if the address says anything else."""
    if page == OLDEST:
        return {"oldest": True}
    for beginning, argument in ((OLDER, "before"), (NEWER, "after")):
        if page.startswith(beginning) and (place := Place.read(page.removeprefix(beginning))):
            return {argument: place}
    return {}


class JobsList(RemembersList, OperationsAdmin):
    """The changelist of jobs."""

    change_list_template = "jobs_app/job/list.html"
    list_display = ("job", "condition", "place", "queued", "result", "why")
    list_display_links = ("job",)
    list_filter = (
        StateFilter,
        QueueFilter,
        WorkerFilter,
        TeamFilter,
        DagFilter,
        OutcomeFilter,
        ("queued_at", QueuedFilter),
    )
    list_filter_submit = True
    list_fullwidth = True
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    search_fields = ("dag_id",)  # for the form; what is found is decided in `listing`
    search_help_text = "An id, or how a DAG's, run's or task's begins"
    sortable_by = ()
    ordering = ("-queued_at",)

    class Media:
        css = {"all": ["jobs_app/job.css"]}

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return JobList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        jobs: QuerySet[Job] = super().get_queryset(request)
        return jobs.defer("workload", "token")

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if request.GET.keys() == {"e"}:
            self.message_user(
                request, "The address asked for something that this list does not know.", messages.WARNING
            )
        if not all(map(_is_id, request.POST.getlist(ACTION_CHECKBOX_NAME))):
            raise BadRequest
        context = {"retention_days": settings.EDGECONTROL.retention_days, **(extra_context or {})}
        return super().changelist_view(request, context)

    def _described(self, asked: QueryDict) -> list[tuple[str, str]]:
        found = super()._described(asked)
        chosen = asked.get(WorkerFilter.parameter_name, "")
        if chosen.isascii() and chosen.isdigit() and len(chosen) < 19:
            name = Worker.objects.filter(pk=int(chosen)).values_list("name", flat=True).first()
            return [(title, name if name and title == WorkerFilter.title else said) for title, said in found]
        return found

    def choose(self, request: HttpRequest, queryset: QuerySet[Any], *, operation: Operation) -> HttpResponse:
        # All that the filters leave may be the whole history, of which nothing can be withdrawn any more.
        if request.POST.get("select_across") == "1":
            still_open = sorted(state.value for state in JobState if state not in FINAL)
            queryset = queryset.filter(state__in=still_open)
        return super().choose(request, queryset, operation=operation)

    def offered(self, operation: Operation, subject: Job) -> bool:
        return subject.state not in FINAL

    # -- columns ----------------------------------------------------------------------

    @admin.display(description="job")
    def job(self, job: Job) -> SafeString:
        details = " · ".join(part for part in (f"try {job.try_number}" if job.dag_id else "", job.run_id) if part)
        return format_html(
            '<span class="ec-host">{}<small class="ec-sub" title="{}">{}</small></span>',
            words.task(job),
            details,
            details or job.pk,
        )

    @admin.display(description="state")
    def condition(self, job: Job) -> SafeString:
        return words.badge(job)

    @admin.display(description="queue · worker host")
    def place(self, job: Any) -> SafeString:
        queue = link("jobs_app_queue", job.queue, job.queue) if job.see_queues else format_html("{}", job.queue)
        team = format_html(' <small class="ec-sub">{}</small>', job.team_name) if job.team_name else ""
        worker: SafeString | str = ""
        if job.worker is not None:
            name = job.worker.name
            worker = link("workers_app_worker", job.worker_id, name) if job.see_workers else format_html("{}", name)
        return format_html('<span class="ec-stack"><span>{}{}</span>{}</span>', queue, team, worker)

    @admin.display(description="queued")
    def queued(self, job: Any) -> SafeString:
        lasted = " · ".join(words.times(job, job.as_of))
        return format_html(
            '<span class="ec-stack ec-nowrap">{}<small class="ec-sub">{}</small></span>',
            admin_words.moment(job.queued_at),
            lasted,
        )

    @admin.display(description="result")
    def result(self, job: Job) -> SafeString:
        url = words.airflow_url(job)
        opened = (
            format_html(
                '<a class="ec-link ec-out" href="{}" target="_blank" rel="noopener" title="Open in Airflow" '
                'aria-label="{} in Airflow"><span class="material-symbols-outlined" aria-hidden="true">'
                "open_in_new</span></a>",
                url,
                words.task(job),
            )
            if url
            else ""
        )
        process, outcome = words.process(job), words.outcome(job)
        return format_html('<span class="ec-tags ec-nowrap">{}{}{}</span>', process, outcome, opened)

    @admin.display(description="why")
    def why(self, job: Any) -> SafeString:
        said = job.waits_because or job.reason
        return format_html('<span class="ec-because" title="{}">{}</span>', said, said) if said else admin_words.NOTHING


def link(page: str, key: Any, name: str) -> SafeString:
    return format_html('<a class="ec-link" href="{}">{}</a>', reverse(f"admin:{page}_change", args=[quote(key)]), name)


def _is_id(said: str) -> bool:
    try:
        UUID(said)
    except ValueError:
        return False
    return True
