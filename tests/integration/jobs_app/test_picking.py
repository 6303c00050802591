"""Which jobs a claim gets, and what finding them costs."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, LiteralString

import psycopg
import pytest
from django.db import connection
from django.db.models import Sum
from django.db.models.functions import Now

from jobs_app import lifecycle, picking
from jobs_app.models import Job, Queue
from jobs_app.states import HELD, ReportState
from workers_app.models import Worker

Make = Callable[..., Any]


def take(worker: Worker, *, free_slots: int = 100, able: picking.Able = picking.ALL) -> list[Job]:
    """A claim with an id of its own, as an agent makes it."""
    return lifecycle.claim(
        worker=worker, claim_id=uuid.uuid4(), free_slots=free_slots, revision=worker.revision, first=True, able=able
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


@pytest.mark.parametrize("served", [None, ["a", "b", "c"]])
@pytest.mark.parametrize(
    ("able", "taken"),
    [
        (picking.Able(without=["b"]), ["a", "c"]),
        (picking.Able(only=["b", "z"]), ["b"]),
        (picking.Able(only=["a", "b"], without=["a"]), ["b"]),
        (picking.Able(only=[]), []),
    ],
)
def test_jobs_of_queues_that_the_agent_cannot_run_now_are_left_to_others(
    make_worker: Make, make_job: Make, served: list[str] | None, able: picking.Able, taken: list[str]
) -> None:
    for queue in ("a", "b", "c"):
        make_job(queue=queue)
    assert [able.runs(queue) for queue in ("a", "b", "c")] == [queue in taken for queue in ("a", "b", "c")]
    assert sorted(job.queue for job in take(make_worker(queues=served), able=able)) == taken


def test_an_agent_that_can_run_a_queue_does_not_serve_it_for_that(make_worker: Make, make_job: Make) -> None:
    make_job(queue="b")
    assert take(make_worker(queues=["a"]), able=picking.Able(only=["a", "b"])) == []


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


@pytest.mark.parametrize("limited", [False, True])
def test_a_job_whose_token_has_run_out_waits_for_a_new_one(
    make_worker: Make, make_job: Make, long_ago: Make, limited: bool
) -> None:
    limit(100 if limited else None)
    ran_out = [make_job(priority=9) for _ in range(picking.SLACK + 20)]
    for job in ran_out:
        long_ago(job, token_until=1)
    serves, unknown, worker = make_job(), make_job(), make_worker()
    long_ago(serves, token_until=-60)
    assert set(ids(*take(worker))) == set(ids(serves, unknown))
    long_ago(ran_out[0], token_until=-60)
    assert ids(*take(worker)) == ids(ran_out[0])


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


@pytest.fixture(autouse=True)
def patient_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, a claim waits until the test lets the queue go."""
    monkeypatch.setattr(picking, "_QUEUE_WAIT_MS", 60_000)


def limit(slots: int | None, *, queue: str = "default", paused: bool = False) -> None:
    Queue.objects.update_or_create(name=queue, defaults={"concurrency_limit": slots, "paused": paused})


def held_slots(queue: str = "default") -> int:
    held = Job.objects.filter(queue=queue, state__in=HELD)
    return int(held.aggregate(slots=Sum("slots", default=0))["slots"])


@pytest.mark.parametrize("state", ["claimed", "running"])
def test_a_queues_limit_counts_the_slots_that_all_workers_of_all_teams_hold(
    make_worker: Make, make_job: Make, state: str
) -> None:
    limit(5)
    make_job(worker=make_worker(), state=state, slots=2)
    make_job(worker=make_worker(team_name="red"), state=state, slots=1, team_name="red")
    # Neither what is over nor what another queue holds counts.
    make_job(worker=make_worker(), state="success", slots=50)
    make_job(worker=make_worker(), state=state, slots=50, queue="other")
    for _ in range(4):
        make_job()
    assert len(take(make_worker())) == 2
    assert take(make_worker()) == []


def test_a_slot_that_becomes_free_in_a_limited_queue_is_given_to_the_next_job(
    make_worker: Make, make_job: Make
) -> None:
    limit(1)
    busy, worker = make_worker(), make_worker()
    running, waiting = make_job(worker=busy), make_job()
    assert take(worker) == []
    report = lifecycle.Report(attempt=1, state=ReportState.SUCCESS)
    lifecycle.report(worker_id=busy.pk, job_id=running.pk, report=report)
    assert ids(*take(worker)) == ids(waiting)


