from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import IntegrityError, connection, transaction

from tests.integration.people import OPS
from workers_app import registry, wishes
from workers_app.models import Worker
from workers_app.registry import Introduction, InvalidName, NameTaken, SessionReplaced
from workers_app.states import Reported

Make = Callable[..., Any]


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


def register(worker: Worker, **said: Any) -> bool | None:
    return registry.register(
        worker=worker,
        introduction=Introduction(**{"session": uuid.uuid4(), "boot_id": "boot-1", "concurrency": 8} | said),
    )


def heartbeat(worker: Worker, **said: Any) -> None:
    registry.heartbeat(
        worker=worker,
        **{"reported": Reported.IDLE, "jobs_active": 0, "queues": None, "concurrency": 8, "sysinfo": None} | said,
    )


GOOD_NAMES = ["a", "x" * 253, "Straße 7 / Halle B", "工場の端末", "ручной-узел", "🦊", "name with spaces", "a.b:c/d\\e"]
BAD_NAMES = [
    "",
    "x" * 254,
    "tab\there",
    "line\nbreak",
    "nul\0",
    " front",
    "back ",
    "zero\u200bwidth",
    "\u202eback",
    "\u00a0",
]


class TestNames:
    @pytest.mark.parametrize("name", GOOD_NAMES)
    def test_any_printable_name_may_be_given(self, db: None, name: str) -> None:
        assert fresh(registry.create(name=name, by=OPS)).name == name

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_a_name_that_nobody_could_read_or_type_is_refused(self, make_worker: Make, name: str) -> None:
        with pytest.raises(InvalidName):
            registry.create(name=name, by=OPS)
        worker = make_worker("before")
        with pytest.raises(InvalidName):
            register(worker, name=name)
        assert fresh(worker).name == "before"

    def test_the_database_refuses_an_empty_and_an_overlong_name_too(self, make_worker: Make) -> None:
        worker = make_worker()
        for name in ("", "x" * 254):
            with pytest.raises(IntegrityError), transaction.atomic():
                Worker.objects.filter(pk=worker.pk).update(name=name)

    def test_a_taken_name_is_refused_with_the_name(self, make_worker: Make) -> None:
        make_worker("taken")
        with pytest.raises(NameTaken, match="taken"):
            registry.create(name="taken", by=OPS)


