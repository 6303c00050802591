"""Admin pages of worker hosts. Each action is one call into `registry` or `auth`."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.http import HttpRequest

from workers_app import auth, registry
from workers_app.errors import Refusal
from workers_app.models import Worker
from workers_app.states import Requested


class CommentForm(ActionForm):
    comment = forms.CharField(required=False, max_length=1000)


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
    action_form = CommentForm
    actions = ["request_maintenance", "exit_maintenance", "shut_down", "revoke_tokens", "remove"]

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

    @admin.action(description="Request maintenance (give a comment)", permissions=["change"])
    def request_maintenance(self, request: HttpRequest, workers: QuerySet[Worker]) -> None:
        comment = request.POST.get("comment", "").strip()
        if not comment:
            self.message_user(request, "Maintenance needs a comment: type it beside the action.", messages.ERROR)
            return
        self._wish(request, workers, Requested.MAINTENANCE, comment)

    @admin.action(description="Exit maintenance", permissions=["change"])
    def exit_maintenance(self, request: HttpRequest, workers: QuerySet[Worker]) -> None:
        self._wish(request, workers.filter(requested=Requested.MAINTENANCE), Requested.ACTIVE)

    @admin.action(description="Shut down after the held jobs", permissions=["change"])
    def shut_down(self, request: HttpRequest, workers: QuerySet[Worker]) -> None:
        self._wish(request, workers, Requested.SHUTDOWN)

    @admin.action(description="Revoke all tokens", permissions=["change"])
    def revoke_tokens(self, request: HttpRequest, workers: QuerySet[Worker]) -> None:
        count = sum(auth.revoke(worker=worker) for worker in workers)
        self.message_user(request, f"{count} tokens revoked.", messages.SUCCESS)

    @admin.action(description="Remove (offline or silent ones)", permissions=["change"])
    def remove(self, request: HttpRequest, workers: QuerySet[Worker]) -> None:
        removed = 0
        for worker in workers:
            try:
                registry.remove(worker=worker)
                removed += 1
            except Refusal as refusal:
                self.message_user(request, refusal.detail, messages.WARNING)
        self.message_user(request, f"{removed} workers removed.", messages.SUCCESS)

    def _wish(self, request: HttpRequest, workers: QuerySet[Worker], wish: Requested, comment: str = "") -> None:
        ids = list(workers.values_list("pk", flat=True))
        count = registry.request(worker_ids=ids, wish=wish, by=request.user.get_username(), comment=comment)
        self.message_user(request, f"{wish.value} requested of {count} workers.", messages.SUCCESS)
