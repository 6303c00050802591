"""The record of changes as people read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs_app import queues
from tests.integration.people import OPS
from workers_app import audit, enrolment, wishes
from workers_app.audit import Actor, ActorKind
from workers_app.models import Change

Make = Callable[..., Any]
Staff = Callable[..., Client]
LIST = "/admin/workers_app/change/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def subjects(page: str) -> list[str]:
    """What was changed, newest first."""
    cells = re.findall(r'<td class="field-to .*?</td>', page, re.S)
    return [re.sub(r"<small.*|<[^>]*>", "", cell, flags=re.S).strip() for cell in cells]


def change(
    subject: str, *, by: Actor = OPS, action: str = "set_worker_queues", kind: str = "worker", **more: Any
) -> None:
    comment = more.pop("comment", "")
    audit.record(
        [audit.Entry(action=action, kind=kind, id=more.pop("id", 0), name=subject, **more)], by=by, comment=comment
    )


def rows_read(plan: Any) -> int:
    """Rows that a plan looks at, those included that it then leaves out."""
    removed = plan.get("Rows Removed by Filter", 0)
    return int(plan["Actual Rows"] + removed) + sum(rows_read(below) for below in plan.get("Plans", ()))


def test_a_change_says_who_when_what_before_after_and_why(ops: Client, make_worker: Make) -> None:
    worker = make_worker("press-7", queues=["press"])
    by = Actor(kind=ActorKind.COMMAND, name="anna", origin="control-1")
    wishes.request_maintenance([worker.pk], by=by, comment="new disk")
    wishes.add_queues([worker.pk], by=OPS, queues=["laser"])
    page = text(ops.get(LIST))
    for part in ("anna", "control-1", "Somebody with a shell", "Request maintenance", "new disk", "0 s ago"):
        assert part in page
    assert re.search(r"wanted</span> <span[^>]*>active</span>.*?<b[^>]*>maintenance</b>", page)
    assert re.search(r"queues</span> <span[^>]*>-</span>.*?<b[^>]*>press, laser</b>", page)
    assert f'href="/admin/workers_app/worker/{worker.pk}/change/">press-7</a>' in page


def test_a_subject_is_linked_only_while_it_exists_and_may_be_seen(
    ops: Client, staff: Staff, make_worker: Make, make_job: Make
) -> None:
    worker, job = make_worker("here"), make_job()
    token, _ = enrolment.create(name="to-come", by=OPS)
    wishes.set_concurrency([worker.pk], by=OPS, concurrency=3)
    queues.pause(["default"], by=OPS, comment="x")
    change("gone", id=99999999)
    change("odd", id="nonsense")
    change("a job", kind="job", id=job.pk)
    change("not a job", kind="job", id="nonsense")
    change("unknown kind", kind="weather")
    page = text(ops.get(LIST))
    for link in (
        f"worker/{worker.pk}/change/",
        f"enrolmenttoken/{token.pk}/change/",
        f"job/{job.pk}/change/",
    ):
        assert link in page
    assert page.count('/change/">') == len(re.findall(r'class="ec-link" href="[^"]*/change/">', page))
    assert "99999999" not in page
    looker = text(staff("view_change").get(LIST))
    assert "here" in looker
    assert 'class="ec-link"' not in looker


def test_the_record_costs_the_same_whatever_its_length(ops: Client) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            text(ops.get(LIST))
        return len(queries)

    change("first", kind="queue")
    few = cost()
    for number in range(120):
        change(f"later-{number}", kind="queue", by=Actor(kind=ActorKind.PERSON, name=f"person-{number}"))
    assert cost() == few
    with CaptureQueriesContext(connection) as queries:
        text(ops.get(LIST))
    assert not [query for query in queries if re.search(r'COUNT\(.*FROM "change"', query["sql"])]


@pytest.mark.parametrize("sought", ["rare", "of-no-one"])
def test_a_search_does_not_read_all_of_the_record_for_what_is_rare(ops: Client, sought: str) -> None:
    change("rare")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO change (actor_kind, actor, action, subject_kind, subject_id, subject, after)
            SELECT 'machine', 'm', 'register', 'worker', mod(number, 150), 'restless-' || mod(number, 150),
                   jsonb_build_object('boot_id', repeat('x', 100)) FROM generate_series(1, 60000) AS number
            """
        )
        cursor.execute("ANALYZE change")
        with CaptureQueriesContext(connection) as queries:
            page = text(ops.get(LIST, {"q": sought}))
        assert subjects(page) == [sought] * (sought == "rare")
        read = 0
        for query in queries.captured_queries:
            if 'FROM "change"' in query["sql"]:
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query['sql']}")
                answer = cursor.fetchone()[0]
                (plan,) = json.loads(answer) if isinstance(answer, str) else answer
                read += rows_read(plan["Plan"])
    assert read < 1_000


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("actor=anna", ["b"]),
        ("action=pause_queue", ["c"]),
        ("kind=queue", ["c"]),
        ("kind=worker&actor=ops", ["abc", "a"]),
        ("q=a", ["abc", "a"]),
        ("q=ABC", ["abc"]),
        ("q=bc", []),
        ("q=77", ["b"]),
        ("subject_kind__exact=worker&subject_id__exact=77", ["b"]),
        ("actor=%00", []),
        ("kind=nonsense", []),
        ("at_from=2000-01-01&at_to=2000-01-02", []),
        ("at_from=2000-01-01", ["abc", "c", "b", "a"]),
        ("at_from=nonsense&at_to=9999-12-31", ["abc", "c", "b", "a"]),
    ],
)
def test_filters_and_search_narrow_the_record(ops: Client, query: str, found: list[str]) -> None:
    change("a", id=1)
    change("b", id=77, by=Actor(kind=ActorKind.COMMAND, name="anna"))
    change("c", action="pause_queue", kind="queue", id="c")
    change("abc", id=2)
    assert subjects(text(ops.get(f"{LIST}?{query}"))) == found


