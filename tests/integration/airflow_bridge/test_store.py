from __future__ import annotations

import json
import threading
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from airflow_bridge.database import RowRefused, StoreAway, StoreNotReady
from airflow_bridge.states import JobState
from airflow_bridge.store import Store
from tests.integration.airflow_bridge import rows
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import DISPATCHER, new_job

OTHER = UUID("d15ba7c4-0000-4000-8000-000000000002")


def notifications(database: Database, call: Any) -> list[tuple[str, dict[str, Any]]]:
    """What anybody notified during the call, in order."""
    database.execute("LISTEN edgecontrol_jobs")
    database.execute("LISTEN edgecontrol_worker")
    call()
    return [(note.channel, json.loads(note.payload)) for note in database.notifies(timeout=0.5)]


def test_a_new_job_waits_with_everything_the_agent_needs(store: Store, database: Database) -> None:
    given = new_job(queue="site-b", slots=2, priority=7, workload={"type": "ExecuteTask", "ti": {"id": "1"}})
    assert store.enqueue([given]) == {given.id}
    row = rows.job(database, given.id)
    assert (row.state, row.attempt, row.queue, row.slots, row.priority) == ("queued", 0, "site-b", 2, 7)
    assert (row.workload, row.token, row.dispatcher) == (given.workload, "a token", DISPATCHER)
    assert row.queued_at is not None
    assert row.told_at is None


def test_a_queue_appears_with_its_first_job(store: Store, database: Database) -> None:
    store.enqueue([new_job(queue="site-b"), new_job(queue="site-a"), new_job(queue="site-b")])
    store.enqueue([new_job(queue="site-b")])
    names = database.execute("SELECT name, paused FROM edgecontrol.queue ORDER BY name").fetchall()
    assert [tuple(row) for row in names] == [("site-a", False), ("site-b", False)]


def test_a_batch_written_again_inserts_nothing_and_wakes_nobody(store: Store, database: Database) -> None:
    batch = [new_job(), new_job()]
    store.enqueue(batch)
    rows.end(database, batch[0].id, state="success")
    repeated: list[set[UUID]] = []
    assert notifications(database, lambda: repeated.append(store.enqueue(batch))) == []
    assert repeated == [set()]
    assert rows.job(database, batch[0].id).state == "success"


def test_one_notification_goes_out_per_queue_team_and_slots(store: Store, database: Database) -> None:
    batch = [
        new_job(queue="a"),
        new_job(queue="a"),
        new_job(queue="a", slots=2),
        new_job(queue="b", team_name="blue"),
    ]
    found = notifications(database, lambda: store.enqueue(batch))
    assert sorted(found, key=str) == sorted(
        [
            ("edgecontrol_jobs", {"queue": "a", "team": "", "slots": 1, "count": 2}),
            ("edgecontrol_jobs", {"queue": "a", "team": "", "slots": 2, "count": 1}),
            ("edgecontrol_jobs", {"queue": "b", "team": "blue", "slots": 1, "count": 1}),
        ],
        key=str,
    )


@pytest.mark.parametrize("held_as", [None, "claimed", "running"])
def test_a_new_job_revokes_an_open_one_of_the_same_task_instance(
    store: Store, database: Database, worker: int, held_as: str | None
) -> None:
    older = new_job()
    store.enqueue([older])
    if held_as:
        rows.hold(database, older.id, worker=worker, state=held_as)
    newer = new_job(airflow_id=older.airflow_id)
    found = notifications(database, lambda: store.enqueue([newer, new_job(queue="else")]))
    row = rows.job(database, older.id)
    assert (row.state, row.token, row.reason) == ("revoked", None, f"superseded by job {newer.id}")
    assert row.finished_at is not None
    assert rows.job(database, newer.id).state == "queued"
    # Its holder is told, and nobody else.
    told = [payload for channel, payload in found if channel == "edgecontrol_worker"]
    assert told == ([{"worker": worker}] if held_as else [])
    revision = database.execute("SELECT revision FROM edgecontrol.worker").fetchone()
    assert revision is not None
    assert revision.revision == (1 if held_as else 0)


