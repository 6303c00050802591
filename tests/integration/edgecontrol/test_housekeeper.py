"""When silence is evidence: each test says who was heard when, and whose jobs are given up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.db.models.functions import Now

from edgecontrol import housekeeper as module
from edgecontrol.housekeeper import Housekeeper
from jobs_app.models import Job

Make = Callable[..., Any]
LIMIT = settings.EDGECONTROL.outage_patience_seconds + 30


class World:
    """A fleet, a housekeeper, and hours that pass in no time."""

    def __init__(self, make_worker: Make, make_job: Make) -> None:
        self.seconds = 1_000.0
        self.housekeeper = Housekeeper(clock=lambda: self.seconds)
        self._make_worker, self._make_job = make_worker, make_job
        self.workers: dict[str, Any] = {}
        self.jobs: dict[str, Job] = {}

    def worker(self, name: str, *, job: bool = True, **columns: Any) -> None:
        self.workers[name] = self._make_worker(name, **{"reported": "running", "state": "running"} | columns)
        if job:
            self.jobs[name] = self._make_job(worker=self.workers[name])

    def pass_time(self, seconds: float, *, heard: str = "", database: bool = True, step: float = 90) -> None:
        """Let time pass in steps; the named workers heartbeat and the housekeeper looks in each of them."""
        left = seconds
        while left > 0:
            step = min(step, left)
            left -= step
            self.seconds += step
            with connection.cursor() as cursor:
                # Leases know one clock, PostgreSQL's: the rows move into the past.
                cursor.execute("UPDATE worker SET last_heartbeat = last_heartbeat - %s * interval '1 second'", [step])
                cursor.execute("UPDATE worker SET last_heartbeat = now() WHERE name = ANY (%s)", [heard.split()])
            if database:
                self.housekeeper.step()

    @property
    def lost(self) -> set[str]:
        states = dict(Job.objects.values_list("pk", "state"))
        return {name for name, job in self.jobs.items() if states[job.pk] == "lost"}


@pytest.fixture
def world(make_worker: Make, make_job: Make) -> World:
    return World(make_worker, make_job)


def fleet(world: World, names: str) -> None:
    for name in names.split():
        world.worker(name)


def test_a_machine_that_falls_silent_alone_is_given_up_after_patience_and_margin(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(600, heard="a b c")
    world.pass_time(LIMIT - 30, heard="a b")
    assert world.lost == set()
    world.pass_time(90, heard="a b")
    assert world.lost == {"c"}
    assert Job.objects.get(pk=world.jobs["c"].pk).reason


def test_it_is_shown_as_silent_long_before(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(120, heard="a b")
    world.workers["c"].refresh_from_db()
    assert world.workers["c"].state == "unknown"
    assert world.lost == set()


def test_nobody_is_given_up_while_nobody_is_heard(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(600, heard="a b c")
    world.pass_time(6 * 3600, step=600)
    assert world.lost == set()


@pytest.mark.parametrize("names", ["a b", "a b c", "a b c d e"])
def test_after_an_outage_of_the_way_in_everybody_has_time_to_come_back(world: World, names: str) -> None:
    fleet(world, names)
    world.pass_time(600, heard=names)
    world.pass_time(1800)
    back = ""
    for name in names.split():
        back += f" {name}"
        world.pass_time(20, heard=back)
    assert world.lost == set()


def test_after_an_outage_who_does_not_come_back_is_given_up_in_the_end(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(600, heard="a b c")
    world.pass_time(1800)
    world.pass_time(2 * LIMIT, heard="a b")
    assert world.lost == {"c"}


def test_a_new_process_waits_a_full_patience_before_it_judges(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(3000, heard="a b", database=False)
    world.housekeeper.step()
    world.pass_time(settings.EDGECONTROL.outage_patience_seconds - 40, heard="a b")
    assert world.lost == set()
    world.pass_time(80, heard="a b")
    assert world.lost == {"c"}


def test_the_patience_starts_anew_when_the_database_was_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet(world, "a b c")
    world.pass_time(600, heard="a b c")

    def away(**_: Any) -> None:
        raise OperationalError("away")

    one_turn = iter([False, True])
    monkeypatch.setattr(world.housekeeper._stop, "wait", lambda seconds: next(one_turn))
    monkeypatch.setattr(connection, "close", lambda: None)
    with monkeypatch.context() as context:
        context.setattr(module.lifecycle, "release_unconfirmed", away)
        world.housekeeper._run()
    world.pass_time(3000, heard="a b", database=False)
    world.housekeeper.step()
    world.pass_time(100, heard="a b")
    assert world.lost == set()


@pytest.mark.parametrize(("names", "heard"), [("a b c", "a"), ("a b c d e", "a b"), ("a b c d", "a")])
def test_when_more_than_half_of_the_fleet_falls_silent_nothing_is_given_up_and_an_alarm_is_raised(
    world: World, names: str, heard: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet(world, names)
    world.pass_time(600, heard=names)
    with caplog.at_level(logging.ERROR, "edgecontrol.housekeeper"):
        world.pass_time(270, heard=heard)
        world.pass_time(120, heard=heard, step=10)
    assert world.lost == set()
    silent = len(names.split()) - len(heard.split())
    assert f"{silent} of {len(names.split())} workers fell silent at once" in caplog.text
    assert len(caplog.records) <= 390 / 60, "an alarm that repeats every few seconds is ignored"


@pytest.mark.parametrize(("names", "heard"), [("a b", "a"), ("a b c d", "a b")])
def test_half_of_the_fleet_may_fall_silent(world: World, names: str, heard: str) -> None:
    fleet(world, names)
    world.pass_time(600, heard=names)
    world.pass_time(2 * LIMIT, heard=heard)
    assert world.lost == set(names.split()) - set(heard.split())


def test_machines_that_said_goodbye_do_not_count_as_silent(world: World) -> None:
    fleet(world, "a b")
    for name in "defgh":
        world.worker(name, job=False, reported="offline", state="offline")
    world.pass_time(600, heard="a b")
    world.pass_time(2 * LIMIT, heard="a")
    assert world.lost == {"b"}


def test_a_machine_that_said_goodbye_with_a_job_in_hand_loses_it_by_its_silence(world: World) -> None:
    fleet(world, "a b")
    world.worker("c", reported="offline", state="offline")
    world.pass_time(600, heard="a b c")
    world.pass_time(2 * LIMIT, heard="a b")
    assert world.lost == {"c"}


def test_machines_that_were_switched_off_long_ago_do_not_hide_a_new_loss(world: World) -> None:
    fleet(world, "a b c d e")
    for name in "cde":
        Job.objects.filter(pk=world.jobs[name].pk).update(state="success", finished_at=Now(), token=None)
    world.pass_time(4000, heard="a b")
    world.pass_time(2 * LIMIT, heard="a")
    assert world.lost == {"b"}


def test_one_machine_that_was_switched_off_before_does_not_hide_a_new_loss(world: World) -> None:
    fleet(world, "a b c")
    world.pass_time(600, heard="a b c")
    world.pass_time(LIMIT + 60, heard="a b")
    world.pass_time(LIMIT + 60, heard="a")
    assert world.lost == {"b", "c"}


@pytest.mark.parametrize("names", ["a b", "a b c"])
def test_nobody_is_given_up_at_once_when_the_control_plane_itself_stood_still(world: World, names: str) -> None:
    """A frozen process finds everybody silent; whoever calls first must not condemn the others."""
    fleet(world, names)
    world.pass_time(600, heard=names)
    world.pass_time(3 * LIMIT, heard="a", step=3 * LIMIT)
    assert world.lost == set()
    world.pass_time(60, heard=names)
    world.pass_time(2 * LIMIT, heard=names)
    assert world.lost == set()


def test_without_any_worker_there_is_nothing_to_judge(world: World) -> None:
    world.pass_time(600)
    assert world.lost == set()


def test_a_step_releases_and_purges(make_worker: Make, make_job: Make, long_ago: Make) -> None:
    claimed = make_job(worker=make_worker(), state="claimed")
    long_ago(claimed, claimed_at=settings.EDGECONTROL.release_after_seconds + 1)
    old = make_job(state="success")
    days = settings.EDGECONTROL.retention_days + 1
    long_ago(old, finished_at=days * 86400, told_at=days * 86400)
    Housekeeper().step()
    claimed.refresh_from_db()
    assert claimed.state == "queued"
    assert not Job.objects.filter(pk=old.pk).exists()


def test_a_quiet_step_costs_a_handful_of_statements_whatever_lies_in_the_table(
    make_worker: Make, make_job: Make, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    worker = make_worker()
    for _ in range(20):
        make_job(worker=worker)
        make_job()
        make_job(state="success")
    housekeeper = Housekeeper()
    with django_assert_max_num_queries(11):
        housekeeper.step()
    # The figures of the fleet are kept once in a while.
    with django_assert_max_num_queries(8):
        housekeeper.step()


def test_an_error_in_a_step_does_not_end_the_housekeeper(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, db: None
) -> None:
    housekeeper, done, steps = Housekeeper(), threading.Event(), iter([RuntimeError("a bug"), None])

    def step() -> None:
        error = next(steps)
        if error:
            raise error
        done.set()
        housekeeper.stop()

    monkeypatch.setattr(
        module.settings, "EDGECONTROL", settings.EDGECONTROL.model_copy(update={"housekeeping_seconds": 0})
    )
    monkeypatch.setattr(housekeeper, "step", step)
    housekeeper.start()
    assert done.wait(10)
    assert "step failed" in caplog.text