class TestRegister:
    def test_a_worker_that_was_removed_meanwhile_is_told_that_its_token_is_gone(self, make_worker: Make) -> None:
        worker = make_worker(state="offline", reported="offline")
        wishes.remove([worker.pk], by=OPS)
        with pytest.raises(registry.Removed):
            register(worker)
        with pytest.raises(registry.Removed):
            heartbeat(worker, reported=Reported.IDLE)

    def test_nothing_is_left_of_a_shutdown_wish_after_the_next_start(self, make_worker: Make) -> None:
        worker = make_worker()
        wishes.shut_down([worker.pk], by=OPS, comment="move")
        register(worker)
        row = fresh(worker)
        assert (row.requested, row.requested_by, row.requested_at, row.requested_comment) == ("active", "", None, "")

    def test_it_begins_a_session_and_stores_what_the_agent_says(self, db: None) -> None:
        worker = registry.create(name="new", by=OPS)
        session = uuid.uuid4()
        rebooted = register(
            worker,
            session=session,
            boot_id="b7",
            queues=["a"],
            concurrency=4,
            agent_version="1.2",
            airflow_version="3.3",
            sysinfo={"os": "Linux"},
        )
        row = fresh(worker)
        assert rebooted is False
        assert (row.session, row.boot_id, row.queues, row.concurrency) == (session, "b7", ["a"], 4)
        assert (row.agent_version, row.airflow_version, row.sysinfo) == ("1.2", "3.3", {"os": "Linux"})
        assert (row.reported, row.state, row.jobs_active) == ("starting", "starting", 0)
        assert row.first_online == row.last_heartbeat is not None
        assert worker.revision == row.revision == 1

    def test_it_forgets_the_older_sessions_claim_and_keeps_the_first_day(
        self, make_worker: Make, long_ago: Make
    ) -> None:
        worker = make_worker(claim_id=uuid.uuid4())
        long_ago(worker, first_online=86400)
        register(fresh(worker))
        row = fresh(worker)
        assert (row.claim_id, row.first_online) == (None, worker.first_online)

    @pytest.mark.parametrize(
        ("before", "after", "rebooted"), [("b1", "b1", False), ("b1", "b2", True), ("", "b1", False)]
    )
    def test_another_boot_id_is_a_reboot(self, make_worker: Make, before: str, after: str, rebooted: bool) -> None:
        assert register(make_worker(boot_id=before), boot_id=after) is rebooted

    def test_it_fences_the_older_session(self, make_worker: Make) -> None:
        worker = make_worker()
        older = [fresh(worker), fresh(worker)]
        register(worker)
        with pytest.raises(SessionReplaced):
            heartbeat(older[0])
        with pytest.raises(SessionReplaced):
            registry.touch(worker=older[1])

    def test_it_renames(self, make_worker: Make) -> None:
        worker = make_worker("old")
        register(worker, name="new name")
        assert fresh(worker).name == worker.name == "new name"

    def test_without_a_name_the_workers_own_stays(self, make_worker: Make) -> None:
        worker = make_worker("mine")
        register(worker, name=None)
        assert fresh(worker).name == "mine"

    def test_with_a_taken_name_nothing_begins(self, make_worker: Make) -> None:
        make_worker("taken")
        worker = make_worker("mine")
        with pytest.raises(NameTaken, match="taken"):
            register(fresh(worker), name="taken")
        row = fresh(worker)
        assert (row.name, row.session, row.revision) == ("mine", worker.session, worker.revision)

    @pytest.mark.parametrize(
        ("wished", "after", "shown"),
        [
            ("shutdown", "active", "starting"),
            ("maintenance", "maintenance", "maintenance request"),
            ("active", "active", "starting"),
        ],
    )
    def test_a_shutdown_wish_ends_with_the_next_start_and_maintenance_lasts(
        self, make_worker: Make, wished: str, after: str, shown: str
    ) -> None:
        worker = make_worker(requested=wished, requested_by="ops")
        register(worker)
        row = fresh(worker)
        assert (row.requested, row.state) == (after, shown)
        assert worker.requested == after

    def test_of_two_sessions_at_once_the_later_one_stays(
        self,
        make_worker: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        worker, later = make_worker(), uuid.uuid4()
        second_connection.execute("UPDATE worker SET session = gen_random_uuid() WHERE id = %s", [worker.pk])
        second = in_thread(register, fresh(worker), session=later)
        blocked(1)
        second_connection.commit()
        second.result(30)
        assert fresh(worker).session == later


class TestHeartbeat:
    def test_it_renews_the_lease_and_stores_what_it_says(self, make_worker: Make) -> None:
        worker = make_worker(heard_seconds_ago=90)
        heartbeat(
            fresh(worker), reported=Reported.RUNNING, jobs_active=3, queues=["b"], concurrency=5, sysinfo={"load": 1}
        )
        row = fresh(worker)
        assert row.last_heartbeat > worker.last_heartbeat + timedelta(seconds=80)
        assert (row.reported, row.state, row.jobs_active) == ("running", "running", 3)
        assert (row.queues, row.concurrency, row.sysinfo) == (["b"], 5, {"load": 1})

    def test_unchanged_host_figures_stay(self, make_worker: Make) -> None:
        worker = make_worker(sysinfo={"os": "Linux"})
        heartbeat(worker, sysinfo=None)
        assert fresh(worker).sysinfo == {"os": "Linux"}

    def test_it_is_one_statement(self, make_worker: Make, django_assert_num_queries: Callable[..., Any]) -> None:
        worker = make_worker(sysinfo={"os": "Linux"})
        with django_assert_num_queries(1):
            heartbeat(worker, sysinfo={"os": "Linux"})

    def test_it_does_not_bump_the_revision(self, make_worker: Make) -> None:
        worker = make_worker()
        heartbeat(fresh(worker))
        assert fresh(worker).revision == worker.revision

    @pytest.mark.parametrize(
        ("wished", "reported", "shown"),
        [
            ("maintenance", "running", "maintenance request"),
            ("maintenance", "maintenance", "maintenance mode"),
            ("shutdown", "idle", "shutdown request"),
            ("active", "maintenance", "maintenance exit"),
            ("active", "offline", "offline"),
        ],
    )
    def test_the_shown_state_follows_both_axes(self, make_worker: Make, wished: str, reported: str, shown: str) -> None:
        worker = make_worker(requested=wished)
        heartbeat(worker, reported=Reported(reported))
        assert fresh(worker).state == shown

    def test_an_operators_wish_that_came_since_the_request_was_read_is_kept_and_obeyed(self, make_worker: Make) -> None:
        worker = make_worker()
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        heartbeat(worker, reported=Reported.RUNNING, jobs_active=1, concurrency=3, queues=["q"])
        row = fresh(worker)
        assert (row.requested, row.requested_by, row.requested_comment) == ("maintenance", "ops", "disk")
        assert (row.state, row.concurrency) == ("maintenance request", 3)
        # The answer is made from this object, so it must bring the new orders.
        assert (worker.requested, worker.requested_comment, worker.revision) == ("maintenance", "disk", row.revision)
        assert (worker.concurrency, worker.queues, worker.jobs_active) == (3, ["q"], 1)

    def test_an_operators_wish_in_an_open_transaction_is_not_overwritten(
        self,
        make_worker: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        worker = make_worker()
        second_connection.execute(
            "UPDATE worker SET requested = 'maintenance', state = 'maintenance request', revision = revision + 1"
            " WHERE id = %s",
            [worker.pk],
        )
        beat = in_thread(heartbeat, worker, reported=Reported.RUNNING)
        blocked(1)
        second_connection.commit()
        beat.result(30)
        row = fresh(worker)
        assert (row.requested, row.reported, row.state) == ("maintenance", "running", "maintenance request")


class TestMarkSilent:
    @pytest.mark.parametrize(
        ("reported", "requested", "seconds", "shown"),
        [
            ("running", "active", 101, "unknown"),
            ("running", "active", 90, "running"),
            ("starting", "active", 101, "unknown"),
            ("maintenance", "maintenance", 101, "offline maintenance"),
            ("running", "maintenance", 101, "offline maintenance"),
            ("offline", "active", 9999, "offline"),
            ("offline", "maintenance", 9999, "offline maintenance"),
        ],
    )
    def test_a_worker_without_a_word_is_shown_as_such(
        self, make_worker: Make, reported: str, requested: str, seconds: float, shown: str
    ) -> None:
        worker = make_worker(reported=reported, requested=requested)
        heartbeat(worker, reported=Reported(reported))
        with connection.cursor() as cursor:
            cursor.execute("UPDATE worker SET last_heartbeat = now() - %s * interval '1 second'", [seconds])
        registry.mark_silent(after_seconds=100)
        assert fresh(worker).state == shown

    def test_it_names_each_worker_once(self, make_worker: Make) -> None:
        make_worker("a", heard_seconds_ago=200)
        make_worker("b", heard_seconds_ago=200, reported="running", state="running")
        make_worker("c")
        assert sorted(registry.mark_silent(after_seconds=100)) == ["a", "b"]
        assert registry.mark_silent(after_seconds=100) == []

    def test_a_worker_that_never_called_stays_offline(self, db: None) -> None:
        worker = registry.create(name="new", by=OPS)
        assert registry.mark_silent(after_seconds=1) == []
        assert fresh(worker).state == "offline"

    def test_the_next_heartbeat_brings_it_back(self, make_worker: Make) -> None:
        worker = make_worker(heard_seconds_ago=200)
        registry.mark_silent(after_seconds=100)
        heartbeat(fresh(worker), reported=Reported.RUNNING)
        assert fresh(worker).state == "running"

    @pytest.mark.parametrize("count", [1, 30])
    def test_its_cost_does_not_grow_with_the_fleet(
        self, make_worker: Make, count: int, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        for _ in range(count):
            make_worker(heard_seconds_ago=200)
        with django_assert_num_queries(3):
            registry.mark_silent(after_seconds=100)