@pytest.mark.parametrize("held_as", [None, "claimed", "running"])
def test_an_earlier_try_that_is_written_late_takes_no_place(
    store: Store, database: Database, worker: int, held_as: str | None
) -> None:
    # Its scheduler hung; another one took it for dead, and Airflow went on to the next try under the same id.
    late = new_job(try_number=1)
    newer = new_job(airflow_id=late.airflow_id, try_number=2)
    store.enqueue([newer])
    if held_as:
        rows.hold(database, newer.id, worker=worker, state=held_as)
    assert notifications(database, lambda: store.enqueue([late])) == []
    assert rows.job(database, newer.id).state == (held_as or "queued")
    row = rows.job(database, late.id)
    assert (row.state, row.token, row.reason) == ("revoked", None, f"superseded by job {newer.id}")
    assert row.finished_at is not None
    assert [untold.id for untold in store.untold(dispatcher=DISPATCHER, besides=[], limit=10)] == [late.id]


def test_a_finished_job_is_not_superseded(store: Store, database: Database) -> None:
    older = new_job()
    store.enqueue([older])
    rows.end(database, older.id, state="success", outcome="deferred")
    store.enqueue([new_job(airflow_id=older.airflow_id)])
    assert rows.job(database, older.id).state == "success"


def test_two_schedulers_writing_the_same_batch_at_once_insert_it_once(
    store: Store, postgres_url: str, database: Database
) -> None:
    batch = [new_job(queue=f"q{number}") for number in range(20)]
    second = Store(postgres_url)
    inserted: list[set[UUID]] = []
    with psycopg.connect(postgres_url) as blocker:
        # Both statements meet at this lock and go on together when it is released.
        blocker.execute("LOCK TABLE edgecontrol.job IN SHARE MODE")
        threads = [threading.Thread(target=lambda s=s: inserted.append(s.enqueue(batch))) for s in (store, second)]
        for thread in threads:
            thread.start()
        wait_for_waiters(database, 2)
        blocker.commit()
        for thread in threads:
            thread.join()
    second.close()
    assert inserted[0] | inserted[1] == {job.id for job in batch}
    assert not inserted[0] & inserted[1]


def wait_for_waiters(database: Database, number: int) -> None:
    query = """
        SELECT count(*) AS waiters FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE datname = current_database() AND NOT granted AND relation = 'edgecontrol.job'::regclass"""
    while database.execute(query).fetchone().waiters < number:  # type: ignore[union-attr]
        pass


@pytest.mark.parametrize(
    "unfit",
    [
        {"slots": 0},
        {"workload": {"text": "a\0b"}},
        {"task_id": "a\0b"},
        {"queue": "".join(chr(0x4E00 + number) for number in range(6000))},
        {"priority": 2**40},
    ],
    ids=["no slots", "NUL in the workload", "NUL in a text", "queue beyond the index", "priority beyond int"],
)
def test_an_unfit_row_is_refused_and_nothing_of_its_batch_is_written(
    store: Store, database: Database, unfit: dict[str, Any]
) -> None:
    fit = new_job()
    with pytest.raises(RowRefused):
        store.enqueue([fit, new_job(**unfit)])
    assert database.execute("SELECT id FROM edgecontrol.job").fetchall() == []
    assert store.enqueue([fit]) == {fit.id}


def test_untold_are_the_final_jobs_of_this_dispatcher_only(store: Store, database: Database) -> None:
    jobs = [new_job() for _ in range(4)]
    foreign = new_job(dispatcher=OTHER)
    store.enqueue([*jobs, foreign])
    rows.end(database, jobs[0].id, state="failed", reason="exit code 1")
    rows.end(database, jobs[1].id, state="success", outcome="success")
    rows.end(database, jobs[2].id, state="lost")
    rows.end(database, foreign.id, state="failed")
    store.mark_told([jobs[1].id])
    found = store.untold(dispatcher=DISPATCHER, besides=[jobs[2].id], limit=10)
    assert [(row.id, row.state, row.reason) for row in found] == [(jobs[0].id, "failed", "exit code 1")]
    assert len(store.untold(dispatcher=DISPATCHER, besides=[], limit=1)) == 1


