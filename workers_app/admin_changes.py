"""The record of changes as people read it: who did what to what, when, from where, and why. It is only read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import MAXYEAR, UTC, datetime, time, timedelta
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.contrib.admin.utils import quote
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models import F, Model, OrderBy, QuerySet
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from unfold.contrib.filters.admin import DropdownFilter, RangeDateFilter
from unfold.paginator import InfinitePaginator
from unfold.utils import parse_date_str
from unfold.views import ChangeList

from workers_app import admin_words
from workers_app.admin_lists import RemembersList
from workers_app.admin_operations import OperationsAdmin
from workers_app.audit import ActorKind
from workers_app.models import Change
from workers_app.operations import Operation

#: What each kind of subject is a row of; an app that this one does not import is named by its label.
_MODELS = {
    "worker": "workers_app.worker",
    "queue": "jobs_app.queue",
    "job": "jobs_app.job",
    "enrolment": "workers_app.enrolmenttoken",
    "personal token": "workers_app.personaltoken",
}
_ICONS = {
    ActorKind.PERSON: "person",
    ActorKind.COMMAND: "terminal",
    ActorKind.MACHINE: "dns",
    ActorKind.AUTOMATIC: "settings",
}
_WHO = {
    ActorKind.PERSON: "Somebody in the admin or at the API",
    ActorKind.COMMAND: "Somebody with a shell on the control plane",
    ActorKind.MACHINE: "The machine itself",
    ActorKind.AUTOMATIC: "Nobody: it happened by itself",
}
#: Longer values are cut in the list; their end is shown to those who point at them.
_LONGEST_VALUE = 120
_MOST_ACTORS = 500
#: With more matches than this a text is common, and its newest changes are soon found along the record; these many can
#: still be read and sorted.
_COMMON = 10_000


def known_operations() -> dict[str, Operation]:
    """Every operation that a page of the admin offers, by name."""
    tables = (getattr(page, "operations", ()) for page in admin.site._registry.values())
    return {operation.name: operation for table in tables for operation in table}


def rows_of(changes: Iterable[Change]) -> list[dict[str, Any]]:
    """Changes in words, for the table on a subject's own page."""
    operations = known_operations()
    return [
        {
            "when": admin_words.moment(change.at),
            "who": who(change),
            "action": admin_words.action(change.action, operations),
            "differences": differences(change),
            "comment": change.comment,
        }
        for change in changes
    ]


def who(change: Change) -> SafeString:
    return format_html(
        '<span class="ec-who" title="{}"><span class="material-symbols-outlined" aria-hidden="true">{}</span>'
        '<span>{}<small class="ec-sub">{}</small></span></span>',
        _WHO.get(change.actor_kind, ""),  # type: ignore[call-overload]
        _ICONS.get(change.actor_kind, "help"),  # type: ignore[call-overload]
        change.actor,
        change.origin,
    )


def differences(change: Change) -> SafeString:
    rows = [
        {"what": what, **_cut(before=before, after=after)} for what, before, after in admin_words.differences(change)
    ]
    return render_to_string("workers_app/changes/differences.html", {"rows": rows}) if rows else admin_words.NOTHING


def _cut(**values: str | None) -> dict[str, tuple[str, str] | None]:
    """Each value as it is shown, and in full."""
    return {
        name: None if text is None else (Truncator(text).chars(_LONGEST_VALUE), text) for name, text in values.items()
    }


class ActorFilter(DropdownFilter):  # type: ignore[misc]
    title = "who"
    parameter_name = "actor"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        # From one name to the next by the index: the record only grows, its authors are few.
        with connection.cursor() as cursor:
            cursor.execute(
                """
                WITH RECURSIVE names AS (
                    (SELECT actor FROM change ORDER BY actor LIMIT 1)
                    UNION ALL
                    SELECT (SELECT actor FROM change WHERE actor > names.actor ORDER BY actor LIMIT 1)
                      FROM names WHERE names.actor IS NOT NULL
                )
                SELECT actor FROM names WHERE actor IS NOT NULL LIMIT %s
                """,
                [_MOST_ACTORS],
            )
            return [(name, name) for (name,) in cursor.fetchall()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Change]) -> QuerySet[Change]:
        return equal(queryset, "actor", self.value())


class ActionFilter(DropdownFilter):  # type: ignore[misc]
    title = "action"
    parameter_name = "action"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        operations = known_operations()
        names = sorted({*operations, *admin_words.ACTIONS})
        return sorted(((name, admin_words.action(name, operations)) for name in names), key=lambda pair: pair[1])

    def queryset(self, request: HttpRequest, queryset: QuerySet[Change]) -> QuerySet[Change]:
        return equal(queryset, "action", self.value())


