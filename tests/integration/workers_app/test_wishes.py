"""What operators want of workers, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from django.db import connection, transaction
from django.utils import timezone

from edgecontrol.housekeeper import Housekeeper
from tests.integration.people import OPS
from workers_app import auth, enrolment, notices, operations, registry, wishes
from workers_app.models import Change, Worker, WorkerToken
from workers_app.outcomes import Outcome
from workers_app.states import Reported

Make = Callable[..., Any]
Do = Callable[[Sequence[int]], Outcome]

maintain = partial(wishes.request_maintenance, by=OPS, comment="disk")
note = partial(wishes.update_maintenance_comment, by=OPS, comment="still")
leave = partial(wishes.exit_maintenance, by=OPS)
shut_down = partial(wishes.shut_down, by=OPS, comment="move")
remove = partial(wishes.remove, by=OPS, comment="sold")
revoke = partial(auth.revoke, by=OPS, comment="stolen")


def add(*names: str) -> Do:
    return partial(wishes.add_queues, by=OPS, queues=list(names))


def take(*names: str) -> Do:
    return partial(wishes.remove_queues, by=OPS, queues=list(names))


def serve(*names: str) -> Do:
    return partial(wishes.set_queues, by=OPS, queues=list(names) or None)


def slots(number: int | None) -> Do:
    return partial(wishes.set_concurrency, by=OPS, concurrency=number)


RESTS = {"requested": "maintenance", "requested_comment": "disk", "state": "maintenance request"}
GONE = {"state": "offline", "reported": "offline"}

#: What is done to a worker with these columns, and what the record says that it changed from and to.
CHANGES: list[tuple[Do, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (
        maintain,
        {},
        {"requested": "active", "requested_comment": ""},
        {"requested": "maintenance", "requested_comment": "disk"},
    ),
    (note, RESTS, {"requested_comment": "disk"}, {"requested_comment": "still"}),
    (
        leave,
        RESTS,
        {"requested": "maintenance", "requested_comment": "disk"},
        {"requested": "active", "requested_comment": ""},
    ),
    (
        shut_down,
        {},
        {"requested": "active", "requested_comment": ""},
        {"requested": "shutdown", "requested_comment": "move"},
    ),
    (add("b", "c"), {"queues": ["a", "b"]}, {"queues_override": None}, {"queues_override": ["a", "b", "c"]}),
    (add("z"), {"queues": ["a"], "allowed_queues": ["a"]}, {"queues_override": None}, {"queues_override": ["a", "z"]}),
    (add("b"), {"queues": []}, {"queues_override": None}, {"queues_override": ["b"]}),
    (add("b"), {"queues_override": ["a"]}, {"queues_override": ["a"]}, {"queues_override": ["a", "b"]}),
    (take("a", "x"), {"queues": ["a", "b"]}, {"queues_override": None}, {"queues_override": ["b"]}),
    (take("a"), {"queues_override": ["a"]}, {"queues_override": ["a"]}, {"queues_override": []}),
    (serve("x"), {"queues": ["a"]}, {"queues_override": None}, {"queues_override": ["x"]}),
    (serve("a"), {"queues": ["a"]}, {"queues_override": None}, {"queues_override": ["a"]}),
    (serve(), {"queues_override": ["a"]}, {"queues_override": ["a"]}, {"queues_override": None}),
    (slots(3), {}, {"concurrency_override": None}, {"concurrency_override": 3}),
    (slots(None), {"concurrency_override": 3}, {"concurrency_override": 3}, {"concurrency_override": None}),
]

SKIPPED: list[tuple[Do, dict[str, Any], str]] = [
    (note, {}, "it is not in maintenance"),
    (note, {"requested": "shutdown"}, "it is not in maintenance"),
    (leave, {}, "it is not in maintenance"),
    (leave, {"requested": "shutdown"}, "it is not in maintenance"),
    (shut_down, GONE, "it is offline already"),
    (shut_down, {"state": "unknown"}, "it is unknown already"),
    (shut_down, {"state": "offline maintenance"}, "it is offline maintenance already"),
    (remove, {"state": "running"}, "it is running; only an offline or silent worker can be removed"),
    (add("a"), {"queues": None}, "it serves every queue already"),
    (add("a"), {"queues": ["a", "b"]}, "it serves them already"),
    (take("a"), {"queues": None}, "it serves every queue; set its queues first"),
    (take("z"), {"queues": ["a"]}, "it does not serve them"),
    (take("z"), {"queues": ["z"], "allowed_queues": ["a"]}, "it does not serve them"),
    (serve("a"), {"queues_override": ["a"]}, "it has exactly these already"),
    (serve(), {}, "its agent decides already"),
    (slots(3), {"concurrency_override": 3}, "it has that already"),
    (slots(None), {}, "its agent decides already"),
    (revoke, {}, "it has no token to revoke"),
]


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


class TestWishes:
    def test_a_wish_is_noted_with_who_when_and_why_and_announced(
        self, make_worker: Make, second_connection: psycopg.Connection[Any]
    ) -> None:
        second_connection.autocommit = True
        second_connection.execute("LISTEN edgecontrol_worker")
        worker, other = make_worker(reported="running", state="running"), make_worker()
        assert wishes.request_maintenance([worker.pk], by=OPS, comment="disk").done == [worker.name]
        row = fresh(worker)
        assert (row.requested, row.requested_by, row.requested_comment) == ("maintenance", "ops", "disk")
        assert (row.state, row.revision) == ("maintenance request", worker.revision + 1)
        assert row.requested_at is not None
        assert fresh(other).requested == "active"
        (notice,) = second_connection.notifies(timeout=5, stop_after=1)
        assert notice.payload == f'{{"worker": {worker.pk}}}'

    def test_the_last_wish_wins(self, make_worker: Make) -> None:
        worker = make_worker()
        wishes.shut_down([worker.pk], by=OPS)
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        wishes.exit_maintenance([worker.pk], by=OPS)
        assert (fresh(worker).requested, fresh(worker).state) == ("active", "idle")

    def test_a_wish_does_not_bring_a_silent_worker_back_to_life(self, make_worker: Make) -> None:
        worker = make_worker(state="unknown", reported="running")
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        assert fresh(worker).state == "offline maintenance"
        wishes.exit_maintenance([worker.pk], by=OPS)
        assert fresh(worker).state == "unknown"

    def test_unknown_workers_are_not_counted(self, db: None) -> None:
        assert wishes.shut_down([-1], by=OPS) == Outcome()


class TestEveryWish:
    @pytest.mark.parametrize(("do", "columns", "before", "after"), CHANGES)
    def test_it_is_done_recorded_and_told_to_the_agent(
        self, make_worker: Make, do: Do, columns: Any, before: Any, after: Any
    ) -> None:
        worker, other = make_worker(**columns), make_worker(**columns)
        assert do([worker.pk]) == Outcome(done=[worker.name])
        row = fresh(worker)
        assert {name: getattr(row, name) for name in after} == after
        assert row.revision == worker.revision + 1
        assert fresh(other).revision == other.revision
        (change,) = Change.objects.all()
        assert (change.before, change.after) == (before, after)
        assert (change.subject_kind, change.subject_id, change.subject) == ("worker", str(worker.pk), worker.name)
        assert (change.actor_kind, change.actor, change.origin) == ("person", "ops", "127.0.0.1")
        assert change.action in {operation.name for operation in operations.WORKERS}

    @pytest.mark.parametrize(("do", "columns", "why"), SKIPPED)
    def test_what_cannot_or_need_not_be_done_is_skipped_with_the_reason_and_leaves_no_trace(
        self, make_worker: Make, do: Do, columns: Any, why: str
    ) -> None:
        worker = make_worker(**columns)
        before = Worker.objects.filter(pk=worker.pk).values().get()
        assert do([worker.pk]) == Outcome(skipped=[(worker.name, why)])
        assert Worker.objects.filter(pk=worker.pk).values().get() == before
        assert not Change.objects.exists()

    def test_of_many_workers_some_are_done_and_some_are_skipped(self, make_worker: Make) -> None:
        there, rests, gone = make_worker("there"), make_worker("rests", **RESTS), make_worker("gone", **GONE)
        outcome = shut_down([gone.pk, there.pk, rests.pk, -1])
        assert outcome == Outcome(done=["there", "rests"], skipped=[("gone", "it is offline already")])
        assert Change.objects.count() == 2

    def test_many_at_once_each_become_what_they_would_become_alone(self, make_worker: Make) -> None:
        shown = {"idle": "maintenance request", "maintenance": "maintenance mode", "terminating": "terminating"}
        workers = [make_worker(reported=reported, state="idle") for reported in (*shown, *shown)]
        maintain([worker.pk for worker in workers])
        assert [fresh(worker).state for worker in workers] == [*shown.values(), *shown.values()]
        lists = [["a"], ["b"], ["a", "b"], ["a"]]
        served = [make_worker(queues=names) for names in lists]
        add("c")([worker.pk for worker in served])
        assert [fresh(worker).queues_override for worker in served] == [[*names, "c"] for names in lists]

    def test_a_whole_fleet_is_a_few_statements(
        self, make_worker: Make, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        Worker.objects.bulk_create(Worker(name=f"w{number}") for number in range(500))
        ids = list(Worker.objects.values_list("pk", flat=True))
        with django_assert_max_num_queries(8):
            assert len(maintain(ids).done) == 500

    @pytest.mark.parametrize(
        ("requested", "do"), [("active", maintain), ("maintenance", shut_down), ("shutdown", maintain)]
    )
    def test_a_new_wish_replaces_the_whole_of_the_old_one(self, make_worker: Make, requested: str, do: Do) -> None:
        until = timezone.now() + timedelta(hours=1)
        worker = make_worker(requested=requested, requested_comment="old", requested_by="otto", requested_until=until)
        do([worker.pk])
        row = fresh(worker)
        assert (row.requested_by, row.requested_until) == ("ops", None)
        assert row.requested_comment in ("disk", "move")
        assert row.requested_at is not None

    def test_a_heartbeat_under_way_does_not_overwrite_a_wish(self, make_worker: Make) -> None:
        worker = make_worker()
        stale = fresh(worker)
        maintain([worker.pk])
        registry.heartbeat(
            worker=stale, reported=Reported.RUNNING, jobs_active=1, queues=None, concurrency=8, sysinfo=None
        )
        row = fresh(worker)
        assert (row.requested, row.reported, row.state) == ("maintenance", "running", "maintenance request")

    def test_two_wishes_at_once_come_one_after_the_other(
        self,
        make_worker: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        worker = make_worker(queues=["a"])
        second_connection.execute("SELECT 1 FROM worker WHERE id = %s FOR UPDATE", [worker.pk])
        wanted = [in_thread(add(name), [worker.pk]) for name in ("b", "c")]
        blocked(2)
        second_connection.rollback()
        assert [each.result(timeout=20).done for each in wanted] == [[worker.name]] * 2
        assert sorted(fresh(worker).queues_override or []) == ["a", "b", "c"]

    def test_what_is_not_done_after_all_is_not_recorded(self, make_worker: Make) -> None:
        worker = make_worker()
        with transaction.atomic():
            maintain([worker.pk])
            transaction.set_rollback(True)
        assert fresh(worker).requested == "active"
        assert not Change.objects.exists()


class TestEndOfMaintenance:
    def test_the_housekeeper_ends_it_when_its_time_has_come_and_says_so(
        self, make_worker: Make, long_ago: Make
    ) -> None:
        due, later, open_end, ends = (make_worker(name) for name in ("due", "later", "open end", "ends"))
        for worker in (due, later):
            maintain([worker.pk], until=timezone.now() + timedelta(hours=1))
        maintain([open_end.pk])
        shut_down([ends.pk], until=timezone.now() + timedelta(hours=1))
        for worker in (due, ends):
            long_ago(worker, requested_until=1)
        Housekeeper().step()
        assert [fresh(worker).requested for worker in (due, later, open_end, ends)] == [
            "active",
            "maintenance",
            "maintenance",
            "shutdown",
        ]
        row = fresh(due)
        assert (row.state, row.requested_until, row.requested_comment) == ("idle", None, "")
        assert row.revision == due.revision + 1
        change = Change.objects.get(action="exit_maintenance")
        assert (change.actor_kind, change.actor, change.subject) == ("automatic", "control plane", "due")
        assert change.comment == "its end time has come"
        assert change.before["requested_until"]

    def test_more_time_that_somebody_asks_for_at_the_same_moment_is_given(
        self,
        make_worker: Make,
        long_ago: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        worker = make_worker("due")
        maintain([worker.pk], until=timezone.now() + timedelta(hours=1))
        long_ago(worker, requested_until=1)
        second_connection.execute("UPDATE worker SET requested_until = now() + interval '1 hour'")
        ended = in_thread(wishes.end_due_maintenance)
        blocked(1)
        second_connection.commit()
        assert ended.result(timeout=20).done == []
        assert fresh(worker).requested == "maintenance"


class TestRemove:
    def test_its_credentials_go_with_it_and_the_record_keeps_what_it_was(self, make_worker: Make) -> None:
        token, text = enrolment.create(name="press-7", by=OPS, allowed_queues=["a"], team_name="print")
        worker = enrolment.enrol(token=text, key="0" * 12, digest="0" * 64)
        assert remove([worker.pk]).done == ["press-7"]
        assert not WorkerToken.objects.exists()
        token.refresh_from_db()
        assert token.worker is None
        change = Change.objects.get(action="remove_worker")
        assert change.before == {"state": "offline", "queues": ["a"], "team": "print"}
        assert (change.after, change.comment, change.subject_id) == ({}, "sold", str(worker.pk))
        made_again, _ = enrolment.create(name="press-7", by=OPS)
        assert made_again.replace is False

    def test_of_many_those_that_are_gone_are_removed(self, make_worker: Make, make_job: Make) -> None:
        gone, there, holds = make_worker("gone", **GONE), make_worker("there"), make_worker("holds", state="unknown")
        make_job(worker=holds)
        outcome = remove([there.pk, holds.pk, gone.pk])
        assert outcome.done == ["gone"]
        assert [name for name, _ in outcome.skipped] == ["there", "holds"]

    @pytest.mark.parametrize("state", ["offline", "unknown", "offline maintenance"])
    def test_a_worker_that_is_gone_can_be_removed_and_its_history_stays(
        self, make_worker: Make, make_job: Make, state: str
    ) -> None:
        worker = make_worker(state=state)
        job = make_job(worker=worker, state="success")
        assert wishes.remove([worker.pk], by=OPS).done == [worker.name]
        assert not Worker.objects.filter(pk=worker.pk).exists()
        job.refresh_from_db()
        assert (job.state, job.worker_id) == ("success", None)

    @pytest.mark.parametrize("state", ["starting", "idle", "running", "maintenance mode", "terminating"])
    def test_a_worker_that_is_there_cannot(self, make_worker: Make, state: str) -> None:
        worker = make_worker(state=state)
        ((name, why),) = wishes.remove([worker.pk], by=OPS).skipped
        assert name == worker.name
        assert state in why
        assert Worker.objects.filter(pk=worker.pk).exists()

    @pytest.mark.parametrize("held", ["claimed", "running"])
    def test_a_worker_that_holds_jobs_cannot(self, make_worker: Make, make_job: Make, held: str) -> None:
        worker = make_worker(state="unknown")
        job = make_job(worker=worker, state=held)
        assert "holds jobs" in wishes.remove([worker.pk], by=OPS).skipped[0][1]
        job.refresh_from_db()
        assert job.worker_id == worker.pk


def test_workers_are_told_in_the_order_in_which_wishes_lock_them(
    make_worker: Make,
    second_connection: psycopg.Connection[Any],
    in_thread: Callable[..., Future[Any]],
    blocked: Callable[[int], None],
) -> None:
    """Else a change of many jobs and a wish for many workers may each wait for the other."""
    first, second = sorted((make_worker(), make_worker()), key=lambda worker: worker.pk)
    # An indexed column: its row now stands behind the other one, where a scan comes to it last.
    Worker.objects.filter(pk=first.pk).update(name="moved")
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE worker")
    second_connection.execute("SELECT FROM worker WHERE id = %s FOR UPDATE", [first.pk])
    told = in_thread(notices.announce, [second.pk, first.pk])
    blocked(1)
    second_connection.execute("SELECT FROM worker WHERE id = %s FOR UPDATE NOWAIT", [second.pk])
    second_connection.rollback()
    told.result(timeout=5)
    assert {worker.revision for worker in Worker.objects.all()} == {first.revision + 1}
