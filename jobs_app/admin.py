"""Admin pages of jobs. They are read here; the one action is a call into `lifecycle`."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html

import jobs_app.admin_queues  # noqa: F401 - registers its pages
from jobs_app import lifecycle
from jobs_app.admin_logs import LogView
from jobs_app.models import Job
from workers_app.audit import Actor


@admin.register(Job)
class JobAdmin(LogView):
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

    @admin.action(description="Revoke: withdraw waiting jobs, stop held ones", permissions=["change"])
    def revoke(self, request: HttpRequest, jobs: QuerySet[Job]) -> None:
        ids = list(jobs.values_list("pk", flat=True))
        outcome = lifecycle.revoke(ids, by=Actor.of_request(request))
        self.message_user(request, outcome.sentence("Revoke"), messages.SUCCESS)
