"""The figures of the home page against a real database: right, complete, and never paid for with a long read."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models import Min
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from edgecontrol import dashboard, throughput
from edgecontrol.attention import Notice
from edgecontrol.dashboard import PERMISSIONS, SEE_JOBS, SEE_QUEUES, SEE_WORKERS, Home, home
from edgecontrol.throughput import MINUTES, Ended, Throughput
from jobs_app.models import Job, Queue
from workers_app.models import Worker
from workers_app.states import Shown

Make = Callable[..., Any]
LongAgo = Callable[..., None]


@pytest.fixture(autouse=True)
def _nothing_known_yet(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process remembers for its next look would be told of another test's rows."""
    monkeypatch.setattr(dashboard, "throughput", Throughput())


def everything() -> Home:
    return home(PERMISSIONS)


def notice(about: str, page: Home | None = None) -> Notice:
    (found,) = [each for each in (page or everything()).notices if each.about == about]
    return found


def notices() -> list[str]:
    return [each.about for each in everything().notices]


def calm(make_worker: Make) -> Worker:
    worker: Worker = make_worker("press-1", queues=["press"], agent_version=dashboard.__version__)
    return worker


class TestFleet:
    def test_every_state_is_counted_and_leads_to_its_workers(self, make_worker: Make) -> None:
        for state in Shown:
            make_worker(state=state)
        make_worker(state="idle")
        fleet = everything().fleet
        assert fleet is not None
        assert {each.state: each.count for each in fleet.states} == dict.fromkeys(Shown, 1) | {Shown.IDLE: 2}
        (mode,) = [each for each in fleet.states if each.state is Shown.MAINTENANCE_MODE]
        assert mode.url == "/admin/workers_app/worker/?state=maintenance+mode"
        assert (fleet.total, fleet.live) == (13, 10)

    def test_the_figure_of_live_workers_leads_to_these_and_not_to_what_a_list_remembers(
        self, make_worker: Make, ops: Client
    ) -> None:
        make_worker("press-1", state="running")
        make_worker("pack-1", state="offline", reported="offline")
        page = ops.get(everything().links["workers"]).content.decode()
        assert "press-1" in page
        assert "pack-1" not in page

    def test_slots_are_those_of_workers_that_take_jobs_as_operators_set_them(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker = make_worker(state="running", concurrency=8, concurrency_override=3)
        make_worker(state="idle", concurrency=4)
        resting = make_worker(state="maintenance pending", concurrency=16)
        make_job(worker=worker, slots=2)
        make_job(worker=resting, slots=5)
        assert everything().slots == {"used": 7, "free": 5, "all": 12, "percent": 58}

    def test_silent_workers_are_named_the_latest_first(self, make_worker: Make) -> None:
        calm(make_worker)
        for age in range(1, 8):
            make_worker(f"mill-{age}", state="unknown", heard_seconds_ago=age * 1000)
        said = notice("silent")
        assert said.text == "7 worker hosts are silent"
        assert said.url == "/admin/workers_app/worker/?state=unknown"
        assert [each.name for each in said.named] == [f"mill-{age}" for age in range(1, 6)]
        assert said.more == 2

    def test_whoever_said_goodbye_or_is_in_maintenance_may_be_switched_off(self, make_worker: Make) -> None:
        calm(make_worker)
        make_worker(state="offline", reported="offline", heard_seconds_ago=9999)
        make_worker(
            state="offline maintenance", reported="maintenance", requested="maintenance", heard_seconds_ago=9999
        )
        assert notices() == []

    def test_a_live_worker_that_takes_no_work_is_named_with_its_reason(self, make_worker: Make) -> None:
        calm(make_worker)
        reason = {"not_working": "Airflow's API: no answer from https://airflow"}
        make_worker("mill-1", sysinfo=reason)
        make_worker("mill-2", sysinfo=reason, state="running")
        make_worker("mill-3", sysinfo=reason, state="offline", reported="offline")
        make_worker("mill-4", sysinfo=reason, state="maintenance mode", requested="maintenance")
        said = notice("hindered")
        assert said.text == "2 live worker hosts take no work"
        assert [(each.name, each.words) for each in said.named] == [
            ("mill-1", reason["not_working"]),
            ("mill-2", reason["not_working"]),
        ]

    def test_agents_behind_the_control_plane_are_counted_by_version(self, make_worker: Make) -> None:
        calm(make_worker)
        make_worker(agent_version="0.0.9")
        make_worker(agent_version="0.0.9", state="running")
        make_worker(agent_version="0.0.8")
        make_worker(agent_version="")
        said = notice("outdated")
        assert said.text == "3 agents are older than this control plane"
        assert said.url == "/admin/workers_app/worker/?outdated=1"
        assert [(each.name, each.words) for each in said.named] == [("version 0.0.8", "1"), ("version 0.0.9", "2")]

    def test_maintenance_that_ends_within_the_hour_is_news_and_no_trouble(self, make_worker: Make) -> None:
        calm(make_worker)
        soon, later = timezone.now() + timedelta(minutes=40), timezone.now() + timedelta(hours=3)
        make_worker("laser-1", state="maintenance mode", requested="maintenance", requested_until=soon)
        make_worker("laser-2", state="maintenance mode", requested="maintenance", requested_until=later)
        make_worker("laser-3", state="shutdown request", requested="shutdown", requested_until=soon)
        page = everything()
        assert [each.name for each in notice("maintenance", page).named] == ["laser-1"]
        assert page.urgent == []
        for number in range(8):
            make_worker(f"mill-{number}", requested="maintenance", requested_until=soon + timedelta(minutes=number))
        said = notice("maintenance")
        assert said.text == "Maintenance of 9 worker hosts ends within the hour"
        assert (len(said.named), said.more) == (5, 4)

    def test_a_fleet_without_a_live_worker_says_so_first(self, make_worker: Make) -> None:
        make_worker(state="unknown", heard_seconds_ago=500)
        make_worker(state="offline", reported="offline")
        assert notices() == ["nobody", "silent"]

    def test_nothing_is_said_of_a_fleet_that_is_well(self, make_worker: Make, make_job: Make) -> None:
        make_job(worker=calm(make_worker), queue="press")
        make_job(queue="press")
        assert notices() == []


class TestQueues:
    def test_a_queue_that_no_live_worker_serves_leads_to_its_page(self, make_worker: Make, make_job: Make) -> None:
        calm(make_worker)
        make_worker(queues=["gpu"], state="offline", reported="offline")
        make_job(queue="gpu")
        make_job(queue="gpu")
        make_job(queue="press")
        said = notice("unserved")
        assert said.text == "1 queue with waiting jobs and no live worker host"
        (gpu,) = said.named
        assert gpu.name == "gpu"
        assert gpu.words.startswith("2 waiting")
        assert gpu.url == "/admin/jobs_app/queue/gpu/change/"
        assert said.url == "/admin/jobs_app/queue/?unserved=1"

    def test_a_paused_queue_says_who_and_why(self, make_worker: Make) -> None:
        calm(make_worker)
        Queue.objects.create(
            name="lab", paused=True, pause_comment="sensor swap", paused_by="anna", paused_at=timezone.now()
        )
        Queue.objects.create(name="press")
        said = notice("paused")
        assert said.text == "1 queue is paused"
        assert said.url == "/admin/jobs_app/queue/?paused=1"
        assert [(each.name, each.words) for each in said.named] == [("lab", "“sensor swap” by anna,")]


class TestWork:
    def test_waiting_jobs_are_counted_and_the_oldest_is_found(
        self, make_worker: Make, make_job: Make, long_ago: LongAgo
    ) -> None:
        oldest = make_job(queue="press", priority=1)
        make_job(queue="press", priority=9)
        make_job(queue="laser")
        make_job(worker=make_worker())
        long_ago(oldest, queued_at=7200)
        page = everything()
        assert page.work is not None
        assert page.work.waiting_in_words == "3"
        assert page.work.oldest_url == f"/admin/jobs_app/job/{oldest.pk}/change/"
        assert notice("wait", page).text.startswith("A job has been waiting for 2 h")

    def test_the_oldest_is_found_whatever_its_queue_team_size_and_priority(
        self, make_job: Make, long_ago: LongAgo
    ) -> None:
        some = random.Random(7)  # noqa: S311 - the same in every run
        jobs = [
            make_job(
                queue=some.choice("abc"),
                team_name=some.choice(["", "red"]),
                slots=some.randint(1, 3),
                priority=some.randint(-2, 3),
            )
            for _ in range(40)
        ]
        for job in jobs:
            long_ago(job, queued_at=some.randint(1, 100_000))
        while Job.objects.exists():
            work = dashboard.work()
            assert work.oldest is not None
            oldest = Job.objects.aggregate(Min("queued_at"))["queued_at__min"]
            assert work.oldest[1] == oldest
            assert work.waiting == Job.objects.count()
            Job.objects.filter(queued_at=oldest).delete()
        assert dashboard.work().oldest is None

    def test_counting_stops_at_the_bound(self, make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dashboard, "MOST_COUNTED", 3)
        for _ in range(3):
            make_job()
        assert dashboard.work().waiting_in_words == "3"
        for _ in range(4):
            make_job()
        work = dashboard.work()
        assert work.waiting == 4
        assert work.waiting_in_words == "3+"

    def test_beside_the_navigation_stand_the_silent_and_the_waiting(self, make_worker: Make, make_job: Make) -> None:
        nothing = dashboard.glance(PERMISSIONS)
        assert (nothing.silent, nothing.waiting) == ("", "")
        make_worker(state="unknown")
        make_job()
        make_job()
        both = dashboard.glance(PERMISSIONS)
        assert (both.silent, both.waiting) == ("1", "2")
        assert dashboard.glance([SEE_WORKERS]).waiting == ""
        assert dashboard.glance([SEE_JOBS]).silent == ""


class TestThroughput:
    def test_each_minute_has_what_ended_in_it(self, make_job: Make, long_ago: LongAgo) -> None:
        for ago, state in ((600, "success"), (600, "failed"), (1200, "lost"), (1200, "revoked"), (8000, "success")):
            long_ago(make_job(state=state), finished_at=ago)
        minutes = Throughput().until(timezone.now())
        assert len(minutes) == MINUTES
        assert [ended for _, ended in minutes if ended.all] == [Ended(0, 0, 1), Ended(1, 1, 0)]

    def test_a_look_after_the_first_reads_only_the_newest_minutes(self, make_job: Make, long_ago: LongAgo) -> None:
        make_job(state="success")
        long_ago(make_job(state="success"), finished_at=3000)
        series, now = Throughput(), timezone.now()
        assert sum(ended.all for _, ended in series.until(now)) == 2
        # The older one is remembered; of the newest minutes what is there now counts.
        Job.objects.all().delete()
        assert sum(ended.all for _, ended in series.until(now)) == 1
        make_job(state="failed")
        assert sum(ended.failed for _, ended in series.until(now)) == 1

    def test_what_commits_late_is_still_counted(self, make_job: Make, long_ago: LongAgo) -> None:
        series, now = Throughput(), timezone.now()
        series.until(now)
        long_ago(make_job(state="success"), finished_at=60)
        assert sum(ended.all for _, ended in series.until(now)) == 1

    def test_what_is_older_than_the_chart_is_forgotten(self, make_job: Make) -> None:
        make_job(state="success")
        series, now = Throughput(), timezone.now()
        assert sum(ended.all for _, ended in series.until(now)) == 1
        later = series.until(now + timedelta(minutes=MINUTES + 1))
        assert len(later) == MINUTES
        assert sum(ended.all for _, ended in later) == 0

    def test_after_a_long_silence_the_whole_chart_is_read_again(self, make_job: Make, long_ago: LongAgo) -> None:
        series, now = Throughput(), timezone.now()
        series.until(now - timedelta(hours=9))
        long_ago(make_job(state="success"), finished_at=6000)
        assert sum(ended.all for _, ended in series.until(now)) == 1

    def test_lost_jobs_ask_for_attention(self, make_worker: Make, make_job: Make) -> None:
        calm(make_worker)
        make_job(state="lost")
        assert notice("lost").text == "1 job was lost in the last 2 hours"
        assert notice("lost").url == "/admin/jobs_app/job/?state=lost"


class TestCost:
    def fill(self, *, jobs: int) -> None:
        """As many jobs that ended over a day as wait now, in eight queues."""
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO job (id, kind, airflow_id, workload, queue, priority, state, queued_at, finished_at)
                SELECT gen_random_uuid(), 'ExecuteTask', gen_random_uuid(), '{}', 'queue-' || n %% 8, n %% 5,
                       CASE WHEN waits THEN 'queued' WHEN n %% 9 = 0 THEN 'failed' ELSE 'success' END,
                       now() - interval '1 day' * n / %(jobs)s,
                       CASE WHEN NOT waits THEN now() - interval '1 day' * n / %(jobs)s END
                  FROM generate_series(1, %(jobs)s) AS n, (VALUES (true), (false)) AS kind (waits)
                """,
                {"jobs": jobs},
            )
            cursor.execute("ANALYZE job")

    def test_the_whole_page_takes_few_statements_whatever_the_fleet(self, make_worker: Make, make_job: Make) -> None:
        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                everything()
            return len(queries)

        def crowd(size: int) -> None:
            for number in range(size):
                make_worker(state="unknown", agent_version="0.0.1", queues=[f"queue-{number}"])
                make_worker(requested="maintenance", requested_until=timezone.now(), queues=[])
                make_job(queue=f"queue-{number}")
                make_job(queue=f"paused-{number}")
            Queue.objects.filter(name__startswith="paused").update(paused=True)

        crowd(1)
        few = cost()
        crowd(12)
        assert cost() == few <= 9

    @pytest.mark.parametrize("read", [lambda: dashboard.work(), lambda: dashboard.glance(PERMISSIONS)])
    def test_a_backlog_is_read_along_its_index_and_no_further_than_the_bound(
        self, read: Callable[[], object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dashboard, "MOST_COUNTED", 100)
        monkeypatch.setattr(dashboard, "MOST_AT_A_GLANCE", 100)
        self.fill(jobs=4000)
        rows, plans = scans_of_jobs(read)
        assert "Seq Scan on job" not in plans
        # What is counted and the oldest one, not the 4,000 that wait.
        assert rows <= 102

    def test_the_series_reads_its_two_hours_alone_and_by_the_index(self) -> None:
        self.fill(jobs=4000)
        rows, plans = scans_of_jobs(lambda: Throughput().until(timezone.now()))
        assert "job_finished" in plans
        assert "Seq Scan" not in plans
        assert 4000 / 12 - 50 < rows < 4000 / 12 + 50

    def test_a_second_look_at_the_series_reads_a_few_minutes(self) -> None:
        self.fill(jobs=4000)
        series = Throughput()
        series.until(timezone.now())
        rows, plans = scans_of_jobs(lambda: series.until(timezone.now()))
        assert "job_finished" in plans
        assert rows < 30


def scans_of_jobs(read: Callable[[], object]) -> tuple[float, str]:
    """How many rows PostgreSQL took out of the table of jobs or its indexes, and its plans."""
    with CaptureQueriesContext(connection) as queries:
        read()
    statements = [query["sql"] for query in queries if "job" in query["sql"]]
    assert statements
    rows, plans = 0.0, []
    for statement in statements:
        with connection.cursor() as cursor:
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement.replace("%", "%%"))
            ((plan,),) = cursor.fetchall()
            cursor.execute("EXPLAIN " + statement.replace("%", "%%"))
            plans += [line for (line,) in cursor.fetchall()]
        rows += _rows_of_jobs(plan[0]["Plan"])
    return rows, "\n".join(plans)


def _rows_of_jobs(node: dict[str, Any]) -> float:
    own = node["Actual Rows"] * node["Actual Loops"] if node.get("Relation Name") == "job" else 0
    return own + sum(_rows_of_jobs(child) for child in node.get("Plans", ()))


class TestPermissions:
    def test_nobody_reads_what_they_may_not_see(self, make_worker: Make, make_job: Make) -> None:
        make_worker(state="unknown")
        make_job()
        with CaptureQueriesContext(connection) as queries:
            page = home(())
        assert page.sees_nothing
        assert len(queries) == 0

    @pytest.mark.parametrize(
        ("permission", "seen"), [(SEE_WORKERS, {"fleet"}), (SEE_JOBS, {"work", "history"}), (SEE_QUEUES, set())]
    )
    def test_each_part_needs_its_own_permission(
        self, make_worker: Make, make_job: Make, permission: str, seen: set[str]
    ) -> None:
        make_worker(state="unknown")
        make_job(queue="gpu")
        page = home([permission])
        assert {part for part in ("fleet", "work", "history") if getattr(page, part) is not None} == seen
        assert ("unserved" in [each.about for each in page.notices]) == (permission == SEE_QUEUES)
        assert not page.sees_nothing


class Reader:
    def __init__(self, *permissions: str) -> None:
        self.permissions = permissions

    def has_perm(self, permission: str) -> bool:
        return permission in self.permissions


class TestRecent:
    def test_many_readers_cost_what_one_does(self, make_worker: Make) -> None:
        calm(make_worker)
        recent = dashboard.Recent()
        first = recent.home(Reader(SEE_WORKERS))
        with CaptureQueriesContext(connection) as queries:
            assert recent.home(Reader(SEE_WORKERS)) is first
        assert len(queries) == 0

    def test_readers_with_other_rights_have_a_page_of_their_own(self, make_worker: Make) -> None:
        calm(make_worker)
        recent = dashboard.Recent()
        assert recent.home(Reader(SEE_WORKERS)).fleet is not None
        assert recent.home(Reader(SEE_JOBS)).fleet is None

    def test_it_is_read_anew_after_its_time(self, make_worker: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dashboard, "SHARED_SECONDS", 0)
        recent = dashboard.Recent()
        assert recent.home(Reader(SEE_WORKERS)).empty
        calm(make_worker)
        assert not recent.home(Reader(SEE_WORKERS)).empty


def test_the_chart_covers_whole_hours() -> None:
    # The page says how many.
    assert throughput.MINUTES % 60 == 0
