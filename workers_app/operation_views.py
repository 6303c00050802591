"""How the operator API makes endpoints: one for each operation of a table, single and in bulk; nothing is decided here.

What an operation does, to whom it can be done and how its parameters are read stands in the table and below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.db.models import Model, QuerySet
from django.http import Http404
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from workers_app import api_lists
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.operations import (
    LONGEST_COMMENT,
    LONGEST_QUEUE,
    MOST_SLOTS,
    InvalidParameter,
    Kind,
    Operation,
    encodable,
)
from workers_app.operations import Parameter as OperationParameter
from workers_app.outcomes import Outcome
from workers_app.personal_tokens import PersonalTokenAuthentication

#: As many subjects as one request may name.
MOST_NAMES = 1000
#: Sent along by the browser's forms.
_CSRF = "csrfmiddlewaretoken"


class Skipped(Refusal):
    """It was not done, for the reason that is told."""

    code = "skipped"


class HasNamedPermission(BasePermission):
    """The caller has the one permission that the view names for what is asked of it."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        # A session outlives the right to log in.
        if not (request.user and request.user.is_authenticated and request.user.is_staff):
            return False
        permission = cast(FleetViewSet, view).permission
        if not request.user.has_perm(permission):
            raise PermissionDenied(f"You need the permission {permission}; see the groups in the admin.")
        return True


