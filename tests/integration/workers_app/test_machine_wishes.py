"""What a machine wants of itself, as its agent tells it: heard once, recorded, and never against a later wish."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from agent.wishes import Wanted, Wish, after
from tests.integration.commandline import manage
from tests.integration.people import OPS
from workers_app import wishes
from workers_app.admin_words import wish as in_admin
from workers_app.models import Change, Worker

Make = Callable[..., Any]


def a_wish(requested: str = "maintenance", *, by: str = "machine", **more: Any) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "requested": requested,
        "comment": "new belt",
        "by": by,
        "age_seconds": 0.0,
    } | more


def heard(answer: Any) -> tuple[str, str, str, str]:
    body = answer.json()
    assert answer.status_code == 200, body
    return body["requested"], body["requested_by"], body["requested_by_name"], body["comment"]


def fresh(caller: Any) -> Worker:
    return Worker.objects.get(pk=caller.worker.pk)


@pytest.mark.parametrize("request_name", ["heartbeat", "register"])
def test_a_wish_of_the_machine_is_done_recorded_and_acknowledged(agent: Make, request_name: str) -> None:
    caller, wish = agent(name="press-7"), a_wish()
    if request_name == "heartbeat":
        assert caller.register().status_code == 200
    answer = getattr(caller, request_name)(wish=wish)
    assert heard(answer) == ("maintenance", "machine", "press-7", "new belt")
    assert answer.json()["wish_taken"] == wish["id"]
    row = fresh(caller)
    assert (row.requested, row.requested_by, row.requested_by_kind) == ("maintenance", "press-7", "machine")
    assert answer.json()["revision"] == row.revision, "else the agent would ask once more for the same"
    change = Change.objects.get(action="request_maintenance")
    assert (change.actor_kind, change.actor, change.subject, change.comment) == (
        "machine",
        "press-7",
        "press-7",
        "new belt",
    )
    assert change.after == {"requested": "maintenance", "requested_comment": "new belt"}


def test_the_end_of_it_is_done_and_recorded_too_whoever_began_it(agent: Make) -> None:
    caller = agent(name="press-7")
    wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    assert heard(caller.heartbeat(wish=a_wish("active")))[:2] == ("active", "machine")
    assert Change.objects.get(action="exit_maintenance").actor_kind == "machine"


def test_the_same_wish_again_changes_nothing_even_after_somebody_else_wished_otherwise(agent: Make) -> None:
    caller, wish = agent(), a_wish()
    caller.heartbeat(wish=wish)
    wishes.exit_maintenance([caller.worker.pk], by=OPS)
    answer = caller.heartbeat(wish=wish)
    assert heard(answer)[:3] == ("active", "operator", "ops")
    assert answer.json()["wish_taken"] == wish["id"]
    assert Change.objects.filter(action="request_maintenance").count() == 1


def test_a_wish_from_before_a_later_one_of_an_operator_changes_nothing(agent: Make) -> None:
    caller = agent()
    wishes.exit_maintenance([caller.worker.pk], by=OPS)
    wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    wish = a_wish("active", age_seconds=3600)  # had while the machine was cut off
    answer = caller.heartbeat(wish=wish)
    assert heard(answer) == ("maintenance", "operator", "ops", "disk")
    assert answer.json()["wish_taken"] == wish["id"]


def test_a_wish_that_was_had_while_cut_off_counts_from_then(agent: Make) -> None:
    caller = agent()
    caller.heartbeat(wish=a_wish(age_seconds=7200))
    requested_at = fresh(caller).requested_at
    assert requested_at is not None
    assert timedelta(minutes=119) < timezone.now() - requested_at < timedelta(minutes=121)
    # The next of the two that an agent may have to tell is younger than the first, and older than its arrival.
    assert heard(caller.heartbeat(wish=a_wish("active", age_seconds=3600)))[0] == "active"


@pytest.mark.parametrize("asked_for", ["nothing", "operator", "machine", "automatic", "shutdown"])
@pytest.mark.parametrize("by", ["machine", "automatic"])
@pytest.mark.parametrize("requested", ["maintenance", "active"])
def test_the_agent_obeys_at_once_by_the_rule_by_which_the_control_plane_decides(
    agent: Make, asked_for: str, by: str, requested: str
) -> None:
    caller = agent()
    if asked_for == "operator":
        wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    elif asked_for == "shutdown":
        wishes.shut_down([caller.worker.pk], by=OPS)
    elif asked_for != "nothing":
        caller.heartbeat(wish=a_wish(by=asked_for))
    row = fresh(caller)
    before = Wanted(requested=row.requested, by=row.requested_by_kind, comment=row.requested_comment)
    obeyed = after(before, Wish(requested=requested, comment="new", by=by))
    decided = heard(caller.heartbeat(wish=a_wish(requested, by=by, comment="new")))
    assert (decided[0], decided[1], decided[3]) == (obeyed.requested, obeyed.by, obeyed.comment)
    if by == "automatic" and asked_for in ("operator", "machine", "shutdown"):
        assert decided[0] == before.requested, "what happens by itself never overrules what somebody asked for"


@pytest.mark.parametrize(
    "wish",
    [
        None,
        "x",
        [],
        {},
        a_wish("shutdown"),
        a_wish(by="operator"),
        a_wish(id="x"),
        a_wish(age_seconds=-1),
        a_wish(age_seconds="NaN"),
        a_wish(comment={"a": 1}),
    ],
)
def test_a_wish_that_makes_no_sense_costs_nobody_a_lease(agent: Make, wish: Any) -> None:
    caller = agent()
    answer = caller.heartbeat(wish=wish)
    assert heard(answer)[0] == "active"
    assert answer.json()["wish_taken"] is None


def test_a_wish_of_any_age_is_heard(agent: Make) -> None:
    caller, wish = agent(), a_wish(age_seconds=1e300)
    assert caller.heartbeat(wish=wish).json()["wish_taken"] == wish["id"]


def test_a_request_that_comes_late_does_not_make_a_skipped_wish_younger(agent: Make) -> None:
    caller, wish = agent(), a_wish("active", age_seconds=3600)
    wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    assert heard(caller.heartbeat(wish=wish))[0] == "maintenance"
    assert heard(caller.heartbeat(wish={**wish, "age_seconds": 0.0}))[0] == "maintenance"


def test_an_agent_that_knows_no_wishes_is_answered_as_ever(agent: Make) -> None:
    caller = agent()
    assert heard(caller.register())[0] == "active"
    assert heard(caller.heartbeat())[0] == "active"


def test_a_comment_is_made_storable(agent: Make) -> None:
    caller = agent()
    caller.heartbeat(wish=a_wish(comment="a\0b" + "x" * 5000))
    assert fresh(caller).requested_comment == "a\ufffdb" + "x" * 997


@pytest.mark.parametrize(("by", "words"), [("machine", "somebody at the machine"), ("automatic", "itself (automatic)")])
def test_admin_api_and_commands_say_whose_wish_it_is(agent: Make, ops: Any, by: str, words: str) -> None:
    caller = agent(name="press-7")
    caller.heartbeat(wish=a_wish(by=by))
    assert words in in_admin(fresh(caller))
    assert words in ops.get("/admin/workers_app/worker/").content.decode()
    assert words in ops.get(f"/admin/workers_app/worker/{caller.worker.pk}/change/").content.decode()
    (row,) = ops.get("/api/v1/fleet/workers/").json()["results"]
    assert (row["by"], row["by_kind"]) == ("press-7", by)
    assert f"maintenance by {words}: new belt" in manage("list_workers").out


def test_an_operators_wish_says_so(agent: Make) -> None:
    caller = agent()
    wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    assert heard(caller.heartbeat()) == ("maintenance", "operator", "ops", "disk")
    assert "operator ops" in in_admin(fresh(caller))
