"""Which jobs a claim gets, and what finding them costs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest
from django.db import connection

from jobs_app import lifecycle, picking
from jobs_app.models import Job, Queue
from workers_app.models import Worker

Make = Callable[..., Any]


def take(worker: Worker, *, free_slots: int = 100) -> list[Job]:
    """A claim with an id of its own, as an agent makes it."""
    return lifecycle.claim(
        worker=worker, claim_id=uuid.uuid4(), free_slots=free_slots, revision=worker.revision, first=True
    ).jobs


def ids(*jobs: Job) -> list[uuid.UUID]:
    return [job.pk for job in jobs]


def test_higher_priority_comes_first_and_age_decides_among_equals(
    make_worker: Make, make_job: Make, long_ago: Make
) -> None:
    young, old, urgent = make_job(priority=1), make_job(priority=1), make_job(priority=5)
    long_ago(young, queued_at=10)
    long_ago(old, queued_at=20)
    worker = make_worker()
    assert [ids(*take(worker, free_slots=1)) for _ in range(4)] == [ids(urgent), ids(old), ids(young), []]


def test_one_claim_returns_its_jobs_in_the_order_in_which_they_should_start(
    make_worker: Make, make_job: Make, long_ago: Make
) -> None:
    jobs = [make_job(priority=priority) for priority in (1, 3, 2)]
    assert [job.priority for job in take(make_worker(concurrency=3))] == [3, 2, 1]
    assert Job.objects.filter(pk__in=ids(*jobs), state="claimed").count() == 3


def test_priority_is_compared_across_queues_and_slot_sizes(make_worker: Make, make_job: Make) -> None:
    make_job(queue="a", priority=1)
    big = make_job(queue="b", priority=9, slots=3)
    small = make_job(queue="c", priority=5)
    assert ids(*take(make_worker(concurrency=4))) == ids(big, small)


def test_jobs_are_taken_only_as_far_as_their_slots_fit(make_worker: Make, make_job: Make) -> None:
    for _ in range(3):
        make_job(slots=2)
    assert sum(job.slots for job in take(make_worker(concurrency=5))) == 4


def test_a_job_too_large_for_the_worker_does_not_keep_smaller_ones_waiting(make_worker: Make, make_job: Make) -> None:
    make_job(slots=9, priority=99)
    small = make_job(slots=1)
    assert ids(*take(make_worker(concurrency=8))) == ids(small)


def test_a_job_may_fill_the_worker_exactly(make_worker: Make, make_job: Make) -> None:
    job = make_job(slots=8)
    assert ids(*take(make_worker(concurrency=8), free_slots=8)) == ids(job)


@pytest.mark.parametrize(
    ("queues", "allowed", "taken"),
    [
        (None, None, {"a", "b", "c"}),
        ([], None, set()),
        (["a"], None, {"a"}),
        (None, ["b"], {"b"}),
        (None, [], set()),
        (["a", "b"], ["b", "c"], {"b"}),
        (["a"], ["b"], set()),
        ([], ["a"], set()),
        (["a", "nowhere"], None, {"a"}),
    ],
)
def test_a_worker_gets_jobs_of_the_queues_it_serves_and_may_serve(
    make_worker: Make, make_job: Make, queues: list[str] | None, allowed: list[str] | None, taken: set[str]
) -> None:
    for queue in "abc":
        make_job(queue=queue)
    assert {job.queue for job in take(make_worker(queues=queues, allowed_queues=allowed))} == taken


@pytest.mark.parametrize(("team", "taken"), [("", {""}), ("red", {"red"}), ("green", set())])
def test_a_worker_gets_jobs_of_its_own_team_only(make_worker: Make, make_job: Make, team: str, taken: set[str]) -> None:
    for name in ("", "red", "blue"):
        make_job(team_name=name)
    assert {job.team_name for job in take(make_worker(team_name=team))} == taken


def test_a_paused_queue_waits_and_goes_on_where_it_was(make_worker: Make, make_job: Make) -> None:
    job, worker = make_job(queue="night"), make_worker()
    Queue.objects.filter(name="night").update(paused=True)
    assert take(worker) == []
    Queue.objects.filter(name="night").update(paused=False)
    assert ids(*take(worker)) == ids(job)


@pytest.mark.parametrize(
    ("concurrency", "override", "said_free", "taken"),
    [(3, None, 100, 3), (8, 2, 100, 2), (2, 5, 100, 5), (8, 0, 100, 0), (8, None, 1, 1), (8, None, 0, 0)],
)
def test_the_servers_limit_holds_whatever_the_request_says(
    make_worker: Make, make_job: Make, concurrency: int, override: int | None, said_free: int, taken: int
) -> None:
    for _ in range(6):
        make_job()
    worker = make_worker(concurrency=concurrency, concurrency_override=override)
    assert len(take(worker, free_slots=said_free)) == taken


@pytest.mark.parametrize("state", ["claimed", "running"])
def test_what_a_worker_holds_counts_against_its_limit(make_worker: Make, make_job: Make, state: str) -> None:
    worker = make_worker(concurrency=4)
    make_job(worker=worker, state=state, slots=3)
    make_job(worker=worker, state="success", slots=9)
    make_job(worker=make_worker(), slots=9)
    for _ in range(3):
        make_job()
    assert len(take(worker)) == 1


def test_repeated_claims_never_exceed_the_limit(make_worker: Make, make_job: Make) -> None:
    worker = make_worker(concurrency=4)
    for _ in range(10):
        make_job()
    assert sum(len(take(worker, free_slots=4)) for _ in range(5)) == 4


@pytest.mark.parametrize("held", [1, 90])
def test_a_worker_whose_limit_was_lowered_below_what_it_holds_takes_nothing(
    make_worker: Make, make_job: Make, held: int
) -> None:
    worker = make_worker(concurrency=100, concurrency_override=1)
    make_job(worker=worker, slots=held)
    make_job()
    assert take(worker) == []


def test_a_job_that_another_request_is_claiming_is_skipped(
    transactional_db: None, make_worker: Make, make_job: Make, second_connection: psycopg.Connection[Any]
) -> None:
    worker, first, second = make_worker(), make_job(priority=9), make_job(priority=1)
    second_connection.execute("SELECT FROM job WHERE id = %s FOR UPDATE", [first.pk])
    assert ids(*take(worker)) == ids(second)


def test_a_claim_ends_empty_when_others_are_taking_every_candidate(
    transactional_db: None,
    make_worker: Make,
    make_job: Make,
    second_connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picking, "_PAUSE_SECONDS", 0)
    worker, _ = make_worker(), make_job()
    second_connection.execute("SELECT FROM job FOR UPDATE")
    assert take(worker) == []


def test_jobs_behind_those_that_others_are_taking_are_found(
    transactional_db: None, make_worker: Make, make_job: Make, second_connection: psycopg.Connection[Any]
) -> None:
    worker = make_worker(concurrency=1)
    for _ in range(picking.SLACK):
        make_job(priority=9)
    last = make_job(priority=1)
    second_connection.execute("SELECT FROM job WHERE priority = 9 FOR UPDATE")
    assert ids(*take(worker)) == ids(last)


def test_concurrent_claims_of_many_workers_share_the_jobs_without_a_double(
    make_worker: Make, make_job: Make, in_thread: Callable[..., Future[Any]]
) -> None:
    for _ in range(40):
        make_job()
    workers = [make_worker(concurrency=10) for _ in range(6)]
    taken = [future.result(30) for future in [in_thread(take, worker) for worker in workers]]
    handed_out = [job.pk for jobs in taken for job in jobs]
    assert len(handed_out) == len(set(handed_out)) == 40
    assert max(len(jobs) for jobs in taken) <= 10


def test_concurrent_claims_of_one_worker_never_exceed_its_limit(
    make_worker: Make, make_job: Make, in_thread: Callable[..., Future[Any]]
) -> None:
    worker = make_worker(concurrency=3)
    for _ in range(10):
        make_job()
    copies = [Worker.objects.get(pk=worker.pk) for _ in range(6)]
    claims = [in_thread(take, copy, free_slots=3) for copy in copies]
    assert sum(len(future.result(30)) for future in claims) == 3
    assert Job.objects.held_by(worker.pk).count() == 3


#: How many rows of each kind lie beside the job that the worker may take.
CROWD = 20_000


@pytest.fixture
def crowd(transactional_db: None, make_worker: Make) -> Callable[..., None]:
    """Many rows at once, written the fast way.

    With `fresh` statistics autovacuum has seen them; with stale ones only the table as it was before the burst.
    """

    def crowd(
        *, finished: bool = False, queue: str = "default", slots: int = 1, team: str = "", fresh: bool = True
    ) -> None:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE job")
            cursor.execute(
                """
                INSERT INTO job (id, kind, airflow_id, workload, queue, slots, team_name, state, finished_at)
                SELECT gen_random_uuid(), 'ExecuteTask', gen_random_uuid(), '{}', %s, %s, %s, %s,
                       CASE WHEN %s THEN now() END
                  FROM generate_series(1, %s)
                """,
                [queue, slots, team, "success" if finished else "queued", finished, CROWD],
            )
            if fresh:
                cursor.execute("VACUUM ANALYZE job")

    return crowd


def buffers_of_a_claim(worker: Worker) -> int:
    """8 kB pages that the picking statement reads, by PostgreSQL's own account."""
    parameters = {
        "worker": worker.pk,
        "free": 8,
        "concurrency": worker.effective_concurrency,
        "queues": worker.effective_queues,
        "team": worker.team_name,
        "slack": picking.SLACK,
    }
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {picking._PICK}", parameters)
        answer = cursor.fetchone()[0]
    plan = (json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh statistics", "stale statistics"])
@pytest.mark.parametrize(
    "others",
    [
        {"queue": "other"},
        {"slots": 9},
        {"team": "red"},
        {"finished": True},
        {"finished": True, "queue": "other"},
    ],
    ids=["other queue", "too large", "other team", "finished", "finished elsewhere"],
)
def test_a_claim_costs_the_same_beside_thousands_of_jobs_that_the_worker_cannot_take(
    make_worker: Make, make_job: Make, crowd: Callable[..., None], others: dict[str, Any], fresh: bool
) -> None:
    make_job(queue="other")
    job = make_job(priority=-1)
    crowd(**others, fresh=fresh)
    worker = make_worker(queues=["default"])
    assert buffers_of_a_claim(worker) < 60
    assert ids(*take(worker)) == ids(job)


def test_a_claim_from_a_long_queue_reads_little_more_than_it_takes(
    make_worker: Make, make_job: Make, crowd: Callable[..., None]
) -> None:
    make_job()
    crowd()
    assert buffers_of_a_claim(make_worker()) < 200


def test_a_claim_costs_few_statements(
    make_worker: Make, make_job: Make, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    worker = make_worker()
    # Savepoint and its release, the commit's haste, sign of life, an earlier answer, pick; then the hand-out.
    with django_assert_max_num_queries(6):
        take(worker)
    for _ in range(5):
        make_job()
    with django_assert_max_num_queries(7):
        assert len(take(worker)) == 5