def test_held_are_claimed_and_running_jobs_of_this_dispatcher(store: Store, database: Database, worker: int) -> None:
    jobs = [new_job() for _ in range(4)]
    foreign = new_job(dispatcher=OTHER)
    store.enqueue([*jobs, foreign])
    assert store.held(dispatcher=DISPATCHER) == {}
    for given, state in ((jobs[0], "claimed"), (jobs[1], "running"), (foreign, "running")):
        rows.hold(database, given.id, worker=worker, state=state)
    rows.end(database, jobs[2].id, state="success")
    assert store.held(dispatcher=DISPATCHER).keys() == {jobs[0].id, jobs[1].id}


def test_overdue_endings_of_another_dispatcher_are_adopted_once(store: Store, database: Database) -> None:
    overdue, young, told, waiting = (new_job() for _ in range(4))
    own = new_job(dispatcher=OTHER)
    store.enqueue([overdue, young, told, waiting, own])
    for job in (overdue, young, told, own):
        rows.end(database, job.id, state="success", outcome="success")
    store.mark_told([told.id])
    an_hour_ago = "UPDATE edgecontrol.job SET finished_at = now() - interval '1 hour' WHERE id = ANY(%s)"
    database.execute(an_hour_ago, [[overdue.id, told.id, own.id]])
    assert store.adopt_overdue(dispatcher=OTHER, seconds=600, seconds_of_others=60) == {overdue.id}
    assert store.adopt_overdue(dispatcher=OTHER, seconds=600, seconds_of_others=60) == set()


def test_adopted_jobs_change_their_dispatcher_and_are_told_again(store: Store, database: Database) -> None:
    waiting, told = new_job(), new_job()
    store.enqueue([waiting, told])
    rows.end(database, told.id, state="failed")
    store.mark_told([told.id])
    adopted = store.adopt([waiting.id, told.id, uuid4()], dispatcher=OTHER)
    assert {(row.id, row.state) for row in adopted} == {(waiting.id, "queued"), (told.id, "failed")}
    assert [row.id for row in store.untold(dispatcher=OTHER, besides=[], limit=10)] == [told.id]
    assert store.untold(dispatcher=DISPATCHER, besides=[], limit=10) == []


def test_revoking_withdraws_open_jobs_only_and_tells_their_workers(
    store: Store, database: Database, worker: int
) -> None:
    waiting, running, ended = new_job(), new_job(), new_job()
    store.enqueue([waiting, running, ended])
    rows.hold(database, running.id, worker=worker)
    rows.end(database, ended.id, state="success")
    revoked: list[set[UUID]] = []
    found = notifications(
        database, lambda: revoked.append(store.revoke([waiting.id, running.id, ended.id], reason="given up"))
    )
    assert revoked == [{waiting.id, running.id}]
    assert found == [("edgecontrol_worker", {"worker": worker})]
    assert rows.job(database, running.id).reason == "given up"
    assert rows.job(database, ended.id).state == "success"


@pytest.mark.parametrize("paused", [False, True])
def test_a_job_that_waited_too_long_fails_and_says_why(store: Store, database: Database, paused: bool) -> None:
    late, young = new_job(queue="site-b"), new_job(queue="site-b")
    store.enqueue([late, young])
    database.execute("UPDATE edgecontrol.queue SET paused = %s", [paused])
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '25 hours' WHERE id = %s", [late.id])
    assert store.expire([late.id, young.id], limit_seconds=86400).keys() == {late.id}
    row = rows.job(database, late.id)
    assert (row.state, row.token) == ("failed", None)
    why = "is paused" if paused else "has no free worker that may take it"
    assert row.reason == f"no worker took it within 86400 s: queue 'site-b' {why}"


