"""Admin pages of worker hosts; the other pages of this app stand in the modules beside it, which are named here."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.views import ChangeList

from workers_app import admin_filters, admin_words, operations
from workers_app.admin_changes import ChangeAdmin
from workers_app.admin_connect import EnrolmentTokenAdmin
from workers_app.admin_lists import RemembersList
from workers_app.admin_operations import OperationsAdmin
from workers_app.admin_tokens import PersonalTokenAdmin
from workers_app.admin_worker_page import WorkerPage
from workers_app.models import Change, EnrolmentToken, PersonalToken, Worker
from workers_app.operations import Operation
from workers_app.states import GONE, Requested

#: The states of `jobs_app.states.HELD`, an app that this one does not import.
HELD = ("claimed", "running")

admin.site.register(Change, ChangeAdmin)
admin.site.register(EnrolmentToken, EnrolmentTokenAdmin)
admin.site.register(PersonalToken, PersonalTokenAdmin)


class WorkerList(ChangeList):  # type: ignore[misc]
    """A page of the list, with what its rows show beside their own columns: two queries, however many rows."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        workers: list[Any] = list(self.result_list)  # type: ignore[has-type]
        held = {pk: (jobs, slots) for pk, jobs, slots in held_by(worker.pk for worker in workers)} if workers else {}
        see_jobs = request.user.has_perm("jobs_app.view_job")
        for worker in workers:
            worker.see_jobs = see_jobs
            worker.jobs_now, worker.slots_used = held.get(worker.pk, (0, 0))
        self.result_list = workers


def held_by(worker_ids: Any) -> QuerySet[Worker, tuple[int, int, int]]:
    """(worker, jobs, slots) that these workers hold now; none for those that hold nothing."""
    held = Worker.objects.filter(pk__in=list(worker_ids), jobs__state__in=HELD)
    return held.values_list("pk").annotate(Count("jobs"), Sum("jobs__slots"))


@admin.register(Worker)
class WorkerAdmin(RemembersList, WorkerPage, OperationsAdmin):
    operations = operations.WORKERS
    record_kind = "worker"
    change_list_template = "workers_app/worker/list.html"
    list_display = ("host", "condition", "served", "slots", "jobs_now", "machine", "release", "heard")
    list_filter = (
        admin_filters.StateFilter,
        admin_filters.QueueFilter,
        admin_filters.TeamFilter,
        admin_filters.VersionFilter,
        admin_filters.SilentFilter,
        admin_filters.OutdatedFilter,
    )
    list_filter_submit = True
    list_fullwidth = True
    # The filters do not count what they would find: each count is a query.
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    search_fields = ("name",)
    search_help_text = "Part of a name"
    ordering = ("name",)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return WorkerList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        may_connect = request.user.has_perm("workers_app.add_enrolmenttoken")
        return super().changelist_view(request, {"may_connect": may_connect, **(extra_context or {})})

    def offered(self, operation: Operation, subject: Worker) -> bool:
        if operation in (operations.EXIT_MAINTENANCE, operations.UPDATE_MAINTENANCE_COMMENT):
            return subject.requested == Requested.MAINTENANCE
        if operation is operations.SHUTDOWN_WORKER:
            return subject.state not in GONE
        if operation is operations.CANCEL_SHUTDOWN:
            return subject.requested == Requested.SHUTDOWN and subject.state not in GONE
        return True

    def initial(self, operation: Operation, subject: Worker) -> dict[str, Any]:
        if operation is operations.UPDATE_MAINTENANCE_COMMENT:
            return {"comment": subject.requested_comment}
        if operation is operations.SET_WORKER_QUEUES:
            return {"queues": ", ".join(subject.effective_queues or [])}
        if operation is operations.SET_WORKER_CONCURRENCY:
            return {"concurrency": subject.effective_concurrency}
        return {}

    @admin.display(description="host", ordering="name")
    def host(self, worker: Worker) -> SafeString:
        team = format_html('<small class="ec-sub">{}</small>', worker.team_name) if worker.team_name else ""
        return format_html('<span class="ec-host">{}{}</span>', worker.name, team)

    @admin.display(description="state", ordering="state")
    def condition(self, worker: Worker) -> SafeString:
        badge = admin_words.badge(worker.state, admin_words.meaning(worker))
        return format_html(
            '<span class="ec-stack">{}{}{}</span>', badge, admin_words.wish(worker), admin_words.hindrance(worker)
        )

    @admin.display(description="queues")
    def served(self, worker: Worker) -> SafeString:
        mark = "" if worker.queues_override is None else admin_words.overridden("An operator chose these queues.")
        return format_html(
            '<span class="ec-tags">{} {}</span>', admin_words.queues(worker.effective_queues, most=3), mark
        )

    @admin.display(description="slots", ordering=Coalesce(F("concurrency_override"), F("concurrency")))
    def slots(self, worker: Any) -> SafeString:
        by_operator = f"An operator chose {worker.concurrency_override}; the agent says {worker.concurrency}."
        return format_html(
            '<span class="ec-nowrap">{} of {} {}</span>',
            worker.slots_used,
            worker.effective_concurrency,
            "" if worker.concurrency_override is None else admin_words.overridden(by_operator),
        )

    @admin.display(description="jobs", ordering="jobs_active")
    def jobs_now(self, worker: Any) -> SafeString:
        if not worker.jobs_now or not worker.see_jobs:
            return format_html('<span class="{}">{}</span>', "" if worker.jobs_now else "ec-none", worker.jobs_now)
        url = f"{reverse('admin:jobs_app_job_changelist')}?{urlencode({'worker': worker.pk})}"
        return format_html('<a href="{}" class="ec-link">{}</a>', url, worker.jobs_now)

    @admin.display(description="load · memory · disk")
    def machine(self, worker: Worker) -> SafeString:
        return admin_words.meters(worker.sysinfo) or admin_words.NOTHING

    @admin.display(description="agent · Airflow", ordering="agent_version")
    def release(self, worker: Any) -> SafeString:
        return admin_words.release(worker, server_version=admin_filters.server_version())

    @admin.display(description="heartbeat", ordering="last_heartbeat")
    def heard(self, worker: Worker) -> SafeString:
        return format_html(
            '<span class="ec-nowrap">{}</span>', admin_words.moment(worker.last_heartbeat, never="never")
        )
