"""Which domain error is which HTTP status, in one place: every refusal answers {"code", "detail"}.

Also what the API's documentation says of all endpoints alike, and how the addresses of the operator API are made.
"""

from __future__ import annotations

import logging
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import DataError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from drf_spectacular.openapi import AutoSchema
from rest_framework import exceptions, status
from rest_framework.permissions import IsAdminUser
from rest_framework.response import Response
from rest_framework.routers import APIRootView, DefaultRouter, Route
from rest_framework.utils.serializer_helpers import ReturnDict
from rest_framework.views import set_rollback

from edgecontrol.hub import Busy
from jobs_app.lifecycle import StaleAttempt
from jobs_app.logs import LogFull, WrongOffset
from jobs_app.states import JobState, ReportState
from workers_app.agent_file import NotBuilt
from workers_app.auth import BadToken
from workers_app.enrolment import BadEnrolmentToken, InvalidValidity, InvalidWorkerToken, KeepsItsOwn
from workers_app.errors import Refusal
from workers_app.operation_views import Skipped
from workers_app.operations import InvalidParameter
from workers_app.personal_tokens import BadPersonalToken
from workers_app.registry import BeingChanged, InvalidName, NameTaken, OutdatedAgent, Removed, SessionReplaced
from workers_app.selection import InvalidPattern
from workers_app.states import Requested, RequestedBy, Shown

log = logging.getLogger(__name__)

STATUS: dict[type[Refusal], int] = {
    BadToken: status.HTTP_401_UNAUTHORIZED,
    BadEnrolmentToken: status.HTTP_401_UNAUTHORIZED,
    BadPersonalToken: status.HTTP_401_UNAUTHORIZED,
    Removed: status.HTTP_401_UNAUTHORIZED,
    InvalidParameter: status.HTTP_400_BAD_REQUEST,
    InvalidValidity: status.HTTP_400_BAD_REQUEST,
    InvalidWorkerToken: status.HTTP_400_BAD_REQUEST,
    InvalidName: status.HTTP_400_BAD_REQUEST,
    InvalidPattern: status.HTTP_400_BAD_REQUEST,
    KeepsItsOwn: status.HTTP_400_BAD_REQUEST,
    NotBuilt: status.HTTP_404_NOT_FOUND,
    NameTaken: status.HTTP_409_CONFLICT,
    Skipped: status.HTTP_409_CONFLICT,
    SessionReplaced: status.HTTP_409_CONFLICT,
    OutdatedAgent: status.HTTP_426_UPGRADE_REQUIRED,
    StaleAttempt: status.HTTP_409_CONFLICT,
    WrongOffset: status.HTTP_409_CONFLICT,
    LogFull: status.HTTP_413_REQUEST_ENTITY_TOO_LARGE,
    Busy: status.HTTP_503_SERVICE_UNAVAILABLE,
    BeingChanged: status.HTTP_503_SERVICE_UNAVAILABLE,
}

#: Codes of the framework's own errors.
_CODES = {
    status.HTTP_400_BAD_REQUEST: "invalid_request",
    status.HTTP_401_UNAUTHORIZED: "not_authenticated",
    status.HTTP_403_FORBIDDEN: "not_allowed",
    status.HTTP_404_NOT_FOUND: "not_found",
    status.HTTP_405_METHOD_NOT_ALLOWED: "method_not_allowed",
    status.HTTP_406_NOT_ACCEPTABLE: "not_acceptable",
    status.HTTP_413_REQUEST_ENTITY_TOO_LARGE: "too_large",
    status.HTTP_415_UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    status.HTTP_429_TOO_MANY_REQUESTS: "too_many_requests",
}