def test_a_job_taken_in_the_last_moment_does_not_expire(store: Store, database: Database, worker: int) -> None:
    given = new_job()
    store.enqueue([given])
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '25 hours'")
    rows.hold(database, given.id, worker=worker, state="claimed")
    assert store.expire([given.id], limit_seconds=86400) == {}


def test_tokens_are_renewed_for_jobs_that_still_wait(store: Store, database: Database, worker: int) -> None:
    waiting, running, ended = new_job(), new_job(), new_job()
    store.enqueue([waiting, running, ended])
    rows.hold(database, running.id, worker=worker)
    rows.end(database, ended.id, state="failed")
    fresh = dict.fromkeys([waiting.id, running.id, ended.id], "fresh")
    assert store.renew_tokens(fresh, seconds=600) == {waiting.id}
    tokens = [rows.job(database, given.id).token for given in (waiting, running, ended)]
    assert tokens == ["fresh", "a token", None]


def test_it_is_known_until_when_a_token_serves(store: Store, database: Database) -> None:
    given, unknown = new_job(token_seconds=540.0), new_job()
    store.enqueue([given, unknown])
    left = database.execute(
        "SELECT extract(epoch FROM token_until - now())::float8 AS s FROM edgecontrol.job WHERE id = %s", [given.id]
    ).fetchall()
    assert 500 < left[0].s <= 540
    assert rows.job(database, unknown.id).token_until is None


def test_a_job_whose_token_had_run_out_is_announced_with_the_new_one(store: Store, database: Database) -> None:
    ran_out, fresh = new_job(token_seconds=-1.0, queue="late"), new_job(token_seconds=60.0)
    store.enqueue([ran_out, fresh])
    said = notifications(database, lambda: store.renew_tokens({ran_out.id: "t", fresh.id: "t"}, seconds=600))
    assert said == [("edgecontrol_jobs", {"queue": "late", "team": "", "slots": 1, "count": 1})]
    waits = database.execute("SELECT count(*) AS n FROM edgecontrol.job WHERE token_until < now()").fetchall()
    assert waits[0].n == 0


def test_standing_leaves_out_deleted_jobs_and_knows_ages(store: Store, database: Database) -> None:
    given = new_job()
    store.enqueue([given])
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '1 hour'")
    (standing,) = store.standing([given.id, uuid4()])
    assert (standing.id, standing.state, standing.dispatcher) == (given.id, JobState.QUEUED, DISPATCHER)
    assert 3600 <= standing.age < 3660


def test_log_parts_are_ordered_and_keep_the_newest_attempt_without_log(
    store: Store, database: Database, worker: int
) -> None:
    first = new_job(log_path="a.log")
    store.enqueue([first])
    rows.hold(database, first.id, worker=worker)
    rows.add_log(database, first.id, b"one", attempt=1)
    rows.end(database, first.id, state="success", outcome="deferred")
    assert store.add_log(log_path="a.log", data=b"trigger")
    second = new_job(log_path="a.log")
    store.enqueue([second, new_job(log_path="b.log")])
    parts = [(part.job_id, part.attempt, part.has_log, part.worker, part.state) for part in store.log_parts("a.log")]
    assert parts == [
        (first.id, 0, True, "berlin-3", "success"),
        (first.id, 1, True, "berlin-3", "success"),
        (second.id, 0, False, "", "queued"),
    ]


def test_attempts_that_left_no_log_are_not_parts(store: Store, database: Database) -> None:
    given = new_job(log_path="a.log")
    store.enqueue([given])
    database.execute("UPDATE edgecontrol.job SET attempt = 3")
    rows.add_log(database, given.id, b"two", attempt=2)
    assert [(part.attempt, part.has_log) for part in store.log_parts("a.log")] == [(2, True), (3, False)]