class KindFilter(DropdownFilter):  # type: ignore[misc]
    title = "what it was done to"
    parameter_name = "kind"

    def lookups(self, request: HttpRequest, model_admin: admin.ModelAdmin[Any]) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in _MODELS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Change]) -> QuerySet[Change]:
        return equal(queryset, "subject_kind", self.value())


class DayFilter(RangeDateFilter):  # type: ignore[misc]
    """From the beginning of a day to the end of another, in UTC."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Change]) -> QuerySet[Change]:
        first, last = (_day(self.used_parameters.get(f"{self.parameter_name}_{end}")) for end in ("from", "to"))
        if first:
            queryset = queryset.filter(at__gte=first)
        return queryset.filter(at__lt=last + timedelta(days=1)) if last else queryset


def _day(text: Any) -> datetime | None:
    found = parse_date_str(text) if text else None
    return datetime.combine(found, time.min, tzinfo=UTC) if found and found.year < MAXYEAR else None


def equal(queryset: QuerySet[Any], column: str, value: str | None) -> QuerySet[Any]:
    """Narrowed to this value, if there is one; PostgreSQL has no text with a NUL, and says so by an error."""
    if not value:
        return queryset
    return queryset.none() if "\0" in value else queryset.filter(**{column: value})


class ChangePage(ChangeList):  # type: ignore[misc]
    """A page of the record, with one query for each kind of subject that tells which of them still exist."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        changes: list[Any] = list(self.result_list)  # type: ignore[has-type]
        existing = {kind: _existing(request, kind, changes) for kind in {change.subject_kind for change in changes}}
        for change in changes:
            change.subject_url = existing[change.subject_kind].get(change.subject_id, "")
        self.result_list = changes


def _existing(request: HttpRequest, kind: str, changes: Sequence[Change]) -> dict[str, str]:
    """Pages of those subjects of this kind that exist and that this person may see, by their ids."""
    model: type[Model] | None = apps.get_model(_MODELS[kind]) if kind in _MODELS else None
    page = admin.site._registry.get(model) if model else None
    if model is None or page is None or not page.has_view_permission(request):
        return {}
    keys = {}
    for change in changes:
        if change.subject_kind == kind:
            try:
                keys[model._meta.pk.to_python(change.subject_id)] = change.subject_id
            except ValidationError:
                continue
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}_change"
    try:
        there = page.get_queryset(request).filter(pk__in=list(keys)).values_list("pk", flat=True)
        return {keys[key]: reverse(name, args=[quote(key)]) for key in there}
    except NoReverseMatch:
        return {}


class ChangeAdmin(RemembersList, OperationsAdmin):
    list_display = fields = ("when", "by", "did", "to", "what", "why")
    list_display_links = None
    list_filter = (ActorFilter, ActionFilter, KindFilter, ("at", DayFilter))
    list_filter_submit = True
    list_fullwidth = True
    show_facets = admin.ShowFacets.NEVER
    list_per_page = 50
    # The record only grows: nothing is counted.
    paginator = InfinitePaginator
    show_full_result_count = False
    search_fields = ("^subject", "=subject_id")
    search_help_text = "A name, from its beginning, or an id"
    ordering = ("-id",)
    sortable_by = ()
    actions = None

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ChangePage

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Change], search_term: str
    ) -> tuple[QuerySet[Change], bool]:
        found, twice = super().get_search_results(request, queryset, search_term)
        if search_term and found.order_by()[: _COMMON + 1].count() <= _COMMON:
            # An order that no index has. In that of the keys the planner looks for what is rare through all of the
            # record, since it takes every subject for as frequent as the machines that start again and again.
            found = found.order_by(OrderBy(F("id") + 0, descending=True))
        return found, twice

    @admin.display(description="when")
    def when(self, change: Change) -> SafeString:
        return format_html('<span class="ec-nowrap">{}</span>', admin_words.moment(change.at))

    @admin.display(description="who")
    def by(self, change: Change) -> SafeString:
        return who(change)

    @admin.display(description="did")
    def did(self, change: Change) -> str:
        return admin_words.action(change.action, known_operations())

    @admin.display(description="to what")
    def to(self, change: Any) -> SafeString:
        kind = format_html('<small class="ec-sub">{}</small>', change.subject_kind)
        if getattr(change, "subject_url", ""):
            return format_html(
                '<span class="ec-stack"><a class="ec-link" href="{}">{}</a>{}</span>',
                change.subject_url,
                change.subject,
                kind,
            )
        return format_html('<span class="ec-stack"><span>{}</span>{}</span>', change.subject, kind)

    @admin.display(description="before → after")
    def what(self, change: Change) -> SafeString:
        return differences(change)

    @admin.display(description="comment")
    def why(self, change: Change) -> SafeString | str:
        return (
            format_html('<span class="ec-comment">{}</span>', change.comment) if change.comment else admin_words.NOTHING
        )
