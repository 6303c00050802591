"""How the operator API lists: filters, search, order and pages. What a request says and nobody understands is refused.

A misspelt filter that was ignored would return everything, and a script would then act on everything.
"""

from __future__ import annotations

import base64
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db.models import F, Model, Q, QuerySet
from django.db.models.expressions import OrderBy
from django.template import loader
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema_field
from rest_framework.exceptions import ValidationError
from rest_framework.filters import OrderingFilter, SearchFilter
from rest_framework.pagination import BasePagination, LimitOffsetPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import replace_query_param

from workers_app import selection

#: Of every address: which renderer answers.
FORMAT = "format"


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a name that nobody knows: the nearest right one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"There is no such parameter; did you mean {near[0]}?"
    return f"There is no such parameter; there are: {', '.join(names)}." if names else "It takes no parameters."


def check_query(request: Request, *, known: set[str], several: set[str]) -> None:
    """Refuse parameters that are unknown, empty, or given twice where one is taken."""
    # A browser's filter form sends every field, also those that nobody filled in.
    from_form = request.accepted_renderer.format == "api"
    for name, values in request.query_params.lists():
        if name not in known | {FORMAT}:
            raise ValidationError({name: unknown(name, known)})
        if len(values) > 1 and name not in several:
            raise ValidationError({name: "It is given more than once."})
        if "" in values and not from_form:
            raise ValidationError({name: "It has no value; leave it out to get all."})


class Several(forms.SelectMultiple):
    """`?state=idle&state=running` as well as `?state=idle,running`."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> list[str]:
        return [part for value in data.getlist(name) for part in value.split(",") if part]


class SeveralFilter(filters.MultipleChoiceFilter):  # type: ignore[misc]
    """Rows with one of these values."""

    def __init__(self, *, choices: Sequence[str], **options: Any) -> None:
        super().__init__(
            choices=[(choice, choice) for choice in choices],
            widget=Several,
            error_messages={"invalid_choice": f"%(value)s is none of {', '.join(choices)}."},
            **options,
        )

    def filter(self, queryset: QuerySet[Any], value: list[str]) -> QuerySet[Any]:
        return queryset.filter(**{f"{self.field_name}__in": value}) if value else queryset


_YES = {"true": True, "1": True, "false": False, "0": False}


class YesNo(forms.CharField):
    widget = forms.Select(choices=[("", "any"), ("true", "yes"), ("false", "no")])

    def to_python(self, value: Any) -> Any:
        if value in ("", None):
            return None
        if str(value).lower() not in _YES:
            raise DjangoValidationError("It is true or false.")
        return _YES[str(value).lower()]


class YesNoFilter(filters.Filter):  # type: ignore[misc]
    """`true` or `false`; anything else is refused and not taken for "no matter"."""

    field_class = YesNo

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        extend_schema_field({"type": "boolean", "description": options.get("help_text", "")})(self)


class MomentFilter(filters.IsoDateTimeFilter):  # type: ignore[misc]
    """A moment in ISO 8601, in UTC unless it says."""

    def __init__(self, **options: Any) -> None:
        super().__init__(error_messages={"invalid": "It is a moment such as 2026-11-22T18:00:00Z."}, **options)


class PatternFilter(filters.CharFilter):  # type: ignore[misc]
    """Names with * and ?, as in a shell."""

    def filter(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        return queryset.filter(selection.like(value, field=self.field_name)) if value else queryset


class ConditionFilter(YesNoFilter):
    """Rows for which a condition holds, or does not; `condition` is asked at each request."""

    def __init__(self, *, condition: Any, **options: Any) -> None:
        super().__init__(**options)
        self.condition = condition

    def filter(self, queryset: QuerySet[Any], value: bool | None) -> QuerySet[Any]:
        return queryset if value is None else queryset.filter(self.condition() if value else ~self.condition())


class ListFilter(filters.FilterSet):  # type: ignore[misc]
    """The filters of a list; a browser's form calls them by their names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, each in self.filters.items():
            each.label = name


