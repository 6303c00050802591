"""Which jobs a list shows, in which order, and what a page costs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs_app import listing
from jobs_app.listing import Place, Wanted
from jobs_app.models import Job
from jobs_app.states import JobState

Make = Callable[..., Any]


def found(**wanted: Any) -> set[uuid.UUID]:
    """Those that a list shows; and a count, and one query for all of them, agree."""
    shown = {job.pk for job in listing.look(Wanted(**wanted), size=100).jobs}
    assert listing.count(Wanted(**wanted)) == len(shown)
    assert set(Wanted(**wanted).jobs().values_list("pk", flat=True)) == shown
    return shown


@pytest.fixture
def mixed(make_worker: Make, make_job: Make, long_ago: Make) -> list[Job]:
    """Jobs in every state, some of them queued at the same moment; newest first."""
    jobs = [
        make_job(state=state, **({} if state == "queued" else {"worker": make_worker()}))
        for state in sorted(JobState)
        for _ in range(2)
    ]
    with connection.cursor() as cursor:
        for number, job in enumerate(jobs):
            moment = datetime(2026, 1, 1, 12, number // 3, tzinfo=UTC)
            cursor.execute("UPDATE job SET queued_at = %s WHERE id = %s", [moment, job.pk])
    return sorted(Job.objects.all(), key=lambda job: (job.queued_at, job.pk), reverse=True)


def test_the_newest_come_first_whatever_their_state(mixed: list[Job]) -> None:
    assert listing.look(Wanted(), size=100).jobs == mixed


@pytest.mark.parametrize("size", [1, 3, 5, 16, 17])
def test_page_by_page_one_sees_each_job_once_in_both_directions(mixed: list[Job], size: int) -> None:
    page = listing.look(Wanted(), size=size)
    assert page.newer is None
    seen = list(page.jobs)
    while page.older:
        page = listing.look(Wanted(), size=size, before=page.older)
        seen += page.jobs
    assert seen == mixed
    seen = list(page.jobs)
    while page.newer:
        page = listing.look(Wanted(), size=size, after=page.newer)
        seen = page.jobs + seen
    assert seen == mixed


def test_the_oldest_are_a_page_of_their_own(mixed: list[Job]) -> None:
    page = listing.look(Wanted(), size=3, oldest=True)
    assert page.jobs == mixed[-3:]
    assert page.older is None
    assert page.newer is not None
    assert listing.look(Wanted(), size=3, after=page.newer).jobs == mixed[-6:-3]


def test_a_page_that_is_just_full_has_no_next_one(mixed: list[Job]) -> None:
    assert listing.look(Wanted(), size=len(mixed)).older is None
    assert listing.look(Wanted(), size=len(mixed), oldest=True).newer is None


def test_nothing_beyond_the_last_place_is_an_empty_page(mixed: list[Job]) -> None:
    last = Place(mixed[-1].queued_at, mixed[-1].pk)
    assert listing.look(Wanted(), size=3, before=last) == listing.Page(jobs=[])


@pytest.mark.parametrize("states", [{"queued"}, {"running"}, {"claimed", "success"}, {"failed", "lost"}, set(JobState)])
def test_jobs_are_found_by_their_states(mixed: list[Job], states: set[str]) -> None:
    wanted = {job.pk for job in mixed if job.state in states}
    assert found(states=frozenset(JobState(state) for state in states)) == wanted


@pytest.mark.parametrize("state", ["queued", "running", "success"])
def test_jobs_are_found_by_each_of_their_columns(make_worker: Make, make_job: Make, state: str) -> None:
    worker = None if state == "queued" else make_worker()
    job = make_job(state=state, worker=worker, queue="q1", team_name="red", dag_id="d1")
    make_job(state=state, worker=None if state == "queued" else make_worker(), queue="q", team_name="re", dag_id="d")
    assert found(queue="q1") == found(team="red") == found(dag="d1") == {job.pk}
    assert found(queue="q1", team="re") == set()
    if worker is not None:
        assert found(worker_id=worker.pk) == found(worker_id=worker.pk, queue="q1") == {job.pk}


def test_jobs_are_found_by_airflows_outcome(make_worker: Make, make_job: Make) -> None:
    skipped = make_job(state="success", airflow_outcome="skipped")
    make_job(state="success", airflow_outcome="success")
    make_job()
    make_job(worker=make_worker())
    assert found(outcome="skipped") == {skipped.pk}
    assert found(outcome="skipped", states=frozenset([JobState.QUEUED])) == set()


def test_a_worker_has_none_of_the_waiting_jobs(make_worker: Make, make_job: Make) -> None:
    make_job()
    assert found(worker_id=make_worker().pk, states=frozenset([JobState.QUEUED])) == set()


def test_a_span_begins_with_its_first_moment_and_ends_before_its_last(make_job: Make) -> None:
    job = make_job()
    after = job.queued_at + timedelta(microseconds=1)
    assert found(queued_from=job.queued_at, queued_to=after) == {job.pk}
    assert found(queued_from=after) == found(queued_to=job.queued_at) == set()


@pytest.mark.parametrize("state", ["queued", "running", "success"])
@pytest.mark.parametrize("text", ["sales", "sales_daily", "manual__2026", "load_50%"])
def test_a_text_is_how_the_id_of_a_dag_run_or_task_begins(
    make_worker: Make, make_job: Make, state: str, text: str
) -> None:
    columns = {"dag_id": "sales_daily", "run_id": "manual__2026-11", "task_id": "load_50%_more"}
    job = make_job(state=state, worker=None if state == "queued" else make_worker(), **columns)
    make_job(dag_id="resales_daily", run_id="manual-2026", task_id="load_5000")
    assert found(text=text) == {job.pk}


def test_a_job_whose_ids_all_begin_like_the_text_is_shown_once(make_job: Make) -> None:
    for state in ("queued", "success"):
        make_job(state=state, dag_id="same", run_id="same", task_id="same")
    assert len(listing.look(Wanted(text="same"), size=10).jobs) == 2


@pytest.mark.parametrize("state", ["queued", "success"])
def test_a_job_is_found_by_its_id(make_job: Make, state: str) -> None:
    job = make_job(state=state)
    make_job(state=state)
    assert found(text=str(job.pk)) == found(text=job.pk.hex.upper()) == {job.pk}
    assert found(text=str(uuid.uuid4())) == set()


def test_counting_ends_where_it_is_told_to(make_job: Make) -> None:
    for state in ("queued", "queued", "success", "failed"):
        make_job(state=state)
    assert [listing.count(Wanted(), at_most=most) for most in (2, 3, 4, 9)] == [3, 4, 4, 4]


def test_a_place_is_read_as_it_was_written() -> None:
    place = Place(timezone.now(), uuid.uuid4())
    assert Place.read(str(place)) == place


@pytest.mark.parametrize(
    "text", ["", "_", "2026-01-01_x", "x_" + str(uuid.UUID(int=1)), f"2026-01-01T00:00:00_{uuid.UUID(int=1)}"]
)
def test_anything_else_is_no_place(text: str) -> None:
    assert Place.read(text) is None


def test_a_page_reads_neither_workloads_nor_tokens(make_job: Make) -> None:
    make_job()
    with CaptureQueriesContext(connection) as queries:
        listing.look(Wanted(), size=10)
    assert not [query for query in queries if '"workload"' in query["sql"] or '"token"' in query["sql"]]


#: How many jobs lie beside those that are looked for.
CROWD = 20_000


@pytest.fixture
def crowd(transactional_db: None, make_worker: Make) -> int:
    """Very many finished jobs of one kind, and a few of another that are all older; return the worker of these."""
    worker, rare = make_worker(), make_worker()
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO job (id, kind, dag_id, run_id, task_id, airflow_id, workload, queue, team_name, worker_id,
                             state, queued_at, finished_at, airflow_outcome)
            SELECT gen_random_uuid(), 'ExecuteTask', CASE WHEN few THEN 'old_dag' ELSE 'dag_' || mod(number, 100) END,
                   CASE WHEN few THEN 'rare_run' ELSE 'run_' || mod(number, 500) END,
                   CASE WHEN few THEN 'seldom' ELSE 'task' END, gen_random_uuid(),
                   jsonb_build_object('like a real one', repeat('x', 500)), CASE WHEN few THEN 'quiet' ELSE 'busy' END,
                   CASE WHEN few THEN 'red' ELSE '' END, CASE WHEN few THEN %s ELSE %s END,
                   CASE WHEN number <= 30 THEN 'lost' ELSE 'success' END, now() - interval '10 days'
                   + number * interval '10 seconds', now(), CASE WHEN few THEN 'skipped' ELSE 'success' END
              FROM generate_series(1, %s) AS number, LATERAL (SELECT number <= 60 AS few) AS rarity
            """,
            [rare.pk, worker.pk, CROWD],
        )
        cursor.execute("VACUUM ANALYZE job")
    return int(rare.pk)


