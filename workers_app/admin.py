"""Admin pages of worker hosts. Each action is one call into `registry` or `auth`."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest

from workers_app.models import Worker


@admin.register(Worker)
class WorkerAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = [
        "name",
        "state",
        "queues",
        "slots",
        "jobs_active",
        "last_heartbeat",
        "agent_version",
        "requested_comment",
    ]
    list_filter = ["state", "team_name", "agent_version"]
    search_fields = ["name"]
    ordering = ["name"]

    @admin.display(description="slots")
    def slots(self, worker: Worker) -> int:
        return worker.effective_concurrency

    def has_add_permission(self, request: HttpRequest) -> bool:
        # A machine is added with its token, by `manage.py create_worker_token`.
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Removing checks that nobody is there; see `remove`.
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: Worker | None = None) -> list[str]:
        # Only `registry` writes workers.
        return [field.name for field in Worker._meta.fields if field.editable]