class Search(SearchFilter):
    """Every word must be found in one of the view's `search_fields`, whatever its case."""

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        words = getattr(view, "search_help", None) or f"Words, each found in one of: {', '.join(view.search_fields)}."
        return [_parameter(self.search_param, words)]


class Ordering(OrderingFilter):
    """`?ordering=-name`: by the names in the view's `orderings`, which maps them to columns. Rows that are equal
    stand in the order of their keys, so that none is on two pages or on none."""

    def get_ordering(self, request: Request, queryset: QuerySet[Any], view: Any) -> list[str]:
        text = request.query_params.get(self.ordering_param) or view.default_ordering
        terms = [term.strip() for term in text.split(",")]
        for term in terms:
            if term.removeprefix("-") not in view.orderings:
                raise ValidationError(
                    {self.ordering_param: f"{term}: {unknown(term.removeprefix('-'), view.orderings)}"}
                )
        if len(terms) > 1 and isinstance(view.paginator, Keyset):
            raise ValidationError({self.ordering_param: "Only one is possible here."})
        return terms

    def get_valid_fields(self, queryset: Any, view: Any, context: Any = None) -> list[tuple[str, str]]:
        return [(name, name) for name in view.orderings]

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        terms = self.get_ordering(request, queryset, view)
        if isinstance(view.paginator, Keyset):
            # It puts them into order itself, together with where it goes on.
            return queryset
        columns = [
            OrderBy(F(view.orderings[term.removeprefix("-")]), descending=term.startswith("-"), nulls_last=True)
            for term in terms
        ]
        return queryset.order_by(*columns, "pk")

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        names = [sign + name for name in view.orderings for sign in ("", "-")]
        one, note = isinstance(view.paginator, Keyset), getattr(view, "orderings_help", "")
        help_text = f"{'One' if one else 'One or more, separated by commas,'} of {', '.join(names)}; "
        return [_parameter(self.ordering_param, help_text + f"default: {view.default_ordering}.{note}")]


class NumberedPages(LimitOffsetPagination):
    """`limit` and `offset`, with the count of all: for lists that people can count."""

    default_limit = 100
    max_limit = 1000

    def get_limit(self, request: Request) -> int:
        return _limit(request, default=self.default_limit, most=self.max_limit)

    def get_offset(self, request: Request) -> int:
        return whole_number(request, "offset", default=0)

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return _page_schema(schema, "offset=100", count={"type": "integer", "description": "Of all pages."})

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return [
            _limit_parameter(self.default_limit, self.max_limit),
            _parameter("offset", "How many to leave out; default: 0.", type="integer", minimum=0),
        ]


@dataclass(frozen=True)
class Branch:
    """A part of a list that is looked up apart, because another index serves it."""

    queryset: QuerySet[Any]
    #: In an order that no index has, the planner reads what the conditions choose. Else it may walk along the whole
    #: table in this order, looking for what is rare (seen: 1.2 s beside a million).
    fenced: bool = False


