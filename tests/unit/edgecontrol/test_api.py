from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.http import Http404
from rest_framework import exceptions
from rest_framework.exceptions import ErrorDetail

from edgecontrol import api
from jobs_app.logs import WrongOffset
from workers_app.errors import Refusal


def kinds(kind: type[Refusal]) -> list[type[Refusal]]:
    return [kind for child in kind.__subclasses__() for kind in (child, *kinds(child))]


@pytest.fixture(autouse=True)
def _no_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "set_rollback", lambda: None)


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("Plain.", "Plain."),
        (["One.", "Two."], "One. Two."),
        ({"queues": ["Not a valid list."]}, "queues: Not a valid list."),
        ({"a": ["A."], "b": ["B."]}, "a: A. b: B."),
        ({"jobs": {"0": {"attempt": [ErrorDetail("This field is required.")]}}}, "attempt: This field is required."),
        ({}, ""),
    ],
)
def test_nested_details_become_one_sentence(detail: Any, expected: str) -> None:
    said = api.sentence(detail)
    assert said.endswith(expected)
    assert "\n" not in said
    assert "{" not in said


def test_every_refusal_has_its_own_status() -> None:
    assert {kind.__name__ for kind in kinds(Refusal) if kind.__module__.split(".")[0] != "tests"} == {
        kind.__name__ for kind in api.STATUS
    }


@pytest.mark.parametrize("kind", api.STATUS, ids=lambda kind: kind.__name__)
def test_a_refusal_is_answered_with_its_code_and_a_sentence(kind: type[Refusal]) -> None:
    answer = api.exception_handler(kind(), {})
    assert answer is not None
    assert answer.status_code == api.STATUS[kind]
    assert answer.data["code"] == kind.code
    assert len(answer.data["detail"]) > 20


def test_a_wrong_offset_says_where_to_go_on() -> None:
    answer = api.exception_handler(WrongOffset("The log has 7 bytes here.", size=7), {})
    assert answer is not None
    assert answer.data == {"code": "wrong_offset", "detail": "The log has 7 bytes here.", "size": 7}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (exceptions.ValidationError({"x": "Wrong."}), 400, "invalid_request"),
        (exceptions.ParseError(), 400, "invalid_request"),
        (exceptions.NotAuthenticated(), 401, "not_authenticated"),
        (PermissionDenied(), 403, "not_allowed"),
        (exceptions.PermissionDenied(), 403, "not_allowed"),
        (Http404(), 404, "not_found"),
        (exceptions.MethodNotAllowed("GET"), 405, "method_not_allowed"),
        (exceptions.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (exceptions.Throttled(wait=7), 429, "too_many_requests"),
        (OperationalError("gone"), 503, "unavailable"),
    ],
)
def test_the_frameworks_own_errors_have_the_same_shape(error: Exception, status: int, code: str) -> None:
    answer = api.exception_handler(error, {})
    assert answer is not None
    assert answer.status_code == status
    assert set(answer.data) == {"code", "detail"}
    assert answer.data["code"] == code
    assert isinstance(answer.data["detail"], str)


def test_whoever_should_come_again_is_told_when() -> None:
    throttled, away = (api.exception_handler(e, {}) for e in (exceptions.Throttled(wait=7), OperationalError()))
    assert throttled is not None
    assert away is not None
    assert (throttled["Retry-After"], away["Retry-After"]) == ("7", "5")


def test_an_unknown_error_is_left_to_be_logged_as_a_failure_of_the_server() -> None:
    assert api.exception_handler(RuntimeError("a bug"), {}) is None
