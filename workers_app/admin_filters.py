"""Filters of the list of worker hosts. Which workers are meant by which words stands in `selection` and `versions`."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import CheckboxFilter, DropdownFilter, RadioFilter

from workers_app import selection, versions
from workers_app.models import Worker
from workers_app.states import Shown

_MOST_CHOICES = 500
Choices = list[tuple[str, str]]


def _storable(value: str) -> bool:
    """PostgreSQL has no text with a NUL, and says so by an error."""
    return "\0" not in value


class StateFilter(CheckboxFilter):  # type: ignore[misc]
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return [(state.value, state.value) for state in Shown]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        states = [state for state in self.value() or () if state]
        return queryset.filter(state__in=filter(_storable, states)) if states else queryset


class QueueFilter(DropdownFilter):  # type: ignore[misc]
    title = "queue"
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT unnest(coalesce(queues_override, '{}') || coalesce(queues, '{}')"
                " || coalesce(allowed_queues, '{}')) AS name FROM worker ORDER BY name LIMIT %s",
                [_MOST_CHOICES],
            )
            names = [name for (name,) in cursor.fetchall()]
        asked = self.value()
        return [(name, name) for name in ([asked] if asked and asked not in names else []) + names]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        queue = self.value()
        if not queue:
            return queryset
        return queryset.filter(selection.serving(queue)) if _storable(queue) else queryset.none()


class _ColumnFilter(DropdownFilter):  # type: ignore[misc]
    """One of the values that a column has."""

    column = ""

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        values = Worker.objects.order_by(self.column).values_list(self.column, flat=True).distinct()[:_MOST_CHOICES]
        return [(value, value) for value in values if value]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        value = self.value()
        if not value:
            return queryset
        return queryset.filter(**{self.column: value}) if _storable(value) else queryset.none()


class TeamFilter(_ColumnFilter):
    title = "team"
    parameter_name = "team"
    column = "team_name"


class VersionFilter(_ColumnFilter):
    title = "agent version"
    parameter_name = "version"
    column = "agent_version"


class SilentFilter(RadioFilter):  # type: ignore[misc]
    title = "silence"
    parameter_name = "silent"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return [("1", "Silent")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        return queryset.filter(selection.silent()) if self.value() == "1" else queryset


class OutdatedFilter(RadioFilter):  # type: ignore[misc]
    title = "outdated agent"
    parameter_name = "outdated"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> Choices:
        return [("1", "Outdated")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        if self.value() != "1":
            return queryset
        return queryset.filter(agent_version__in=versions.outdated_versions(server_version()))


def server_version() -> str:
    return str(settings.SPECTACULAR_SETTINGS["VERSION"])