def pages_read(wanted: Wanted, **more: Any) -> int:
    """8 kB pages that a look reads, by PostgreSQL's own account."""
    with CaptureQueriesContext(connection) as queries:
        assert listing.look(wanted, size=50, **more).jobs
    read = 0
    with connection.cursor() as cursor:
        for query in queries.captured_queries:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query['sql']}")
            answer = cursor.fetchone()[0]
            plan = (json.loads(answer) if isinstance(answer, str) else answer)[0]["Plan"]
            read += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return int(read)


def test_a_page_costs_little_however_rare_or_old_what_it_shows_is(crowd: int) -> None:
    lost = frozenset([JobState.LOST])
    cases: list[dict[str, Any]] = [
        {},
        {"states": lost},
        {"states": lost | {JobState.FAILED}},
        {"queue": "quiet"},
        {"queue": "busy"},
        {"queue": "quiet", "states": lost},
        {"team": "red"},
        {"dag": "old_dag"},
        {"dag": "dag_7"},
        {"outcome": "skipped"},
        {"worker_id": crowd},
        {"text": "old"},
        {"text": "rare_run"},
        {"text": "seldom"},
        {"text": "task"},
        {"text": "run_499"},
        {"queued_to": timezone.now() - timedelta(days=9, hours=23)},
    ]
    read = [(case, more, pages_read(Wanted(**case), **more)) for case in cases for more in ({}, {"oldest": True})]
    # The table has more than two thousand.
    assert not [case for case in read if case[-1] > 400]
