"""The record of changes: what it keeps, that nobody alters it, and where a request comes from."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.test import RequestFactory

from tests.integration.people import OPS
from workers_app import audit
from workers_app.audit import Actor, Entry
from workers_app.models import Change

Make = Callable[..., Any]


def entry(**said: Any) -> Entry:
    return Entry(**{"action": "try", "kind": "worker", "id": 7, "name": "press-7"} | said)


def test_only_what_changed_is_kept(db: None) -> None:
    moment = datetime(2026, 11, 22, 18, 0, 0, 5, tzinfo=UTC)
    before = {"same": 1, "list": ["a"], "gone": True, "at": None}
    after = {"same": 1, "list": ["a", "b"], "new": None, "at": moment}
    audit.record([entry(before=before, after=after)], by=OPS, comment="why")
    (change,) = Change.objects.all()
    assert change.before == {"list": ["a"], "gone": True, "at": None}
    assert change.after == {"list": ["a", "b"], "at": "2026-11-22T18:00:00+00:00"}
    assert (change.subject_id, change.subject, change.comment) == ("7", "press-7", "why")


def test_nothing_to_record_is_no_row(db: None) -> None:
    audit.record([], by=OPS)
    assert not Change.objects.exists()


@pytest.mark.parametrize(
    "alter",
    [
        lambda: Change.objects.update(actor="nobody"),
        lambda: Change.objects.all().delete(),
        lambda: Change.objects.get().delete(),
        lambda: connection.cursor().execute("UPDATE change SET comment = 'forged'"),
        lambda: connection.cursor().execute("DELETE FROM change"),
    ],
)
def test_the_database_itself_refuses_to_alter_it(db: None, alter: Callable[[], Any]) -> None:
    audit.record([entry()], by=OPS)
    before = Change.objects.values().get()
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
        alter()
    assert Change.objects.values().get() == before


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (0, None, "10.0.0.9"),
        (0, "1.1.1.1", "10.0.0.9"),
        (1, None, "10.0.0.9"),
        (1, "", "10.0.0.9"),
        (1, " , ", "10.0.0.9"),
        (1, "1.1.1.1", "1.1.1.1"),
        (1, "6.6.6.6, 1.1.1.1", "1.1.1.1"),
        (2, "6.6.6.6, 1.1.1.1,10.0.0.1", "1.1.1.1"),
        (2, "1.1.1.1", "1.1.1.1"),
        (3, "6.6.6.6, 2001:db8::1, 10.0.0.1, 10.0.0.2", "2001:db8::1"),
    ],
)
def test_of_the_forwarded_addresses_as_many_are_believed_as_there_are_proxies(
    monkeypatch: pytest.MonkeyPatch, proxies: int, forwarded: str | None, expected: str
) -> None:
    monkeypatch.setattr(settings.EDGECONTROL, "proxies", proxies)
    headers = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    assert audit.client_address(RequestFactory().get("/", REMOTE_ADDR="10.0.0.9", **headers)) == expected


def test_somebody_behind_a_request_is_named_with_their_address() -> None:
    request = RequestFactory().get("/", REMOTE_ADDR="10.0.0.9")
    request.user = User(username="maria")
    assert Actor.of_request(request) == Actor(kind=audit.ActorKind.PERSON, name="maria", origin="10.0.0.9")


def test_a_command_is_by_whoever_runs_it() -> None:
    actor = Actor.of_command()
    assert (actor.kind, actor.name) == ("command", getpass.getuser())
    assert actor.origin


def test_an_account_without_a_name_is_told_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert Actor.of_command().name.isdigit()