def test_the_last_day_of_a_span_belongs_to_it(ops: Client) -> None:
    change("a")
    today = f"{Change.objects.get().at:%Y-%m-%d}"
    assert subjects(text(ops.get(f"{LIST}?at_from={today}&at_to={today}"))) == ["a"]


def test_the_filters_offer_who_did_something_and_everything_that_can_be_done(ops: Client) -> None:
    for name in ("zoe", "anna", "anna"):
        change("a", by=Actor(kind=ActorKind.PERSON, name=name))
    page = text(ops.get(LIST))
    assert page.index('<option value="anna">') < page.index('<option value="zoe">')
    for action in ("request_maintenance", "register", "create_enrolment_token"):
        assert f'<option value="{action}">' in page


def test_pages_follow_one_another_without_being_counted(ops: Client) -> None:
    for number in range(60):
        change(f"host-{number}")
    assert subjects(text(ops.get(LIST)))[0] == "host-59"
    assert subjects(text(ops.get(f"{LIST}?p=2"))) == [f"host-{number}" for number in range(9, -1, -1)]
    assert subjects(text(ops.get(f"{LIST}?p=3"))) == []


def test_whatever_was_written_is_shown_as_text(ops: Client) -> None:
    bad = "<script>alert(1)</script>"
    change(
        bad,
        by=Actor(kind=ActorKind.MACHINE, name=bad, origin=bad),
        action=bad,
        kind=bad,
        before={bad: bad},
        after={bad: [bad, "x" * 500]},
        comment=bad,
    )
    page = text(ops.get(LIST))
    assert bad not in page
    assert page.count("&lt;script&gt;") >= 6
    # Long values are cut, and whole for those who point at them.
    assert re.search(r'<b title="[^"]*x{500}">[^<]{1,200}</b>', page)


def test_the_record_is_only_read(ops: Client, staff: Staff) -> None:
    change("a")
    pk = Change.objects.get().pk
    assert "a" in text(ops.get(f"{LIST}{pk}/change/"))
    ops.post(f"{LIST}{pk}/change/", {"actor": "somebody else"})
    ops.post(LIST, {"action": "delete_selected", "_selected_action": [pk], "post": "yes"})
    assert Change.objects.get().actor == "ops"
    assert ops.get(f"{LIST}add/").status_code == 403
    assert ops.post(f"{LIST}{pk}/delete/", {"post": "yes"}).status_code == 403
    assert staff("view_worker").get(LIST).status_code == 403
