"""What is read to say why jobs wait, and what it costs; the sentences themselves are tested without a database."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs_app import waiting
from jobs_app.models import Job, Queue
from workers_app.models import Worker

Make = Callable[..., Any]


def why(job: Job) -> str:
    return waiting.because([job])[job.pk]


def unserved() -> list[tuple[str, int]]:
    return [(found.queue, found.waiting) for found in waiting.unserved_queues()]


def test_each_waiting_job_gets_a_reason_and_no_other(make_worker: Make, make_job: Make) -> None:
    waits = [make_job(), make_job(queue="night"), make_job(slots=9), make_job(team_name="red")]
    make_worker("press-7", queues=["default"])
    others = [make_job(state="success"), make_job(worker=make_worker("done", queues=[]))]
    assert waiting.because([*waits, *others]) == {
        waits[0].pk: "about to be taken: press-7 has room, more urgent and older jobs go first",
        waits[1].pk: "no live worker serves queue 'night'",
        waits[2].pk: "needs 9 slots and the largest live worker of queue 'default' has 8",
        waits[3].pk: "no live worker works for team 'red'",
    }


def test_what_became_of_an_earlier_hand_out_is_told_behind(make_job: Make) -> None:
    job = make_job(reason="a worker claimed it and did not confirm in time")
    assert why(job) == "no worker is live; earlier: a worker claimed it and did not confirm in time"


def test_a_paused_queue_gives_its_comment(make_job: Make) -> None:
    job = make_job(queue="floor")
    Queue.objects.filter(name="floor").update(paused=True, pause_comment="belt is broken")
    assert why(job) == "queue 'floor' is paused: belt is broken"


def test_a_queue_whose_row_was_deleted_is_said_to_be(make_worker: Make, make_job: Make) -> None:
    job = make_job()
    make_worker()
    Queue.objects.all().delete()
    assert "has been deleted" in why(job)


@pytest.mark.parametrize(
    ("columns", "serves"),
    [
        ({}, True),
        ({"queues": []}, False),
        ({"queues": ["default"]}, True),
        ({"queues": ["default"], "allowed_queues": ["other"]}, False),
        ({"queues": ["other"], "queues_override": ["default"]}, True),
        ({"queues": ["default"], "queues_override": []}, False),
    ],
)
def test_the_queues_that_count_are_those_that_a_claim_would_serve(
    make_worker: Make, make_job: Make, columns: dict[str, Any], serves: bool
) -> None:
    job = make_job()
    make_worker(**columns)
    assert ("serves queue" not in why(job)) is serves
    assert (unserved() == []) is serves


def test_the_slots_that_count_are_the_operators(make_worker: Make, make_job: Make) -> None:
    job = make_job(slots=4)
    make_worker(concurrency=8, concurrency_override=2)
    assert why(job) == "needs 4 slots and the largest live worker of queue 'default' has 2"


@pytest.mark.parametrize("state", ["claimed", "running"])
def test_what_a_worker_holds_of_any_queue_takes_its_slots(make_worker: Make, make_job: Make, state: str) -> None:
    job = make_job()
    workers = [make_worker(concurrency=5), make_worker(concurrency=3)]
    make_job(worker=workers[0], state=state, slots=3)
    make_job(worker=workers[0], state=state, slots=1, queue="other")
    make_job(worker=workers[1], state=state, slots=3)
    make_job(worker=workers[0], state="success", slots=3)
    assert why(job).startswith("about to be taken")
    make_job(worker=workers[0], state=state, queue="other")
    assert why(job) == "all 8 slots of the 2 workers of queue 'default' are taken"


def test_a_limit_counts_what_every_worker_holds_of_the_queue(make_worker: Make, make_job: Make) -> None:
    job = make_job()
    Queue.objects.filter(name="default").update(concurrency_limit=3)
    for slots in (1, 1):
        make_job(worker=make_worker(), slots=slots)
    make_job(worker=make_worker(), slots=5, queue="other")
    assert why(job).startswith("about to be taken")
    make_job(worker=make_worker(team_name="red"), team_name="red")
    assert why(job) == "queue 'default' is at its limit of 3 slots"


@pytest.mark.parametrize(
    ("said", "told"),
    [("Airflow is away", "Airflow is away"), (17, "17"), ({"a": [1]}, '{"a": [1]}')],
    ids=["text", "number", "object"],
)
def test_whatever_an_agent_says_why_it_takes_no_work_is_told(
    make_worker: Make, make_job: Make, said: Any, told: str
) -> None:
    make_worker("press-7", sysinfo={"not_working": said, "load_per_cpu": 0.1})
    assert why(make_job()) == f"press-7 takes no work: {told}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"default": "no Airflow"}, "press-7 takes no work: no Airflow"),
        ({"default": 17}, "press-7 takes no work: 17"),
        ({"*": "no Airflow", "default": ""}, "about to be taken"),
        ({"gpu": "no Airflow"}, "about to be taken"),
        ("no Airflow", "about to be taken"),
        ([1], "about to be taken"),
    ],
)
def test_whatever_an_agent_says_of_single_queues_is_told(
    make_worker: Make, make_job: Make, said: Any, told: str
) -> None:
    make_worker("press-7", sysinfo={"not_served": said})
    assert why(make_job()).startswith(told)


@pytest.mark.parametrize("said", [None, ""])
def test_an_agent_that_has_nothing_to_complain_about_works(make_worker: Make, make_job: Make, said: Any) -> None:
    make_worker(sysinfo={"not_working": said})
    assert why(make_job()).startswith("about to be taken")


def test_those_that_went_lately_are_named_first(make_worker: Make, make_job: Make) -> None:
    job = make_job()
    for name, ago in (("a", 900), ("b", 500), ("c", 100), ("d", 300)):
        make_worker(name, state="unknown", heard_seconds_ago=ago)
    make_worker("e", state="offline")
    Worker.objects.filter(name="e").update(last_heartbeat=None)
    assert why(job) == "no worker is live; c (unknown), d (unknown), b (unknown) and 2 more would"


def test_asking_about_no_waiting_job_reads_nothing(
    make_job: Make, django_assert_num_queries: Callable[..., Any]
) -> None:
    done = make_job(state="success")
    with django_assert_num_queries(0):
        assert waiting.because([done]) == {}
        assert waiting.because([]) == {}


def test_a_token_that_ran_out_is_the_reason(make_worker: Make, make_job: Make, long_ago: Make) -> None:
    make_worker()
    ran_out, fresh = make_job(), make_job()
    long_ago(ran_out, token_until=1)
    long_ago(fresh, token_until=-60)
    assert why(ran_out) == "its token has run out and no scheduler renews it: is Airflow's scheduler running?"
    assert why(fresh).startswith("about to be taken")


@pytest.mark.parametrize("count", [1, 40])
def test_the_number_of_statements_does_not_grow_with_the_jobs(
    make_worker: Make, make_job: Make, long_ago: Make, count: int, django_assert_num_queries: Callable[..., Any]
) -> None:
    jobs = [make_job(queue=f"queue-{number % 7}", slots=1 + number % 3, reason="x") for number in range(count)]
    for job in jobs:
        long_ago(job, token_until=-60)
    for number in range(count):
        make_job(worker=make_worker(queues=["queue-1"]), queue=f"queue-{number % 7}")
    with django_assert_num_queries(4):
        assert len(waiting.because(jobs)) == count


class TestUnservedQueues:
    def test_waiting_jobs_that_nobody_live_serves_are_counted_with_the_oldest(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        make_worker(queues=["served"])
        make_worker(queues=["left", "right"], state="offline")
        make_job(queue="served")
        oldest = {}
        for queue, ages in {"right": [5, 90, 20], "left": [50]}.items():
            jobs = [make_job(queue=queue, priority=priority) for priority in range(len(ages))]
            for job, age in zip(jobs, ages, strict=True):
                long_ago(job, queued_at=age)
            oldest[queue] = min(job.queued_at for job in jobs)
        assert waiting.unserved_queues() == [("right", 3, oldest["right"]), ("left", 1, oldest["left"])]

    def test_queues_without_waiting_jobs_are_left_out(self, make_worker: Make, make_job: Make) -> None:
        make_job(worker=make_worker(queues=[]), queue="busy")
        make_job(state="success", queue="over")
        assert unserved() == []

    @pytest.mark.parametrize("state", ["idle", "maintenance mode", "terminating"])
    def test_a_worker_that_is_live_serves(self, make_worker: Make, make_job: Make, state: str) -> None:
        make_job()
        make_worker(state=state, concurrency_override=0)
        assert unserved() == []

    def test_only_workers_of_the_jobs_team_serve_them(self, make_worker: Make, make_job: Make) -> None:
        make_worker(team_name="red")
        for team in ("red", "red", "blue", "green", ""):
            make_job(team_name=team)
        assert unserved() == [("default", 3)]

    def test_a_queue_whose_row_was_deleted_is_found(self, make_job: Make) -> None:
        make_job(queue="lost")
        Queue.objects.all().delete()
        assert unserved() == [("lost", 1)]

    def test_counting_ends_at_a_number_that_means_or_more(
        self, make_job: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "MOST_COUNTED", 5)
        for number in range(12):
            make_job(queue="long", team_name=("", "red")[number % 2])
            make_job(queue=f"short-{number}")
        assert dict(unserved()) == {"long": 5} | {f"short-{number}": 1 for number in range(12)}

    @pytest.mark.parametrize("count", [0, 1, 30])
    def test_the_number_of_statements_does_not_grow_with_the_queues(
        self, make_worker: Make, make_job: Make, count: int, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        make_worker(queues=["elsewhere"])
        for number in range(count):
            make_job(queue=f"queue-{number}")
        with django_assert_max_num_queries(3):
            assert len(waiting.unserved_queues()) == count


CROWD = 20_000


def pages_read(call: Callable[..., Any], *args: Any) -> int:
    """8 kB pages that the statements of a call read, by PostgreSQL's own account."""
    with CaptureQueriesContext(connection) as captured:
        call(*args)
    total = 0
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + query["sql"])
            answer = cursor.fetchone()[0]
            plan = (json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"]
            total += int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])
    return total