@pytest.mark.parametrize(("slots", "taken"), [(None, 4), (0, 0), (1, 0), (2, 1), (7, 3), (8, 4)])
def test_a_queue_hands_out_as_many_slots_as_its_limit_lets_in(
    make_worker: Make, make_job: Make, slots: int | None, taken: int
) -> None:
    limit(slots)
    for _ in range(6):
        make_job(slots=2)
    assert len(take(make_worker(concurrency=8))) == taken


def test_a_lowered_limit_takes_nothing_back_and_lets_nothing_in(make_worker: Make, make_job: Make) -> None:
    worker = make_worker(concurrency=20)
    for _ in range(5):
        make_job(worker=worker)
    make_job()
    limit(2)
    assert take(worker) == []
    assert held_slots() == 5


def test_priority_is_compared_between_queues_with_and_without_a_limit(
    make_worker: Make, make_job: Make, long_ago: Make
) -> None:
    limit(9, queue="tight")
    limit(9, queue="narrow")
    jobs = [make_job(queue=queue, priority=5) for queue in ("tight", "free", "narrow", "free")]
    for age, job in enumerate(reversed(jobs)):
        long_ago(job, queued_at=age)
    urgent = make_job(queue="free", priority=9)
    late = make_job(queue="tight", priority=1)
    worker = make_worker(concurrency=100)
    assert [ids(*take(worker, free_slots=2)) for _ in range(4)] == [
        ids(urgent, jobs[0]),
        ids(jobs[1], jobs[2]),
        ids(jobs[3], late),
        [],
    ]


@pytest.mark.parametrize("slots", [0, 3])
def test_the_backlog_of_a_limited_queue_neither_blocks_nor_displaces_other_queues(
    make_worker: Make, make_job: Make, slots: int
) -> None:
    limit(slots, queue="tight")
    for size in (1, 1, 2):
        for _ in range(picking.SLACK):
            make_job(queue="tight", priority=9, slots=size)
    for _ in range(10):
        make_job(queue="free")
    taken = take(make_worker(concurrency=8))
    assert sum(job.slots for job in taken if job.queue == "tight") == slots
    assert len([job for job in taken if job.queue == "free"]) == 8 - slots


def test_a_job_that_its_queue_does_not_let_in_now_keeps_no_smaller_one_waiting(
    make_worker: Make, make_job: Make
) -> None:
    limit(4)
    make_job(worker=make_worker(), slots=2)
    make_job(slots=3, priority=9)
    small = make_job(slots=2)
    assert ids(*take(make_worker())) == ids(small)


def test_repeated_claims_fill_a_limited_queue_whatever_the_sizes_of_its_jobs(make_worker: Make, make_job: Make) -> None:
    limit(7)
    for priority, slots in enumerate([1, 1, 1, 2, 3, 5], start=1):
        make_job(slots=slots, priority=priority)
    first, second = make_worker(concurrency=6), make_worker(concurrency=6)
    taken = [[job.slots for job in take(worker)] for worker in (first, second, first, second)]
    assert taken == [[5], [2], [], []]
    limit(9)
    assert [job.slots for job in take(second)] == [1, 1]


def test_a_limited_queue_that_is_paused_hands_out_nothing(make_worker: Make, make_job: Make) -> None:
    limit(5, paused=True)
    make_job()
    other = make_job(queue="other")
    assert ids(*take(make_worker())) == ids(other)


def test_a_job_of_a_limited_queue_that_somebody_is_changing_is_skipped(
    transactional_db: None, make_worker: Make, make_job: Make, second_connection: psycopg.Connection[Any]
) -> None:
    limit(1)
    first, second = make_job(priority=9), make_job(priority=1)
    second_connection.execute("SELECT FROM job WHERE id = %s FOR UPDATE", [first.pk])
    assert ids(*take(make_worker())) == ids(second)


def test_a_claim_counts_what_another_took_while_it_waited_for_the_queue(
    make_worker: Make,
    make_job: Make,
    in_thread: Callable[..., Future[Any]],
    second_connection: psycopg.Connection[Any],
    blocked: Callable[[int], None],
) -> None:
    limit(3)
    jobs = [make_job() for _ in range(6)]
    here, elsewhere = make_worker(), make_worker()
    second_connection.execute("SELECT FROM queue WHERE name = 'default' FOR NO KEY UPDATE")
    waiting = in_thread(take, here)
    blocked(1)
    second_connection.execute(
        "UPDATE job SET state = 'claimed', worker_id = %s WHERE id = ANY (%s)", [elsewhere.pk, ids(*jobs[:2])]
    )
    second_connection.commit()
    assert len(waiting.result(30)) == 1
    assert held_slots() == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE queue SET paused = true WHERE name = 'default'",
        "UPDATE queue SET concurrency_limit = 0 WHERE name = 'default'",
        "DELETE FROM queue WHERE name = 'default'",
    ],
    ids=["pause", "limit", "delete"],
)
def test_a_claim_obeys_what_an_operator_does_while_it_waits_for_the_queue(
    make_worker: Make,
    make_job: Make,
    in_thread: Callable[..., Future[Any]],
    second_connection: psycopg.Connection[Any],
    blocked: Callable[[int], None],
    change: LiteralString,
) -> None:
    limit(3)
    make_job()
    other = make_job(queue="other")
    second_connection.execute(change)
    waiting = in_thread(take, make_worker())
    blocked(1)
    second_connection.commit()
    assert ids(*waiting.result(30)) == ids(other)


