"""A worker host made by a script before its machine has called, and what the API says of who is asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from rest_framework.test import APIClient

from tests.integration.fleet import FLEET, Fleet, good, member, refused
from workers_app import admission, auth, enrolment
from workers_app.models import Change, PersonalToken, Worker, WorkerToken

Make = Callable[..., Any]


@pytest.fixture
def fleet(http: None) -> Fleet:
    return Fleet(member("administrator", name="maria"))


class TestMakeAWorker:
    def test_a_worker_is_made_with_its_token_and_serves_every_queue(self, fleet: Fleet) -> None:
        answer = fleet.post("workers/", name="press-7")
        made = good(answer, 201)
        worker = auth.recognise(made["worker_token"])
        assert (worker.name, worker.effective_queues, worker.team_name) == ("press-7", None, "")
        assert (worker.concurrency_override, worker.requested) == (None, "active")
        assert (made["id"], made["name"], made["state"]) == (worker.pk, "press-7", "offline")
        assert answer["Cache-Control"] == "no-store"
        assert WorkerToken.objects.get().expires_at is None

    def test_all_that_is_known_of_it_holds_from_the_start_and_is_recorded(self, fleet: Fleet) -> None:
        said = {"queues": ["floor", "paint"], "team": "print", "concurrency": 4, "maintenance": "not moved yet"}
        made = good(fleet.post("workers/", name="press-7", **said, with_token=False), 201)
        worker = Worker.objects.get(pk=made["id"])
        assert worker.allowed_queues == worker.effective_queues == ["floor", "paint"]
        assert (worker.team_name, worker.effective_concurrency) == ("print", 4)
        assert (worker.requested, worker.requested_comment, worker.requested_by) == (
            "maintenance",
            "not moved yet",
            "maria",
        )
        assert made["state"] == worker.state == "offline maintenance"
        assert made["worker_token"] is None
        assert not worker.tokens.exists()
        changes = list(Change.objects.filter(subject="press-7").order_by("pk"))
        assert [change.action for change in changes] == [
            "create_worker",
            "set_worker_concurrency",
            "request_maintenance",
        ]
        assert {change.actor for change in changes} == {"maria"}

    def test_a_comment_may_be_empty_and_queues_may_be_none(self, fleet: Fleet) -> None:
        good(fleet.post("workers/", name="a", maintenance="", queues=[], with_token=False), 201)
        worker = Worker.objects.get()
        assert (worker.requested, worker.effective_queues) == ("maintenance", [])

    def test_its_machine_can_be_enrolled_later_and_keeps_all_that(self, fleet: Fleet) -> None:
        good(fleet.post("workers/", name="press-7", queues=["floor"], concurrency=4, with_token=False), 201)
        token = good(fleet.post("enrolment-tokens/", name="press-7", replace=True), 201)["enrolment_token"]
        worker = enrolment.enrol(token=token, key="0" * 12, digest="0" * 64)
        assert (worker.allowed_queues, worker.concurrency_override) == (["floor"], 4)

    def test_a_token_may_expire(self, fleet: Fleet) -> None:
        good(fleet.post("workers/", name="a", token_days=2), 201)
        token = WorkerToken.objects.get()
        assert token.expires_at is not None
        assert round((token.expires_at - token.created_at).total_seconds() / 86400) == 2

    def test_a_name_that_is_taken_changes_nothing(self, fleet: Fleet, make_worker: Make) -> None:
        make_worker("press-7")
        assert "exists already" in refused(fleet.post("workers/", name="press-7", concurrency=4), 409, "name_taken")
        assert Worker.objects.get().concurrency_override is None
        assert not WorkerToken.objects.exists()

    def test_it_is_all_or_nothing(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(**_: Any) -> str:
            raise RuntimeError

        monkeypatch.setattr(admission.auth, "issue", away)
        assert fleet.post("workers/", name="press-7", maintenance="x").status_code == 500
        assert not Worker.objects.exists()
        assert not Change.objects.filter(subject="press-7").exists()

    @pytest.mark.parametrize(
        ("said", "because"),
        [
            ({}, "name"),
            ({"name": ""}, "name"),
            ({"name": "line\tbreak"}, "printable"),
            ({"name": "a", "queue": ["a"]}, "did you mean queues?"),
            ({"name": "a", "queues": ["q" * 257]}, "queues"),
            ({"name": "a", "concurrency": 0}, "concurrency: must be a whole number"),
            ({"name": "a", "maintenance": "x" * 1001}, "maintenance"),
            ({"name": "a", "token_days": 0}, "token_days"),
        ],
        ids=str,
    )
    def test_what_cannot_be_used_is_named(self, fleet: Fleet, said: dict[str, Any], because: str) -> None:
        assert because in refused(fleet.post("workers/", said), 400, "invalid_request")
        assert not Worker.objects.exists()

    def test_it_needs_permissions_that_an_operator_does_not_have(self, http: None) -> None:
        operator = Fleet(member("operator"))
        assert "workers_app.add_worker" in refused(operator.post("workers/", name="a"), 403, "not_allowed")
        operator.user.user_permissions.add(Permission.objects.get(codename="add_worker"))
        assert "workers_app.add_workertoken" in refused(operator.post("workers/", name="a"), 403, "not_allowed")
        assert not Worker.objects.exists()
        good(operator.post("workers/", name="a", with_token=False), 201)


class TestWhoIsAsking:
    def test_a_token_learns_whose_it_is_and_what_it_may(self, http: None) -> None:
        fleet = Fleet(member("operator", name="maria"))
        said = good(fleet.get("me"))
        assert (said["user"], said["groups"]) == ("maria", ["operator"])
        assert "workers_app.operate_worker" in said["permissions"]
        assert "workers_app.remove_worker" not in said["permissions"]
        assert all(name.startswith(("workers_app.", "jobs_app.")) for name in said["permissions"])
        key = PersonalToken.objects.get().key
        assert said["token"] == {"key": key, "name": "script", "expires_at": None}

    def test_a_session_has_no_token(self, http: None) -> None:
        client = APIClient()
        client.force_login(member("viewer"))
        assert good(client.get(f"{FLEET}me"))["token"] is None

    def test_a_parameter_is_refused(self, fleet: Fleet) -> None:
        refused(fleet.get("me", user="x"), 400, "invalid_request")
