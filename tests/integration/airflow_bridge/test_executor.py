from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest

from airflow_bridge import store
from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import StoreAway
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import (
    FAILED,
    QUEUED,
    break_store,
    job_id,
    let_time_pass,
    queue,
    stored,
    stored_task,
    turn,
)
from tests.unit.airflow_bridge.builders import callback, task

# Queueing


def test_queueing_only_buffers_and_the_heartbeat_writes(executor: EdgeControlExecutor, database: Database) -> None:
    workload = task()
    queue(executor, workload)
    assert stored(database) == set()
    assert executor.slots_occupied == 1
    assert turn(executor) == {}
    assert stored(database) == {job_id(workload)}
    assert not executor.queued_tasks
    assert executor.has_task(workload.ti)


def test_a_batch_is_one_statement(executor: EdgeControlExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    enqueue = executor._store.enqueue
    monkeypatch.setattr(executor._store, "enqueue", lambda jobs: calls.append(len(jobs)) or enqueue(jobs))  # type: ignore[func-returns-value]
    queue(executor, *(task(map_index=number) for number in range(200)), callback())
    turn(executor)
    assert calls == [201]


def test_waiting_jobs_occupy_no_slot_and_held_ones_do(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    # More than [core] parallelism: a dead site must not stop Airflow.
    workloads = [task(map_index=number) for number in range(50)]
    queue(executor, *workloads)
    turn(executor)
    assert len(stored(database)) == 50
    assert (executor.slots_occupied, executor.slots_available) == (0, 32)
    for workload in workloads[:3]:
        rows.hold(database, job_id(workload), worker=worker, state="claimed")
    turn(executor)
    assert executor.running == {workload_key(workload) for workload in workloads[:3]}
    assert executor.slots_available == 29


def test_a_released_job_gives_its_slot_back(executor: EdgeControlExecutor, database: Database, worker: int) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker, state="claimed")
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET state = 'queued', worker_id = NULL")
    turn(executor)
    assert executor.slots_occupied == 0
    assert executor.has_task(workload.ti)


def test_a_poisoned_row_fails_alone_with_its_reason(executor: EdgeControlExecutor, database: Database) -> None:
    workloads = [task(map_index=number) for number in range(9)]
    poisoned = task(map_index=9, pool_slots=0)
    queue(executor, *workloads[:4], poisoned, *workloads[4:])
    events = turn(executor)
    assert stored(database) == {job_id(workload) for workload in workloads}
    assert list(events) == [workload_key(poisoned)]
    state, reason = events[workload_key(poisoned)]
    assert state == FAILED
    assert "could not store it" in reason
    assert "job_slots_positive" in reason
    assert not executor.has_task(poisoned.ti)
    task_instances.change(poisoned, state="up_for_retry")
    assert turn(executor) == {}


def test_a_poisoned_rows_event_that_airflow_dropped_is_emitted_again(executor: EdgeControlExecutor) -> None:
    poisoned = task(pool_slots=0)
    queue(executor, poisoned)
    assert workload_key(poisoned) in turn(executor)
    assert turn(executor) == {}
    let_time_pass(executor)
    assert workload_key(poisoned) in turn(executor)


def test_a_commit_that_was_not_answered_is_repeated_without_harm(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = task()
    queue(executor, workload)
    enqueue = executor._store.enqueue

    def answer_lost(jobs: Any) -> Any:
        enqueue(jobs)
        raise StoreAway("server closed the connection unexpectedly")

    with monkeypatch.context() as patch:
        patch.setattr(executor._store, "enqueue", answer_lost)
        turn(executor)
    assert workload_key(workload) in executor.queued_tasks
    # Whatever the clocks say meanwhile.
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '1 hour'")
    let_time_pass(executor)
    assert turn(executor) == {}
    assert not executor.queued_tasks
    assert stored(database) == {job_id(workload)}
    assert not executor._buffer.tried


def test_a_queueing_without_id_gets_one_that_airflow_is_told(executor: EdgeControlExecutor, database: Database) -> None:
    workload = task()
    workload.ti.external_executor_id = None
    queue(executor, workload)
    events = turn(executor)
    (only,) = stored(database)
    assert events == {workload_key(workload): (QUEUED, str(only))}
    assert executor.has_task(workload.ti)


def test_an_id_of_an_earlier_queueing_is_replaced(executor: EdgeControlExecutor, database: Database) -> None:
    # As Airflow 3.3.2 does it to a task that chose its executor by class name, deferred and resumed.
    workload = task()
    queue(executor, workload)
    turn(executor)
    earlier = job_id(workload)
    rows.end(database, earlier, state="success", outcome="deferred")
    assert turn(executor) == {}
    executor.queue_workload(workload, session=None)
    events = turn(executor)
    state, new_id = events[workload_key(workload)]
    assert state == QUEUED
    assert UUID(new_id) != earlier
    turn(executor)
    assert rows.job(database, UUID(new_id)).state == "queued"


def test_an_id_of_an_earlier_queueing_is_replaced_though_the_first_answer_was_lost(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = stored_task(executor)
    rows.end(database, job_id(workload), state="success", outcome="deferred")
    turn(executor)
    turn(executor)
    executor.queue_workload(workload, session=None)
    with monkeypatch.context() as patch:
        break_store(patch, executor, "enqueue", StoreAway("server closed the connection unexpectedly"))
        turn(executor)
    let_time_pass(executor)
    state, new_id = turn(executor)[workload_key(workload)]
    assert state == QUEUED
    task_instances.change(workload, state="queued", job_id=new_id)
    turn(executor)
    assert rows.job(database, UUID(new_id)).state == "queued"


def test_an_id_that_another_schedulers_queueing_has_is_replaced_once_that_has_ended(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, worker: int
) -> None:
    other, executor = make_executor(), make_executor()
    workload = task()
    queue(other, workload)
    turn(other)
    rows.hold(database, job_id(workload), worker=worker)
    executor.queue_workload(workload, session=None)
    for _ in range(2):
        assert turn(executor) == {}
        assert executor.has_task(workload.ti)
    rows.end(database, job_id(workload), state="success", outcome="deferred")
    ((state, new_id),) = turn(executor).values()
    assert state == QUEUED
    turn(executor)
    assert rows.job(database, UUID(new_id)).dispatcher == executor.dispatcher


@contextmanager
def refusing(database: Database, *, when: str, error: str) -> Iterator[None]:
    """The table takes no row for which `when` holds."""
    database.execute(
        f"""
        CREATE FUNCTION edgecontrol.refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '{error}'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON edgecontrol.job
        FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION edgecontrol.refuse()
        """
    )
    try:
        yield
    finally:
        database.execute("DROP FUNCTION edgecontrol.refuse() CASCADE")


@pytest.mark.parametrize("number", [1, 9])
@pytest.mark.parametrize("error", ["54000", "23514", "P0001", "53100"])
def test_what_refuses_every_row_is_not_the_rows_fault(
    executor: EdgeControlExecutor, database: Database, number: int, error: str
) -> None:
    queue(executor, *(task(map_index=index) for index in range(number)))
    with refusing(database, when="true", error=error):
        for _ in range(3):
            assert turn(executor) == {}
            let_time_pass(executor)
    assert stored(database) == set()
    assert turn(executor) == {}
    assert len(stored(database)) == number


def test_a_column_that_only_a_newer_version_writes_fails_no_task(
    executor: EdgeControlExecutor, database: Database
) -> None:
    queue(executor, task())
    database.execute("ALTER TABLE edgecontrol.job ADD COLUMN unheard_of text NOT NULL")
    try:
        assert turn(executor) == {}
    finally:
        database.execute("ALTER TABLE edgecontrol.job DROP COLUMN unheard_of")
    let_time_pass(executor)
    assert turn(executor) == {}
    assert len(stored(database)) == 1


def test_rows_that_are_all_unfit_all_fail(executor: EdgeControlExecutor) -> None:
    poisoned = [task(map_index=number, pool_slots=0) for number in range(3)]
    queue(executor, *poisoned)
    assert {key: state for key, (state, _) in turn(executor).items()} == {
        workload_key(each): FAILED for each in poisoned
    }


@pytest.mark.parametrize("seconds", [3, 0], ids=["fast", "slow"])
def test_a_row_that_cannot_be_stored_now_waits_alone(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    # Where each statement takes all time there is, a smaller batch is tried in the next turn.
    monkeypatch.setattr("airflow_bridge.executor.TURN_SECONDS", seconds)
    workloads = [task(map_index=number) for number in range(9)]
    queue(executor, *workloads)
    stuck = workloads[4]
    with refusing(database, when="NEW.map_index = 4", error="P0001"):
        for _ in range(20 if not seconds else 1):
            assert turn(executor) == {}
        assert stored(database) == {job_id(workload) for workload in workloads} - {job_id(stuck)}
        late = task(map_index=10)
        queue(executor, late)
        turn(executor)
        assert job_id(late) in stored(database)
        assert executor.slots_occupied == 1
    let_time_pass(executor)
    assert turn(executor) == {}
    assert job_id(stuck) in stored(database)


# Costs


def test_an_idle_loop_is_one_statement_however_much_is_stored(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.store_many(database, 2000, dispatcher=executor.dispatcher, state="success")
    turn(executor)
    borrowed: list[int] = []
    borrow = executor._store._connections.borrow
    monkeypatch.setattr(executor._store._connections, "borrow", lambda: borrowed.append(1) or borrow())  # type: ignore[func-returns-value]
    executor.heartbeat()
    assert len(borrowed) == 1
    turn(executor)
    assert len(borrowed) == 3  # and once a second what is held


def test_hot_statements_read_neither_history_nor_backlog(executor: EdgeControlExecutor, database: Database) -> None:
    for state in ("success", "queued"):
        rows.store_many(database, 5000, dispatcher=executor.dispatcher, state=state)
    for statement, index in ((store._UNTOLD, "job_untold"), (store._HELD, "job_held")):
        values = {"dispatcher": executor.dispatcher, "besides": [], "limit": 100}
        plan = database.execute("EXPLAIN " + statement, values).fetchall()
        assert index in str(plan)
