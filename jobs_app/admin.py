"""Admin pages of jobs. They are read here; the one action is a call into `lifecycle`."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponseBase, StreamingHttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html

import jobs_app.admin_queues  # noqa: F401 - registers its pages
from jobs_app import lifecycle, logs
from jobs_app.models import Job
from workers_app.audit import Actor


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "__str__",
        "run_id",
        "state",
        "queue",
        "worker",
        "queued_at",
        "started_at",
        "finished_at",
        "airflow_outcome",
        "reason",
    ]
    list_filter = ["state"]
    list_select_related = ["worker"]
    search_fields = ["=id", "=dag_id", "=run_id", "=task_id"]
    search_help_text = "A job's id, or a DAG, run or task id in full."
    ordering = ["-queued_at"]
    # Counting a million rows twice is what makes such a page slow.
    show_full_result_count = False
    actions = ["revoke"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        # Only Airflow's scheduler makes jobs.
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Job | None = None) -> list[str]:
        return [*(field.name for field in Job._meta.fields if field.name != "token"), "log"]

    def get_exclude(self, request: HttpRequest, obj: Job | None = None) -> list[str]:
        return ["token"]

    @admin.display(description="log")
    def log(self, job: Job) -> str:
        links = (
            format_html(
                '<a href="{}">attempt {}</a> ',
                reverse("admin:jobs_app_job_log", args=[job.pk, attempt]),
                attempt,
            )
            for attempt in range(1, job.attempt + 1)
        )
        return format_html("{}" * job.attempt, *links) if job.attempt else "-"

    def get_urls(self) -> list[URLPattern]:
        log = path(
            "<uuid:job_id>/log/<int:attempt>",
            self.admin_site.admin_view(self.log_view),
            name="jobs_app_job_log",
        )
        return [log, *super().get_urls()]

    def log_view(self, request: HttpRequest, job_id: UUID, attempt: int) -> HttpResponseBase:
        """The stored log as text, never as a page: it comes from the edge."""
        if not self.has_view_permission(request) or not Job.objects.filter(pk=job_id).exists():
            raise Http404
        chunks = logs.read(job_id=job_id, attempt=attempt)
        headers = {"X-Content-Type-Options": "nosniff"}
        return StreamingHttpResponse(chunks, content_type="text/plain; charset=utf-8", headers=headers)

    @admin.action(description="Revoke: withdraw waiting jobs, stop held ones", permissions=["change"])
    def revoke(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        ids = list(jobs.values_list("pk", flat=True))
        outcome = lifecycle.revoke(ids, by=Actor.of_request(request))
        self.message_user(request, outcome.sentence("Revoke"), messages.SUCCESS)