def test_a_claim_that_waits_for_a_queue_keeps_no_job_from_others(
    make_worker: Make,
    make_job: Make,
    in_thread: Callable[..., Future[Any]],
    second_connection: psycopg.Connection[Any],
    blocked: Callable[[int], None],
) -> None:
    limit(1, queue="tight")
    urgent, job = make_job(queue="tight", priority=9), make_job()
    second_connection.execute("SELECT FROM queue WHERE name = 'tight' FOR NO KEY UPDATE")
    waiting = in_thread(take, make_worker())
    blocked(1)
    assert ids(*take(make_worker(queues=["default"]))) == ids(job)
    second_connection.commit()
    assert ids(*waiting.result(30)) == ids(urgent)


def test_a_claim_locks_limited_queues_in_the_order_of_their_names(
    make_worker: Make,
    make_job: Make,
    in_thread: Callable[..., Future[Any]],
    second_connection: psycopg.Connection[Any],
    blocked: Callable[[int], None],
) -> None:
    # In the table the last one is first.
    for queue in "cba":
        make_job(queue=queue)
    Queue.objects.update(concurrency_limit=1)
    second_connection.execute("SELECT FROM queue WHERE name = 'a' FOR NO KEY UPDATE")
    waiting = in_thread(take, make_worker())
    blocked(1)
    second_connection.execute("SELECT FROM queue FOR NO KEY UPDATE NOWAIT")
    second_connection.commit()
    assert {job.queue for job in waiting.result(30)} == {"a", "b", "c"}