class StrictSerializer(serializers.Serializer[Any]):
    """Refuses parameters that nobody knows, with the nearest right name."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            wrong = [str(name) for name in data if name not in self.fields and name != _CSRF]
            if wrong:
                raise serializers.ValidationError({name: api_lists.unknown(name, self.fields) for name in wrong})
        return super().to_internal_value(data)


class ParameterField(serializers.Field[Any, Any, Any, Any]):
    """A parameter as every other face reads it."""

    def __init__(self, parameter: OperationParameter, **options: Any) -> None:
        self.parameter = parameter
        options |= {"required": parameter.required, "help_text": parameter.help}
        super().__init__(allow_null=not parameter.required, error_messages={"required": "is needed"}, **options)

    def to_internal_value(self, data: Any) -> Any:
        try:
            return self.parameter.read(data)
        except InvalidParameter as invalid:
            raise serializers.ValidationError(invalid.detail) from None

    def to_representation(self, value: Any) -> Any:
        return ", ".join(value) if isinstance(value, list) else value


@extend_schema_field({"type": "string", "maxLength": LONGEST_COMMENT})
class CommentField(ParameterField):
    def __init__(self, parameter: OperationParameter) -> None:
        super().__init__(parameter, style={"base_template": "textarea.html", "rows": 3})


@extend_schema_field({"type": "array", "items": {"type": "string", "maxLength": LONGEST_QUEUE}, "nullable": True})
class QueuesField(ParameterField):
    pass


@extend_schema_field({"type": "integer", "minimum": 1, "maximum": MOST_SLOTS, "nullable": True})
class SlotsField(ParameterField):
    pass


@extend_schema_field({"type": "string", "nullable": True})
class MomentField(ParameterField):
    pass


FIELDS: dict[Kind, Callable[[OperationParameter], ParameterField]] = {
    Kind.COMMENT: CommentField,
    Kind.QUEUES: QueuesField,
    Kind.SLOTS: SlotsField,
    Kind.MOMENT: MomentField,
}
#: For the documentation.
_EXAMPLES: dict[Kind, Any] = {
    Kind.COMMENT: "new disk",
    Kind.QUEUES: ["press", "laser"],
    Kind.SLOTS: 4,
    Kind.MOMENT: "2h",
}


@extend_schema_field({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_NAMES})
class NamesField(serializers.Field[Any, Any, Any, Any]):
    """A list; in a browser's form one name a line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            style={"base_template": "textarea.html", "rows": 4}, error_messages={"required": "is needed"}, **options
        )

    def to_internal_value(self, data: Any) -> list[str]:
        names = [line.strip() for line in data.splitlines()] if isinstance(data, str) else data
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise serializers.ValidationError("must be a list of texts")
        if not all(map(encodable, names)):
            raise serializers.ValidationError("has a name with half of a character")
        names = list(dict.fromkeys(name for name in names if name))
        if not 1 <= len(names) <= MOST_NAMES:
            raise serializers.ValidationError(f"must have 1 to {MOST_NAMES} entries")
        return names

    def to_representation(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value


class SkippedSerializer(serializers.Serializer[Any]):
    name = serializers.CharField()
    why = serializers.CharField(help_text="For people.")


class OutcomeSerializer(serializers.Serializer[Any]):
    """What came of an operation."""

    done = serializers.ListField(child=serializers.CharField(), help_text="Names as in the request.")
    skipped = SkippedSerializer(many=True, help_text="Those that it was not done to.")


def body_of(operation: Operation, *, names: str | None) -> type[serializers.Serializer[Any]]:
    """The serializer of a request; `names` describes the subjects of a bulk request."""
    fields: dict[str, Any] = {"names": NamesField(help_text=names)} if names else {}
    fields |= {parameter.name: FIELDS[parameter.kind](parameter) for parameter in operation.parameters}
    title = "".join(word.capitalize() for word in operation.name.split("_"))
    fields["__doc__"] = operation.help
    return type(f"{title}{'Many' if names else ''}Serializer", (StrictSerializer,), fields)


class FleetViewSet(GenericViewSet[Any]):
    """What every endpoint of the operator API has in common: who may call it, and that it is taken at its word."""

    authentication_classes = [PersonalTokenAuthentication, SessionAuthentication]
    permission_classes = [HasNamedPermission]
    filter_backends = [DjangoFilterBackend, api_lists.Search, api_lists.Ordering]
    pagination_class = api_lists.NumberedPages
    model: type[Model]
    search_fields: Sequence[str] = ()
    #: Name in the API -> column.
    orderings: Mapping[str, str] = {}
    default_ordering = ""
    #: Set where an endpoint is that of an operation.
    operation: Operation | None = None
    #: Permissions of what is no operation and changes something, by the action's name.
    needs: Mapping[str, str] = {}
    #: Query parameters of an action that is no list.
    takes: Sequence[str] = ()

    @property
    def permission(self) -> str:
        """Django's name of the permission that this request needs."""
        if self.operation is not None:
            return self.operation.permission
        meta = self.model._meta
        return self.needs.get(self.action or "", f"{meta.app_label}.view_{meta.model_name}")

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        known, several = api_lists.list_parameters(self) if self.action == "list" else (set(self.takes), set[str]())
        api_lists.check_query(request, known=known, several=several)

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        rows = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        assert rows is not None  # noqa: S101 - every list has pages
        return self.get_paginated_response(self.shown(rows))

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        (row,) = self.shown([self.get_object()])
        return Response(row)

    def shown(self, rows: Sequence[Any]) -> Any:
        """The rows as they are answered. What must be asked for all of them at once is asked for here."""
        return self.serialized(rows)

    def serialized(self, rows: Sequence[Any], **known: Any) -> Any:
        """With what is `known` in the serializer's context."""
        serializer_class: Any = self.serializer_class
        return serializer_class(rows, many=True, context={**self.get_serializer_context(), **known}).data

    def branches(self, queryset: QuerySet[Any]) -> Sequence[api_lists.Branch]:
        """The parts of a list that are looked up apart."""
        return [api_lists.Branch(queryset)]

    def get_object(self) -> Any:
        """The row of this address. Unlike the framework's: the filters of lists have no say in it."""
        return self.found(self.get_queryset())

    def found(self, queryset: QuerySet[Any]) -> Any:
        try:
            return queryset.get(pk=self.kwargs["pk"])
        except (ObjectDoesNotExist, ValueError, ValidationError):
            raise Http404 from None


class OperationViewSet(FleetViewSet):
    """Adds `POST <id>/<operation>/` and `POST <operation>/ {"names": [...]}` for each of `operations`."""

    operations: Sequence[Operation] = ()
    #: The column that requests and answers name subjects by.
    named_by = "name"
    #: Said of a name that nobody has.
    nobody = ""
    #: What `names` are, for the documentation, and two of them.
    names_help = ""
    names_example: Sequence[str] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for operation in cls.__dict__.get("operations", ()):
            for many in (False, True):
                endpoint = _endpoint(cls, operation, many=many)
                setattr(cls, endpoint.__name__, endpoint)

    def get_serializer_class(self) -> Any:
        if self.operation is not None:
            return body_of(self.operation, names=None if self.detail else self.names_help)
        return super().get_serializer_class()

    def ids(self, names: Sequence[str]) -> Mapping[str, Any]:
        """The primary keys of those names that exist."""
        rows = self.model._default_manager.filter(**{f"{self.named_by}__in": names})
        return dict(rows.values_list(self.named_by, "pk"))

    def run_one(self, request: Request) -> Response:
        subject = self.found(self.model._default_manager.only("pk", self.named_by))
        outcome = self._run(request, [subject.pk], self._said(request))
        if outcome.skipped:
            raise Skipped(": ".join(outcome.skipped[0]))
        if not outcome.done:
            raise Http404
        return _answer([str(getattr(subject, self.named_by))], [])

    def run_many(self, request: Request) -> Response:
        said = self._said(request)
        names = said.pop("names")
        ids = self.ids(names)
        outcome = self._run(request, list(ids.values()), said)
        named = {pk: name for name, pk in ids.items()}
        done = [named[pk] for pk in outcome.done_ids] or outcome.done
        told = [named[pk] for pk in outcome.skipped_ids] or [name for name, _ in outcome.skipped]
        skipped = list(zip(told, (why for _, why in outcome.skipped), strict=True))
        # Also those that went between being looked up and being locked.
        left = [name for name in names if name not in {*done, *told}]
        return _answer(done, [*skipped, *((name, self.nobody) for name in left)])

    def _said(self, request: Request) -> dict[str, Any]:
        body = self.get_serializer(data=request.data)
        body.is_valid(raise_exception=True)
        return dict(body.validated_data)

    def _run(self, request: Request, ids: Sequence[Any], said: Mapping[str, Any]) -> Outcome:
        assert self.operation is not None  # noqa: S101 - only the endpoints of operations come here
        return self.operation.run(ids, by=Actor.of_request(request), **said)


def _answer(done: Sequence[Any], skipped: Sequence[tuple[str, str]]) -> Response:
    body = {"done": done, "skipped": [{"name": name, "why": why} for name, why in skipped]}
    # Without the serializer, of which a browser's page would make a form.
    return Response(dict(OutcomeSerializer(body).data))


def _endpoint(view: type[OperationViewSet], operation: Operation, *, many: bool) -> Any:
    def endpoint(self: OperationViewSet, request: Request, *args: Any, **kwargs: Any) -> Response:
        return self.run_many(request) if many else self.run_one(request)

    endpoint.__name__ = f"{operation.name}_many" if many else operation.name
    endpoint.__doc__ = operation.help
    names = view.names_help if many else None
    said = {parameter.name: _EXAMPLES[parameter.kind] for parameter in operation.parameters}
    first, *others = view.names_example
    done = {"done": [first], "skipped": [{"name": name, "why": view.nobody} for name in others] if many else []}
    routed = action(
        detail=not many,
        methods=["post"],
        url_path=operation.name,
        url_name=endpoint.__name__.replace("_", "-"),
        name=operation.label,
        operation=operation,
    )(endpoint)
    return extend_schema(
        operation_id=endpoint.__name__,
        summary=f"{operation.label}{' (many)' if many else ''}",
        description=operation.help,
        request=body_of(operation, names=names),
        responses={200: OpenApiResponse(OutcomeSerializer, examples=[OpenApiExample("done", done)])},
        examples=[
            OpenApiExample("request", ({"names": view.names_example} if many else {}) | said, request_only=True),
        ],
    )(routed)