@pytest.fixture
def crowd(transactional_db: None) -> Callable[..., None]:
    """Many rows at once; statistics know of them only when `fresh`."""

    def crowd(*, state: str, queue: str, fresh: bool) -> None:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE job")
            cursor.execute(
                """
                INSERT INTO job (id, kind, airflow_id, workload, queue, state, priority, finished_at)
                SELECT gen_random_uuid(), 'ExecuteTask', gen_random_uuid(), '{}', %s, %s, number %% 50,
                       CASE WHEN %s = 'success' THEN now() END
                  FROM generate_series(1, %s) AS number
                """,
                [queue, state, state, CROWD],
            )
            if fresh:
                cursor.execute("VACUUM ANALYZE job")

    return crowd


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh statistics", "stale statistics"])
@pytest.mark.parametrize("state", ["queued", "success"])
@pytest.mark.parametrize("queue", ["default", "nowhere"])
def test_what_is_read_grows_neither_with_history_nor_with_what_waits(
    make_worker: Make, make_job: Make, crowd: Callable[..., None], state: str, queue: str, fresh: bool
) -> None:
    jobs = [make_job(), make_job(queue="nowhere")]
    make_job(worker=make_worker(queues=["default"]))
    crowd(state=state, queue=queue, fresh=fresh)
    # Some 30 by most plans, 100 by the worst; the crowd fills many hundreds.
    assert pages_read(waiting.because, jobs) < 150
    # A thousand rows are counted where nobody serves; even when each lies on a page of its own.
    counted = state == "queued" and queue == "nowhere"
    assert pages_read(waiting.unserved_queues) < (1300 if counted else 60)
    assert unserved() == [("nowhere", waiting.MOST_COUNTED if counted else 1)]