def test_log_pages_are_bounded_and_go_on_where_the_last_one_ended(store: Store, database: Database) -> None:
    given = new_job()
    store.enqueue([given])
    data = bytes(range(256)) * 40
    rows.add_log(database, given.id, data, chunk_size=1000)
    read, start, pages = b"", 0, 0
    while page := store.log_page(job_id=given.id, attempt=1, start=start, size=3000):
        assert sum(len(chunk) for _, chunk in page) <= 4000
        read += b"".join(chunk for _, chunk in page)
        start = page[-1][0] + len(page[-1][1])
        pages += 1
    assert read == data
    assert pages == 4


def test_what_airflow_adds_goes_to_the_newest_job_of_the_path(store: Store, database: Database) -> None:
    older, newer = new_job(log_path="a.log"), new_job(log_path="a.log")
    store.enqueue([older])
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '1 minute'")
    store.enqueue([newer])
    assert store.add_log(log_path="a.log", data=b"first ")
    assert store.add_log(log_path="a.log", data=b"second")
    assert store.log_page(job_id=newer.id, attempt=0, start=0, size=100) == [(0, b"first "), (6, b"second")]
    assert not store.add_log(log_path="unknown.log", data=b"x")


def test_missing_tables_are_told_as_not_ready_and_found_when_they_come(store: Store, database: Database) -> None:
    database.execute("ALTER SCHEMA edgecontrol RENAME TO not_migrated")
    try:
        with pytest.raises(StoreNotReady, match="the control plane makes"):
            store.enqueue([new_job()])
    finally:
        database.execute("ALTER SCHEMA not_migrated RENAME TO edgecontrol")
    given = new_job()
    assert store.enqueue([given]) == {given.id}


def test_a_slow_statement_ends_at_the_deadline_and_the_store_goes_on(
    store: Store, postgres_url: str, database: Database
) -> None:
    with psycopg.connect(postgres_url) as blocker:
        blocker.execute("LOCK TABLE edgecontrol.job")
        with pytest.raises(StoreAway, match="statement timeout"):
            store.enqueue([new_job()])
    given = new_job()
    assert store.enqueue([given]) == {given.id}


def test_a_connection_that_the_server_ended_is_replaced_unseen(store: Store, database: Database) -> None:
    store.held(dispatcher=DISPATCHER)
    ended = database.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'edgecontrol-airflow'"
    )
    assert ended.fetchall()
    assert store.held(dispatcher=DISPATCHER) == {}


def test_no_method_takes_more_than_one_statement(store: Store, database: Database) -> None:
    given = new_job(log_path="a.log")
    calls = [
        lambda: store.enqueue([given, new_job(airflow_id=given.airflow_id, queue="b")]),
        lambda: store.rehearse(),
        lambda: store.untold(dispatcher=DISPATCHER, besides=[], limit=1),
        lambda: store.mark_told([given.id]),
        lambda: store.held(dispatcher=DISPATCHER),
        lambda: store.standing([given.id]),
        lambda: store.adopt([given.id], dispatcher=DISPATCHER),
        lambda: store.adopt_overdue(dispatcher=DISPATCHER, seconds=1, seconds_of_others=1),
        lambda: store.adopt_abandoned(dispatcher=DISPATCHER, team_name="", seconds=1, before=None, limit=1),
        lambda: store.expire([given.id], limit_seconds=1),
        lambda: store.renew_tokens({given.id: "t"}, seconds=600),
        lambda: store.revoke([given.id], reason=""),
        lambda: store.revoke_each({given.id: ""}, states=["queued"]),
        lambda: store.workers_now(team_name=""),
        lambda: store.queues_now(team_name=""),
        lambda: store.log_parts("a.log"),
        lambda: store.log_page(job_id=given.id, attempt=0, start=0, size=1),
        lambda: store.add_log(log_path="a.log", data=b"x"),
    ]
    public = {name for name, method in vars(Store).items() if callable(method) and not name.startswith("_")} - {"close"}
    assert len(calls) == len(public)
    borrowed = []
    borrow = store._connections.borrow
    store._connections.borrow = lambda: borrowed.append(1) or borrow()  # type: ignore[method-assign,func-returns-value]
    for call in calls:
        call()
    assert len(borrowed) == len(calls)