def test_whoever_keeps_a_limited_queue_locked_stops_that_queue_alone(
    transactional_db: None,
    make_worker: Make,
    make_job: Make,
    second_connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(picking, "_QUEUE_WAIT_MS", 1)
    limit(3)
    make_job(priority=9)
    other = make_job(queue="other")
    second_connection.execute("SELECT FROM queue FOR UPDATE")
    assert ids(*take(make_worker())) == ids(other)


@pytest.mark.parametrize("slots", [None, 0, 1])
def test_a_claim_waits_for_nobodys_queue_unless_a_limited_one_has_room(
    make_worker: Make,
    make_job: Make,
    in_thread: Callable[..., Future[Any]],
    second_connection: psycopg.Connection[Any],
    slots: int | None,
) -> None:
    limit(slots)
    make_job(worker=make_worker())
    make_job(priority=9)
    make_job(queue="other")
    second_connection.execute("SELECT FROM queue FOR UPDATE")
    taken = {job.queue for job in in_thread(take, make_worker()).result(20)}
    assert taken == ({"default", "other"} if slots is None else {"other"})


def test_concurrent_claims_of_many_workers_fill_limited_queues_exactly(
    make_worker: Make, make_job: Make, in_thread: Callable[..., Future[Any]]
) -> None:
    limit(7, queue="a")
    limit(5, queue="b")
    for queue in ("a", "b", "free"):
        for _ in range(30):
            make_job(queue=queue)
    workers = [make_worker(concurrency=4) for _ in range(16)]
    taken = [future.result(60) for future in [in_thread(take, worker) for worker in workers]]
    handed_out = [job for jobs in taken for job in jobs]
    assert len(set(ids(*handed_out))) == len(handed_out)
    assert Counter(job.queue for job in handed_out) == {"a": 7, "b": 5, "free": 30}
    assert [held_slots(queue) for queue in ("a", "b", "free")] == [7, 5, 30]


def test_limits_hold_at_every_moment_while_jobs_come_and_go(
    make_worker: Make, make_job: Make, in_thread: Callable[..., Future[Any]]
) -> None:
    limits = {"a": 3, "b": 5}
    for queue, slots in limits.items():
        limit(slots, queue=queue)
    for number in range(60):
        make_job(queue=("a", "b", "free")[number % 3], slots=1 + number // 3 % 3, priority=number % 4)

    def work(worker: Worker) -> tuple[list[uuid.UUID], int]:
        """Claim and finish, one claim after the other; return the jobs, and by how much a limit was exceeded."""
        done: list[uuid.UUID] = []
        excess = 0
        while Job.objects.filter(state="queued").exists():
            jobs = take(Worker.objects.get(pk=worker.pk))
            excess = max([excess, *(held_slots(queue) - slots for queue, slots in limits.items())])
            pairs = [(job.pk, job.attempt) for job in jobs]
            lifecycle.confirm(worker_id=worker.pk, pairs=pairs)
            for job_id, attempt in pairs:
                report = lifecycle.Report(attempt=attempt, state=ReportState.SUCCESS)
                lifecycle.report(worker_id=worker.pk, job_id=job_id, report=report)
                done.append(job_id)
        return done, excess

    work_of = [in_thread(work, make_worker(concurrency=4)) for _ in range(8)]
    results = [future.result(120) for future in work_of]
    assert [excess for _, excess in results] == [0] * len(results)
    done = [job_id for ids_of_worker, _ in results for job_id in ids_of_worker]
    assert len(done) == len(set(done)) == Job.objects.filter(state="success").count() == 60


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


def buffers_of_a_claim(worker: Worker, *, statement: str = picking._PICK, **parameters: Any) -> int:
    """8 kB pages that a statement of the claim reads, by PostgreSQL's own account."""
    parameters |= picking._parameters(worker=worker, free_slots=8)
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
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


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh statistics", "stale statistics"])
@pytest.mark.parametrize(
    "others",
    [{"queue": "other"}, {"slots": 9}, {"slots": 4}, {"team": "red"}, {"finished": True}],
    ids=["other queue", "too large for the worker", "too large for the queue", "other team", "finished"],
)
def test_a_limit_costs_the_same_beside_thousands_of_jobs_that_the_worker_cannot_take(
    make_worker: Make, make_job: Make, crowd: Callable[..., None], others: dict[str, Any], fresh: bool
) -> None:
    limit(3)
    make_job(queue="other")
    job = make_job(priority=-1)
    crowd(**others, fresh=fresh)
    worker = make_worker(queues=["default"])
    assert buffers_of_a_claim(worker) < 60
    assert buffers_of_a_claim(worker, statement=picking._WITH_ROOM, names=["default"]) < 20
    assert buffers_of_a_claim(worker, statement=picking._PICK_WITHIN_LIMITS, locked=["default"]) < 60
    assert ids(*take(worker)) == ids(job)


@pytest.mark.parametrize("slots", [None, 3])
def test_a_long_queue_without_a_scheduler_costs_a_claim_a_bounded_number_of_pages(
    make_worker: Make, make_job: Make, crowd: Callable[..., None], slots: int | None
) -> None:
    limit(slots)
    crowd()
    Job.objects.update(token_until=Now())
    worker = make_worker()
    statement = picking._PICK_WITHIN_LIMITS if slots else picking._PICK
    parameters = {"locked": ["default"]} if slots else {}
    assert buffers_of_a_claim(worker, statement=statement, **parameters) < 2 * picking.DEPTH
    assert take(worker) == []


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh statistics", "stale statistics"])
@pytest.mark.parametrize("slots", [0, 3])
def test_a_claim_from_a_long_limited_queue_reads_little_more_than_it_takes(
    make_worker: Make, make_job: Make, crowd: Callable[..., None], slots: int, fresh: bool
) -> None:
    limit(slots)
    make_job()
    crowd(fresh=fresh)
    worker = make_worker()
    assert buffers_of_a_claim(worker) < 60
    assert buffers_of_a_claim(worker, statement=picking._WITH_ROOM, names=["default"]) < 20
    assert buffers_of_a_claim(worker, statement=picking._PICK_WITHIN_LIMITS, locked=["default"]) < 150
    assert len(take(worker)) == slots


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


def test_a_limit_costs_statements_only_where_its_queue_has_jobs_that_fit(
    make_worker: Make, make_job: Make, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    worker = make_worker()
    limit(1)
    limit(0, queue="closed")
    for columns in ({"slots": 2}, {"slots": 99}, {"team_name": "red"}, {"queue": "closed"}):
        make_job(**columns)
    with django_assert_max_num_queries(6):
        assert take(worker) == []
    job = make_job()
    # And: which limited queues have room; the savepoint, patience, lock, its release; the pick within the limits.
    with django_assert_max_num_queries(13):
        assert ids(*take(worker)) == ids(job)
    make_job()
    # The queue is full: nobody waits for it.
    with django_assert_max_num_queries(8):
        assert take(worker) == []
