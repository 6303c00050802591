"""Pause, resume and limit queues: what is written down, and who looks again because of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

import psycopg
import pytest
from django.utils import timezone

from edgecontrol.hub import Hub, Poll, hub
from jobs_app import operations, queues
from jobs_app.models import Job, Queue
from tests.integration.people import OPS
from workers_app.models import Change, Worker
from workers_app.outcomes import Outcome

Make = Callable[..., Any]
Do = Callable[[list[str]], Outcome]
#: Well below the 15 s after which a poll looks by itself.
SOON = 8

pause = partial(queues.pause, by=OPS, comment="laser")
resume = partial(queues.resume, by=OPS, comment="mended")


def limit(number: int | None) -> Do:
    return partial(queues.set_limit, by=OPS, concurrency=number)


PAUSED = {"paused": True, "pause_comment": "laser", "paused_by": "otto"}
CHANGES: list[tuple[Do, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    (pause, {}, {"paused": False, "pause_comment": ""}, {"paused": True, "pause_comment": "laser"}, "laser"),
    (pause, PAUSED | {"pause_comment": "old"}, {"pause_comment": "old"}, {"pause_comment": "laser"}, "laser"),
    (resume, PAUSED, {"paused": True, "pause_comment": "laser"}, {"paused": False, "pause_comment": ""}, "mended"),
    (limit(3), {}, {"concurrency_limit": None}, {"concurrency_limit": 3}, ""),
    (limit(None), {"concurrency_limit": 3}, {"concurrency_limit": 3}, {"concurrency_limit": None}, ""),
]


@pytest.mark.parametrize(("do", "columns", "before", "after", "comment"), CHANGES)
def test_it_is_done_and_recorded(db: None, do: Do, columns: Any, before: Any, after: Any, comment: str) -> None:
    Queue.objects.create(name="press", **columns)
    Queue.objects.create(name="other", **columns)
    assert do(["press"]) == Outcome(done=["press"])
    queue, other = Queue.objects.get(pk="press"), Queue.objects.get(pk="other")
    assert {name: getattr(queue, name) for name in after} == after
    assert {name: getattr(other, name) for name in before} == before
    (change,) = Change.objects.all()
    assert (change.before, change.after, change.comment) == (before, after, comment)
    assert (change.subject_kind, change.subject_id, change.subject) == ("queue", "press", "press")
    assert (change.actor, change.origin) == ("ops", "127.0.0.1")
    assert change.action in {operation.name for operation in operations.QUEUES}


def test_who_paused_it_and_when_is_known_until_it_is_resumed(db: None) -> None:
    Queue.objects.create(name="press")
    start = timezone.now()
    pause(["press"])
    queue = Queue.objects.get()
    assert queue.paused_by == "ops"
    assert queue.paused_at is not None
    assert abs((queue.paused_at - start).total_seconds()) < 3600
    resume(["press"])
    queue = Queue.objects.get()
    assert (queue.paused_by, queue.paused_at) == ("", None)


@pytest.mark.parametrize(
    ("do", "columns", "why"),
    [
        (pause, PAUSED, "it is paused already, with this comment"),
        (resume, {}, "it is not paused"),
        (limit(3), {"concurrency_limit": 3}, "it has that limit already"),
        (limit(None), {}, "it has no limit"),
    ],
)
def test_what_need_not_be_done_is_skipped_with_the_reason_and_leaves_no_trace(
    db: None, do: Do, columns: Any, why: str
) -> None:
    Queue.objects.create(name="press", **columns)
    before = Queue.objects.values().get()
    assert do(["press"]) == Outcome(skipped=[("press", why)])
    assert Queue.objects.values().get() == before
    assert not Change.objects.exists()


def test_of_many_queues_some_are_done_and_some_are_skipped(db: None) -> None:
    Queue.objects.remember(["a", "b/c"])
    pause(["a"])
    outcome = resume(["b/c", "a", "nobody's"])
    assert outcome == Outcome(done=["a"], skipped=[("b/c", "it is not paused")])


@pytest.fixture
def heard(second_connection: psycopg.Connection[Any]) -> Callable[[], list[Any]]:
    """What was announced since the fixture was made."""
    second_connection.autocommit = True
    second_connection.execute("LISTEN edgecontrol_jobs")

    def heard() -> list[Any]:
        # The last one tells that all before it have come.
        second_connection.execute("SELECT pg_notify('edgecontrol_jobs', 'end')")
        said = []
        for notice in second_connection.notifies(timeout=10):
            if notice.payload == "end":
                break
            said.append(notice)
        return said

    return heard


def test_whoever_serves_a_queue_looks_again_and_nobody_else(heard: Callable[[], list[Any]]) -> None:
    Queue.objects.remember(["a", "b"])
    own = Hub()

    def poll(number: int, queues: list[str] | None) -> Poll:
        worker = Worker(pk=number, name=str(number), queues=queues, team_name="")
        parked = Poll(own, worker=worker, free_slots=0, runs=lambda queue: True)
        own._polls[parked] = None
        return parked

    serves_a, serves_b, serves_all, serves_none = poll(1, ["a"]), poll(2, ["b"]), poll(3, None), poll(4, [])
    pause(["a"])
    for notice in heard():
        own.hear(notice.channel, notice.payload)
    woken = [each.woken.is_set() for each in (serves_a, serves_b, serves_all, serves_none)]
    assert woken == [True, False, True, False]


def test_nothing_is_announced_where_nothing_was_done(heard: Callable[[], list[Any]]) -> None:
    Queue.objects.remember(["a"])
    resume(["a", "nobody's"])
    assert heard() == []


def test_as_many_queues_as_there_are_can_be_paused_at_once(heard: Callable[[], list[Any]]) -> None:
    names = [f"{number:04}-" + "\u00fc" * 60 for number in range(400)]
    Queue.objects.remember(names)
    assert pause(names).done == names
    said = [json.loads(notice.payload)["queues"] for notice in heard()]
    assert sorted(name for each in said for name in each) == names


@pytest.fixture
def ended() -> Iterator[None]:
    yield
    for poll in list(hub._polls):
        poll.superseded = True
        poll.woken.set()


@pytest.mark.parametrize("kind", ["paused", "limited"])
def test_a_parked_agent_gets_the_jobs_of_a_queue_as_soon_as_it_may(
    transactional_db: None, agent: Make, make_job: Make, in_thread: Callable[..., Future[Any]], ended: None, kind: str
) -> None:
    job = make_job(queue="press")
    if kind == "paused":
        pause(["press"])
    else:
        holder = agent(queues=["press"])
        make_job(queue="press", worker=holder.worker)
        limit(1)(["press"])
    answer = in_thread(agent(queues=["press"]).claim, wait=50)
    while not hub._parked:
        assert not answer.done(), answer.result().content
        threading.Event().wait(0.005)
    if kind == "paused":
        resume(["press"])
    else:
        limit(2)(["press"])
    claimed = answer.result(timeout=SOON).json()["jobs"]
    assert [each["id"] for each in claimed] == [str(job.pk)]
    assert Job.objects.get(pk=job.pk).state == "claimed"