class Keyset(BasePagination):
    """Pages that go on after the last row shown: none shifts while rows come and go, and the last costs what the
    first does. The order is one column of the view's `orderings` that is never NULL, and the primary key.

    Not the framework's own, which loses its place where more than a thousand rows are equal: a batch of jobs is
    queued at one moment.
    """

    default_limit = 100
    max_limit = 500
    template = "rest_framework/pagination/previous_and_next.html"

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        self.url = request.build_absolute_uri()
        self.limit = _limit(request, default=self.default_limit, most=self.max_limit)
        (self.term,) = Ordering().get_ordering(request, queryset, view)
        self.column = view.orderings[self.term.removeprefix("-")]
        back, place = self._place(request, queryset.model)
        descending = self.term.startswith("-") != back
        rows: list[Any] = []
        for branch in view.branches(queryset):
            beyond = Q() if place is None else self._beyond(place, descending=descending)
            rows += branch.queryset.filter(beyond).order_by(*self._order(branch, descending))[: self.limit + 1]
        rows.sort(key=lambda row: (getattr(row, self.column), row.pk), reverse=descending)
        more, rows = len(rows) > self.limit, rows[: self.limit]
        if back:
            rows.reverse()
        self.next = self._link(rows[-1], back=False) if rows and (back or more) else None
        self.previous = self._link(rows[0], back=True) if rows and (more if back else place is not None) else None
        self.display_page_controls = bool(self.next or self.previous)
        return rows

    def _order(self, branch: Branch, descending: bool) -> list[OrderBy]:
        column = F(self.column) + timedelta(0) if branch.fenced else F(self.column)
        return [OrderBy(column, descending=descending), OrderBy(F("pk"), descending=descending)]

    def _beyond(self, place: tuple[Any, Any], *, descending: bool) -> Q:
        """Rows after this one. The first condition is implied by the second, and is what an index can use."""
        (value, pk), than = place, "lt" if descending else "gt"
        if self.column == "id":
            return Q(**{f"id__{than}": pk})
        same = Q(**{self.column: value, f"pk__{than}": pk})
        return Q(**{f"{self.column}__{than}e": value}) & (Q(**{f"{self.column}__{than}": value}) | same)

    def _link(self, row: Any, *, back: bool) -> str:
        place = [self.term, back, _field(type(row), self.column).value_to_string(row), str(row.pk)]
        cursor = base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
        return replace_query_param(self.url, "cursor", cursor)

    def _place(self, request: Request, model: type[Model]) -> tuple[bool, tuple[Any, Any] | None]:
        cursor = request.query_params.get("cursor")
        if not cursor:
            return False, None
        try:
            term, back, value, pk = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            if term != self.term or not isinstance(back, bool):
                raise ValueError
            at = _field(model, self.column).to_python(value)
            if at is None or (isinstance(at, datetime) and at.tzinfo is None):
                raise ValueError
            return back, (at, _field(model, "pk").to_python(pk))
        except (ValueError, TypeError, DjangoValidationError):
            text = "It goes on with no list in this order; take it from `next` or `previous` as it is."
            raise ValidationError({"cursor": text}) from None

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"next": self.next, "previous": self.previous, "results": data})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return _page_schema(schema, "cursor=WyItcXVldWVkX2F0Iiw...")

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return [
            _limit_parameter(self.default_limit, self.max_limit),
            _parameter("cursor", "Where to go on, from `next` or `previous` of the page before."),
        ]

    def get_results(self, data: Any) -> Any:
        return data["results"]

    def to_html(self) -> str:
        context = {"previous_url": self.previous, "next_url": self.next}
        return loader.get_template(self.template).render(context)


def whole_number(request: Request, name: str, *, default: int, least: int = 0, most: int = 2**53) -> int:
    """A number of the query. Anything that is not one within the bounds is refused."""
    text = request.query_params.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,16}", text) or not least <= int(text) <= most:
        raise ValidationError({name: f"It is a whole number from {least} to {most}."})
    return int(text)


def list_parameters(view: Any) -> tuple[set[str], set[str]]:
    """What a list takes, and what of it may be given several times."""
    chosen = view.filterset_class.base_filters
    known = {*chosen, SearchFilter.search_param, OrderingFilter.ordering_param}
    known |= {parameter["name"] for parameter in view.paginator.get_schema_operation_parameters(view)}
    return known, {name for name, each in chosen.items() if isinstance(each, SeveralFilter)}


def _limit(request: Request, *, default: int, most: int) -> int:
    return whole_number(request, "limit", default=default, least=1, most=most)


def _field(model: type[Model], name: str) -> Any:
    return model._meta.pk if name == "pk" else model._meta.get_field(name)


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "required": False,
        "in": "query",
        "description": description,
        "schema": {"type": "string"} | schema,
    }


def _limit_parameter(default: int, most: int) -> dict[str, Any]:
    return _parameter(
        "limit", f"Rows on a page, {most} at most; default: {default}.", type="integer", minimum=1, maximum=most
    )


def _page_schema(results: dict[str, Any], example: str, **more: Any) -> dict[str, Any]:
    link = {
        "type": "string",
        "nullable": True,
        "format": "uri",
        "example": f"https://edge.example.com/api/v1/fleet/...?{example}",
    }
    properties = {**more, "next": link, "previous": link, "results": results}
    return {"type": "object", "required": list(properties), "properties": properties}
