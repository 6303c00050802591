from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from airflow_bridge import store
from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import NoConnection, StoreAway, StoreNotReady
from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.store import Store
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import (
    FAILED,
    SUCCESS,
    as_orphan,
    break_store,
    held_task,
    job_id,
    let_time_pass,
    queue,
    stored,
    turn,
)
from tests.unit.airflow_bridge.builders import task


def test_with_tables_missing_the_batch_is_kept_and_it_is_said_once(
    executor: EdgeControlExecutor, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = task()
    queue(executor, workload)
    database.execute("ALTER SCHEMA edgecontrol RENAME TO not_migrated")
    try:
        for _ in range(5):
            for pause in executor._turns.outage._steps.values():
                pause._next_try = 0
            assert turn(executor) == {}
    finally:
        database.execute("ALTER SCHEMA not_migrated RENAME TO edgecontrol")
    assert executor.slots_occupied == 1
    let_time_pass(executor)
    turn(executor)
    assert stored(database) == {job_id(workload)}
    assert executor.slots_occupied == 0
    assert capsys.readouterr().out.count("could not store new jobs (1 workloads are kept)") == 1


def test_a_dead_database_costs_the_loop_one_attempt_per_pause(
    executor: EdgeControlExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def away(*args: Any, **values: Any) -> Any:
        attempts.append(1)
        raise NoConnection("gone")

    monkeypatch.setattr(executor._store, "_run", away)
    queue(executor, *(task(map_index=number) for number in range(10)))
    start = time.monotonic()
    for _ in range(20):
        turn(executor)
    assert len(attempts) <= 1 + (time.monotonic() - start)
    assert executor.slots_occupied == 10


def test_a_batch_that_never_arrives_is_halved(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = executor._store.enqueue

    def swallowing(jobs: Any) -> Any:
        if len(jobs) > 2:
            raise StoreAway("no answer from PostgreSQL within the deadline")
        return enqueue(jobs)

    monkeypatch.setattr(executor._store, "enqueue", swallowing)
    queue(executor, *(task(map_index=number) for number in range(10)))
    for _ in range(4):
        turn(executor)
        let_time_pass(executor)
    assert len(stored(database)) == 10


@pytest.mark.parametrize(
    "error", [StoreAway("No space left on device"), StoreNotReady("no column"), ValueError("ours")]
)
def test_jobs_that_cannot_be_stored_hold_up_nothing_else(
    make_executor: Callable[[], EdgeControlExecutor],
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    dead, executor = make_executor(), make_executor()
    ended, waiting, orphan, kept = (task(map_index=number) for number in range(4))
    queue(dead, orphan)
    turn(dead)
    queue(executor, ended, waiting)
    turn(executor)
    rows.end(database, job_id(ended), state="failed", reason="exit code 1")
    break_store(monkeypatch, executor, "enqueue", error)
    queue(executor, kept)
    executor._ledger.renew(job_id(waiting), at=0)
    executor._adoption.hand_over[job_id(orphan)] = orphan.ti.id
    assert turn(executor) == {workload_key(ended): (FAILED, "exit code 1")}
    assert rows.job(database, job_id(waiting)).token.count(".") == 2
    assert rows.job(database, job_id(orphan)).dispatcher == executor.dispatcher
    assert executor.has_task(kept.ti)


def test_one_turn_of_a_slow_database_is_a_few_statements_and_the_rest_comes_next(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_bridge.executor.TURN_SECONDS", 0)
    monkeypatch.setattr("airflow_bridge.buffer.BATCH", 2)
    executor._buffer.batch = 2
    workloads = [task(map_index=number) for number in range(6)]
    queue(executor, *workloads)
    executor._to_revoke.add(uuid4())
    asked: list[str] = []
    run = executor._store._run

    def noted(query: Any, **values: Any) -> Any:
        asked.append(next(name for name, text in vars(store).items() if text == query))
        return run(query, **values)

    monkeypatch.setattr(executor._store, "_run", noted)
    in_turns = []
    for _ in range(2 + len(executor._watches)):
        executor.heartbeat()
        in_turns.append(asked.copy())
        asked.clear()
    assert len(stored(database)) == 6
    assert all(len(statements) <= 3 for statements in in_turns)
    assert {"_HELD", "_REVOKE", "_ADOPT_OVERDUE"} <= {statement for turn in in_turns for statement in turn}


def test_what_airflow_rolled_back_is_not_written_when_the_scheduler_ends(
    executor: EdgeControlExecutor, database: Database
) -> None:
    """A signal may end the scheduler between the queueing and its commit; another one queues these tasks then."""
    committed, rolled_back, queued_elsewhere = (task(map_index=number) for number in range(3))
    queue(executor, committed)
    queue(executor, rolled_back, ti_state="scheduled")
    queue(executor, queued_elsewhere)
    task_instances.change(queued_elsewhere, state="queued", job_id=uuid4())
    executor.end()
    assert stored(database) == {job_id(committed)}


def test_a_job_whose_task_airflow_gave_up_is_ours_no_more_and_revoked(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    """As Airflow does after a task's heartbeats failed to come: it drops the event while `has_task` is true."""
    workload = held_task(executor, database, worker=worker)
    executor.change_state(workload_key(workload), FAILED)
    assert turn(executor) == {workload_key(workload): (FAILED, None)}
    assert not executor.has_task(workload.ti)
    assert rows.job(database, job_id(workload)).state == "revoked"


@pytest.mark.parametrize("state", ["failed", "lost", "success"])
def test_a_task_that_was_cleared_while_it_ran_is_scheduled_again_when_its_job_has_ended(
    executor: EdgeControlExecutor, database: Database, worker: int, state: str
) -> None:
    """Airflow gives it a new id then, and waits for the executor in RESTARTING."""
    workload = held_task(executor, database, worker=worker)
    task_instances.clear()
    cleared = task(job_id=job_id(workload))
    task_instances.add(cleared, state="restarting")
    rows.end(database, job_id(workload), state=state)
    assert turn(executor)[workload_key(workload)][0] == SUCCESS


def test_without_a_url_nothing_is_raised_and_nothing_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__EDGECONTROL__DATABASE_URL", raising=False)
    executor = EdgeControlExecutor(parallelism=32)
    executor.start()
    executor.queue_workload(task(), session=None)
    assert turn(executor) == {}
    assert executor.slots_occupied == 1
    executor.end()


STATEMENTS = [
    name
    for name, method in vars(Store).items()
    if callable(method) and not name.startswith("_") and name not in ("close", "log_parts", "log_page", "add_log")
]


@pytest.mark.parametrize("method", STATEMENTS)
@pytest.mark.parametrize("error", [StoreAway("gone"), StoreNotReady("no table"), RuntimeError("our mistake")])
def test_whatever_statement_fails_the_scheduler_sees_nothing_and_nothing_is_lost(
    make_executor: Callable[[], EdgeControlExecutor],
    database: Database,
    worker: int,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    error: Exception,
) -> None:
    dead, executor = make_executor(), make_executor()
    adopted, waiting, late = task(map_index=1), task(map_index=2), task(map_index=3)
    queue(dead, adopted)
    turn(dead)
    queue(executor, late)
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '2 days' WHERE map_index = 3")
    queue(executor, waiting)
    executor._to_revoke.add(uuid4())
    executor._ledger.renew(job_id(late), at=0)
    with monkeypatch.context() as patch:
        break_store(patch, executor, method, error)
        assert executor.try_adopt_task_instances([as_orphan(adopted)]) == []
        turn(executor)
        turn(executor)
        executor.end()
    events: dict[Any, Any] = {}
    for _ in range(5):
        let_time_pass(executor)
        events.update(turn(executor))
        if workload_key(late) in events:
            task_instances.change(late, state="up_for_retry")
    assert [key for key in events if key != workload_key(late)] == []
    assert events[workload_key(late)][0] == FAILED
    for workload in (adopted, waiting):
        row = rows.job(database, job_id(workload))
        assert (row.state, row.dispatcher) == ("queued", executor.dispatcher)
        assert executor.has_task(workload.ti)