def exception_handler(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's hook. None lets an unknown error become Django's 500, which is logged and answered by `server_error`."""
    if isinstance(error, Refusal):
        set_rollback()
        code = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), status.HTTP_409_CONFLICT)
        headers = {"Retry-After": "5"} if code == status.HTTP_503_SERVICE_UNAVAILABLE else {}
        if code == status.HTTP_401_UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return Response({"code": error.code, "detail": error.detail, **error.extra}, status=code, headers=headers)
    if isinstance(error, OperationalError | InterfaceError):
        set_rollback()
        log.warning("database away: %s", error)
        return _unavailable()
    if isinstance(error, DataError):
        # The net below the serializers: a value that no column takes would fail again and again.
        error = exceptions.ValidationError("A value does not fit into its column.")
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    if isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    if not isinstance(error, exceptions.APIException):
        return None
    set_rollback()
    headers = {"Retry-After": str(int(wait))} if (wait := getattr(error, "wait", None)) else {}
    if authenticate := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = authenticate
    body = {"code": _CODES.get(error.status_code, "error"), "detail": sentence(error.detail)}
    if isinstance(error, exceptions.MethodNotAllowed) and (
        allowed := getattr(context.get("view"), "allowed_methods", ())
    ):
        body["detail"] += f" Possible: {', '.join(allowed)}."
    if isinstance(error.detail, ReturnDict):
        # A browser's page then shows the form again as it was filled in.
        body = ReturnDict(body, serializer=error.detail.serializer)
    return Response(body, status=error.status_code, headers=headers)


def _unavailable() -> Response:
    body = {
        "code": "unavailable",
        "detail": "The control plane cannot reach its database; repeat the request.",
    }
    return Response(body, status=status.HTTP_503_SERVICE_UNAVAILABLE, headers={"Retry-After": "5"})


def sentence(detail: Any) -> str:
    """DRF's nested error details as one line: `queues: Not a valid list. jobs.0.attempt: This field is required.`"""
    if isinstance(detail, dict):
        return " ".join(f"{name}: {sentence(value)}" for name, value in detail.items())
    if isinstance(detail, list):
        return " ".join(sentence(value) for value in detail)
    return str(detail)


def not_found(request: HttpRequest, exception: Exception) -> Any:
    """An unknown address below /api/ answers like the API; any other one like a web page."""
    if request.path.startswith("/api/"):
        return JsonResponse({"code": "not_found", "detail": f"There is nothing at {request.path}."}, status=404)
    from django.views.defaults import page_not_found

    return page_not_found(request, exception)


def server_error(request: HttpRequest) -> Any:
    if request.path.startswith("/api/"):
        detail = "The control plane failed on this request; its log has the reason."
        return JsonResponse({"code": "server_error", "detail": detail}, status=500)
    from django.views.defaults import server_error as page

    return page(request)


class FleetView(APIRootView):
    """The operator API: workers, jobs, queues, enrolment tokens and the record of changes."""

    permission_classes = [IsAdminUser]


class FleetRouter(DefaultRouter):
    """The addresses of the operator API: a final slash may be there or not, and a queue's name may have slashes."""

    include_format_suffixes = False
    APIRootView = FleetView

    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"
        # The addresses of operations before those of rows, which for queues fit anything.
        self.routes = [*(route for route in self.routes if not _of_a_row(route)), *filter(_of_a_row, self.routes)]


def _of_a_row(route: Any) -> bool:
    return isinstance(route, Route) and route.detail


_REFUSAL = {
    "type": "object",
    "description": "Every refusal has this form.",
    "required": ["code", "detail"],
    "properties": {
        "code": {"type": "string", "description": "For programs.", "example": "invalid_request"},
        "detail": {"type": "string", "description": "For people.", "example": "comment: is needed"},
    },
}
_TAGS = {
    "workers": "The edge machines, for people and scripts.",
    "jobs": "What Airflow has queued, for people and scripts.",
    "queues": "Pause, resume, limit; for people and scripts.",
    "enrolment-tokens": "Connect machines; for people and scripts.",
    "changes": "Who changed what; for people and scripts.",
    "me": "Who is asking; for people and scripts.",
    "agent": "What agents speak.",
}
#: Status -> what it means, and an example.
_REFUSED = {
    "400": ("Not understood: a parameter is unknown, missing or wrong.", "invalid_request", "comment: is needed"),
    "401": (
        "The credential is missing, unknown, revoked or expired.",
        "bad_token",
        "The personal token is unknown, revoked or expired; make another in the admin.",
    ),
    "403": (
        "Not allowed: the detail names the permission that is needed.",
        "not_allowed",
        "You need the permission workers_app.operate_worker; see the groups in the admin.",
    ),
    "404": ("There is no such thing.", "not_found", "Not found."),
    "409": ("Not possible as things stand.", "skipped", "press-7: it is not in maintenance"),
    "503": (
        "The database is away, or there is no room; repeat it after `Retry-After` seconds.",
        "unavailable",
        "The control plane cannot reach its database; repeat the request.",
    ),
}
_INTRODUCTION = """\
`/api/v1/fleet/` is for people and scripts, `/api/v1/edge/` is what agents speak.

**Who calls.** A script shows a personal token, `Authorization: Bearer ecp_...`, which the admin makes; a browser shows
the admin's session. Each endpoint names the permission that it needs; the groups viewer, operator and administrator
have what their people need.

**Lists** come in pages and go on at `next`. What a list does not know is refused: a misspelt filter never returns
everything.

**Operations** are done to one (`POST workers/17/request_maintenance/`) or to up to 1,000 by their names
(`POST workers/request_maintenance/` with `names`). The answer says to whom it was done, and why the others were
skipped; one alone that is skipped is answered 409. Each is written into the record of changes.
"""


#: For SPECTACULAR_SETTINGS: a name for each set of words that is not alone under its field's name, or has several.
WORKER_STATES = [state.value for state in Shown]
JOB_STATES = [state.value for state in JobState]
REPORT_STATES = [state.value for state in ReportState]
REQUESTED = [wish.value for wish in Requested]
WISHED = [Requested.MAINTENANCE.value, Requested.ACTIVE.value]
REQUESTED_BY = [by.value for by in RequestedBy]


class DocumentedSchema(AutoSchema):
    """An endpoint's part of the documentation: also where it belongs, and the permission that it needs."""

    def get_tags(self) -> list[str]:
        return ["agent"] if self.path.startswith("/api/v1/edge/") else super().get_tags()

    def get_summary(self) -> str | None:
        words = {"list": "List", "retrieve": "Show one"}
        return super().get_summary() or words.get(getattr(self.view, "action", ""))

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        operation = super().get_operation(*args, **kwargs)
        permission = getattr(self.view, "permission", None)
        if operation is not None and permission:
            text = operation.get("description", "")
            operation["description"] = f"{text}\n\nNeeds the permission `{permission}`.".strip()
        return operation


def complete_schema(result: dict[str, Any], generator: Any, **_: Any) -> dict[str, Any]:
    """drf-spectacular's hook: the form of refusals, and what is said of each part of the API."""
    result["components"]["schemas"]["Refusal"] = _REFUSAL
    for path, methods in result["paths"].items():
        for method, operation in methods.items():
            for code, (description, word, said) in _REFUSED.items():
                if (code == "404" and "{" not in path) or (code == "409" and method == "get"):
                    continue
                answer = {
                    "schema": {"$ref": "#/components/schemas/Refusal"},
                    "example": {"code": word, "detail": said},
                }
                refusal = {"description": description, "content": {"application/json": answer}}
                operation["responses"].setdefault(code, refusal)
    result["info"]["description"] = _INTRODUCTION
    result["tags"] = [{"name": name, "description": description} for name, description in _TAGS.items()]
    return result
