"""Admin pages of worker hosts."""

from __future__ import annotations

from django.contrib import admin
from django.http import HttpRequest

from workers_app import operations
from workers_app.admin_operations import OperationsAdmin
from workers_app.models import Worker


@admin.register(Worker)
class WorkerAdmin(OperationsAdmin):
    operations = operations.WORKERS
    list_display = (
        "name",
        "state",
        "queues",
        "slots",
        "jobs_active",
        "last_heartbeat",
        "agent_version",
        "requested_comment",
    )
    list_filter = ("state", "team_name", "agent_version")
    search_fields = ("name",)
    ordering = ("name",)

    @admin.display(description="slots")
    def slots(self, worker: Worker) -> int:
        return worker.effective_concurrency

    def get_readonly_fields(self, request: HttpRequest, obj: Worker | None = None) -> list[str]:
        return [field.name for field in Worker._meta.fields if field.editable]
