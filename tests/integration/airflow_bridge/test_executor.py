from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from airflow.utils.state import CallbackState, TaskInstanceState

from airflow_bridge import store
from airflow_bridge.database import NoConnection, StoreAway, StoreNotReady
from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.outage import Outage
from airflow_bridge.store import Store
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import callback, connection_test, task

FAILED, SUCCESS, QUEUED = TaskInstanceState.FAILED, TaskInstanceState.SUCCESS, TaskInstanceState.QUEUED


@pytest.fixture(scope="session", autouse=True)
def airflow_tables() -> None:
    task_instances.create_tables()


@pytest.fixture
def make_executor(
    postgres_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], EdgeControlExecutor]]:
    """Each call is another scheduler's executor."""
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", postgres_url)
    made: list[EdgeControlExecutor] = []

    def make() -> EdgeControlExecutor:
        executor = EdgeControlExecutor(parallelism=32)
        executor.start()
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor._store.close()
    task_instances.clear()


@pytest.fixture
def executor(make_executor: Callable[[], EdgeControlExecutor]) -> EdgeControlExecutor:
    return make_executor()


def turn(executor: EdgeControlExecutor) -> dict[Any, Any]:
    """One loop of the scheduler, at least a second after the last one; the events it would act upon."""
    executor._next_watch = float("-inf")
    executor.heartbeat()
    while executor._due:  # however slow this machine is
        executor._go_on_watching()
    return executor.get_event_buffer()


def let_time_pass(executor: EdgeControlExecutor) -> None:
    """The pauses of the executor are over."""
    executor._outage = Outage()
    executor._endings._paused.clear()


def queue(executor: EdgeControlExecutor, *workloads: Any, ti_state: str = "queued") -> None:
    for workload in workloads:
        if workload.type == "ExecuteTask":
            task_instances.add(workload, state=ti_state)
        executor.queue_workload(workload, session=None)


def job_id(workload: Any) -> UUID:
    return UUID(workload.ti.external_executor_id)


def stored(database: Database) -> set[UUID]:
    return {row.id for row in database.execute("SELECT id FROM edgecontrol.job").fetchall()}


def break_store(monkeypatch: pytest.MonkeyPatch, executor: EdgeControlExecutor, method: str, error: Exception) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(executor._store, method, broken)


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
    assert executor.running == {workload.key for workload in workloads[:3]}
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
    assert list(events) == [poisoned.key]
    state, reason = events[poisoned.key]
    assert state == FAILED
    assert "could not store it" in reason
    assert "job_slots_positive" in reason
    assert not executor.has_task(poisoned.ti)
    task_instances.change(poisoned, state="up_for_retry")
    assert turn(executor) == {}


def test_a_poisoned_rows_event_that_airflow_dropped_is_emitted_again(executor: EdgeControlExecutor) -> None:
    poisoned = task(pool_slots=0)
    queue(executor, poisoned)
    assert poisoned.key in turn(executor)
    assert turn(executor) == {}
    let_time_pass(executor)
    assert poisoned.key in turn(executor)


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
    assert workload.key in executor.queued_tasks
    # Whatever the clocks say meanwhile.
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '1 hour'")
    let_time_pass(executor)
    assert turn(executor) == {}
    assert not executor.queued_tasks
    assert stored(database) == {job_id(workload)}
    assert not executor._tried


def test_a_queueing_without_id_gets_one_that_airflow_is_told(executor: EdgeControlExecutor, database: Database) -> None:
    workload = task()
    workload.ti.external_executor_id = None
    queue(executor, workload)
    events = turn(executor)
    (only,) = stored(database)
    assert events == {workload.key: (QUEUED, str(only))}
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
    state, new_id = events[workload.key]
    assert state == QUEUED
    assert UUID(new_id) != earlier
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
    assert {key: state for key, (state, _) in turn(executor).items()} == {each.key: FAILED for each in poisoned}


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


# Outages


def test_with_tables_missing_the_batch_is_kept_and_it_is_said_once(
    executor: EdgeControlExecutor, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    workload = task()
    queue(executor, workload)
    database.execute("ALTER SCHEMA edgecontrol RENAME TO not_migrated")
    try:
        for _ in range(5):
            for pause in executor._outage._steps.values():
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
    executor._hand_over[job_id(orphan)] = orphan.ti.id
    assert turn(executor) == {ended.key: (FAILED, "exit code 1")}
    assert rows.job(database, job_id(waiting)).token.count(".") == 2
    assert rows.job(database, job_id(orphan)).dispatcher == executor.dispatcher
    assert executor.has_task(kept.ti)


def test_one_turn_of_a_slow_database_is_a_few_statements_and_the_rest_comes_next(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_bridge.executor.TURN_SECONDS", 0)
    monkeypatch.setattr("airflow_bridge.executor.BATCH", 2)
    executor._batch = 2
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
    for _ in range(6):
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


def test_a_job_whose_task_airflow_gave_up_is_revoked(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    """As Airflow does after the heartbeats of a task have failed to come: the next try has another id."""
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    executor.change_state(workload.key, FAILED)
    turn(executor)
    assert rows.job(database, job_id(workload)).state == "revoked"


@pytest.mark.parametrize("state", ["failed", "lost", "success"])
def test_a_task_that_was_cleared_while_it_ran_is_scheduled_again_when_its_job_has_ended(
    executor: EdgeControlExecutor, database: Database, worker: int, state: str
) -> None:
    """Airflow gives it a new id then, and waits for the executor in RESTARTING."""
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    task_instances.clear()
    cleared = task(job_id=job_id(workload))
    task_instances.add(cleared, state="restarting")
    rows.end(database, job_id(workload), state=state)
    assert turn(executor)[workload.key][0] == SUCCESS


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
        if late.key in events:
            task_instances.change(late, state="up_for_retry")
    assert [key for key in events if key != late.key] == []
    assert events[late.key][0] == FAILED
    for workload in (adopted, waiting):
        row = rows.job(database, job_id(workload))
        assert (row.state, row.dispatcher) == ("queued", executor.dispatcher)
        assert executor.has_task(workload.ti)


# Endings


def test_an_accepted_success_is_told_once_and_marked_on_the_next_turn(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    rows.end(database, job_id(workload), state="success", outcome="success")
    assert turn(executor) == {workload.key: (SUCCESS, None)}
    assert rows.job(database, job_id(workload)).told_at is None
    assert not executor.has_task(workload.ti)
    assert executor.slots_occupied == 0
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_failure_in_doubt_is_told_until_airflow_has_acted(executor: EdgeControlExecutor, database: Database) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    task_instances.change(workload, state="running", silence=1)
    rows.end(database, job_id(workload), state="failed", reason="result not delivered")
    assert turn(executor) == {workload.key: (FAILED, "result not delivered")}
    # Airflow dropped the event: another scheduler had the row locked.
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is None
    let_time_pass(executor)
    assert turn(executor) == {workload.key: (FAILED, "result not delivered")}
    task_instances.change(workload, state="up_for_retry")
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_deferral_frees_the_slot_and_tells_nothing(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    assert executor.slots_occupied == 1
    rows.end(database, job_id(workload), state="success", outcome="deferred")
    assert turn(executor) == {}
    assert executor.slots_occupied == 0
    assert not executor.has_task(workload.ti)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("success", ""), ("failed", ""), ("lost", ""), ("revoked", ""), ("success", "success"), ("failed", "failed")],
)
def test_the_late_end_of_a_deferred_job_never_touches_the_resumed_one(
    executor: EdgeControlExecutor, database: Database, worker: int, state: str, outcome: str
) -> None:
    first = task()
    queue(executor, first)
    turn(executor)
    rows.hold(database, job_id(first), worker=worker)
    resumed = task(id=first.ti.id)
    task_instances.change(first, state="queued", job_id=job_id(resumed))
    executor.queue_workload(resumed, session=None)
    turn(executor)  # the new job supersedes the old one,
    turn(executor)  # and that is settled
    rows.end(database, job_id(first), state=state, outcome=outcome)
    database.execute("UPDATE edgecontrol.job SET told_at = NULL")
    for _ in range(3):
        assert turn(executor) == {}
        let_time_pass(executor)
    assert executor.has_task(resumed.ti)
    assert rows.job(database, job_id(resumed)).state == "queued"


def test_a_lost_job_is_told_only_when_its_task_is_silent_too(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    task_instances.change(workload, state="running", silence=5)
    rows.hold(database, job_id(workload), worker=worker)
    rows.end(database, job_id(workload), state="lost", reason="berlin-3 rebooted")
    for _ in range(3):
        assert turn(executor) == {}
        let_time_pass(executor)
    assert executor.has_task(workload.ti)
    task_instances.change(workload, state="running", silence=executor.config.outage_patience * 2)
    assert turn(executor) == {workload.key: (FAILED, "berlin-3 rebooted")}
    assert [log.event for log in executor._task_event_logs] == ["edgecontrol lost"]


def test_a_lost_job_whose_task_finished_after_all_is_not_told(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    task_instances.change(workload, state="success")
    rows.end(database, job_id(workload), state="lost")
    assert turn(executor) == {}
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_deleted_job_does_not_leave_its_task_waiting_for_ever(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    database.execute("DELETE FROM edgecontrol.job")
    events = {**turn(executor), **turn(executor)}
    assert events == {workload.key: (FAILED, "its job was deleted")}


def test_a_job_that_nobody_takes_fails_after_the_limit_with_the_reason(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = task(queue="site-b")
    queue(executor, workload)
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '25 hours'")
    events = {**turn(executor), **turn(executor)}
    state, reason = events[workload.key]
    assert state == FAILED
    assert reason == "no worker took it within 86400 s: queue 'site-b' has no free worker that may take it"


def test_tokens_of_waiting_jobs_are_minted_anew(executor: EdgeControlExecutor, database: Database, worker: int) -> None:
    waiting, running = task(map_index=1), task(map_index=2)
    queue(executor, waiting, running)
    turn(executor)
    rows.hold(database, job_id(running), worker=worker)
    turn(executor)
    for workload in (waiting, running):
        executor._ledger.renew(job_id(workload), at=0)
    turn(executor)
    assert rows.job(database, job_id(waiting)).token.count(".") == 2
    assert rows.job(database, job_id(running)).token == running.token


def test_as_many_tokens_are_renewed_as_have_to_be(executor: EdgeControlExecutor, database: Database) -> None:
    workloads = [task(map_index=number) for number in range(600)]
    for workload in workloads:
        executor.queue_workload(workload, session=None)
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET token_until = now() - interval '1 hour'")
    for workload in workloads:
        executor._ledger.renew(job_id(workload), at=0)
    for _ in range(20):  # each turn does what fits into its time
        turn(executor)
        if not database.execute("SELECT FROM edgecontrol.job WHERE token_until < now()").fetchone():
            break
    else:
        pytest.fail("tokens were not renewed")
    assert executor._ledger.due_for_renewal(now=time.monotonic() + executor._token_seconds / 4, limit=1) == []


def test_a_renewal_that_failed_is_made_up_for_at_once(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = task()
    queue(executor, workload)
    turn(executor)
    executor._ledger.renew(job_id(workload), at=0)
    with monkeypatch.context() as patch:
        break_store(patch, executor, "renew_tokens", StoreAway("gone"))
        turn(executor)
    let_time_pass(executor)
    turn(executor)
    assert rows.job(database, job_id(workload)).token.count(".") == 2


def test_a_token_that_grew_old_in_the_buffer_is_renewed_as_soon_as_the_job_is_stored(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = task()
    queue(executor, workload)
    executor._buffered_at[workload.key] -= 10_000
    turn(executor)
    turn(executor)
    row = rows.job(database, job_id(workload))
    assert row.token.count(".") == 2
    assert row.token_until > row.queued_at


def test_an_event_of_airflows_own_ends_our_claim_on_the_task(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    # Airflow fails a task without heartbeat through the executor, and drops that event while `has_task` is true.
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    executor.change_state(workload.key, FAILED)
    assert turn(executor) == {workload.key: (FAILED, None)}
    assert not executor.has_task(workload.ti)


def test_a_callback_is_told_as_running_and_as_ended(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = callback()
    queue(executor, workload)
    assert turn(executor) == {}
    identity = UUID(workload.callback.id)
    rows.hold(database, identity, worker=worker)
    assert turn(executor) == {workload.key: (CallbackState.RUNNING, None)}
    assert turn(executor) == {}
    rows.end(database, identity, state="failed", reason="exit code 1")
    assert turn(executor) == {workload.key: (CallbackState.FAILED, "exit code 1")}


def test_a_connection_test_that_airflow_gave_up_is_revoked(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "supports_connection_test", True)
    workload = connection_test()
    queue(executor, workload)
    turn(executor)
    executor.fail_connection_test(workload.key)
    turn(executor)
    assert rows.job(database, workload.connection_test_id).state == "revoked"


# Adoption and revocation


def as_orphan(workload: Any, *, state: str = "queued") -> Any:
    """What the scheduler passes: loaded in part, with nothing beyond these columns for free."""
    ti = workload.ti
    return SimpleNamespace(
        id=ti.id, dag_id=ti.dag_id, task_id=ti.task_id, state=state, external_executor_id=ti.external_executor_id
    )


def test_jobs_of_a_dead_scheduler_are_taken_over_and_told(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, worker: int
) -> None:
    dead, heir = make_executor(), make_executor()
    waiting, running, ended = (task(map_index=number) for number in range(3))
    queue(dead, waiting, running, ended)
    turn(dead)
    rows.hold(database, job_id(running), worker=worker)
    rows.end(database, job_id(ended), state="failed", reason="exit code 1")
    orphans = [as_orphan(workload) for workload in (waiting, running, ended)]
    assert heir.try_adopt_task_instances(orphans) == []
    assert turn(heir) == {ended.key: (FAILED, "exit code 1")}
    assert heir.running == {running.key}
    assert heir.has_task(waiting.ti)
    # The dead one was only slow: it lets go without a word.
    assert turn(dead) == {}
    assert turn(dead) == {}
    assert not any(dead.has_task(workload.ti) for workload in (waiting, running))


def test_what_a_dead_scheduler_had_queued_and_not_written_is_queued_again_under_its_id(
    executor: EdgeControlExecutor, database: Database
) -> None:
    # Given back, Airflow would count another try.
    unwritten = task()
    task_instances.add_run(unwritten)
    task_instances.add(unwritten)
    assert executor.try_adopt_task_instances([as_orphan(unwritten)]) == []
    assert executor.has_task(unwritten.ti)
    assert turn(executor) == {}
    row = rows.job(database, job_id(unwritten))
    assert (row.state, row.dispatcher, row.try_number) == ("queued", executor.dispatcher, 1)
    assert row.workload["bundle_info"]["version"] == "v7"
    assert row.workload["log_path"].startswith("dag_id=etl/run_id=manual/task_id=extract")
    assert row.token


@pytest.mark.parametrize("slower", [0, 1], ids=["heir first", "slow one first"])
def test_a_scheduler_that_was_only_slow_writes_nothing_twice(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, slower: int
) -> None:
    slow, heir = make_executor(), make_executor()
    workload = task()
    task_instances.add_run(workload)
    queue(slow, workload)
    assert heir.try_adopt_task_instances([as_orphan(workload)]) == []
    executors = [heir, slow, heir, slow]
    for executor in executors[slower:] + executors[:slower]:
        assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).dispatcher == heir.dispatcher
    assert len(stored(database)) == 1
    assert heir.has_task(workload.ti)


def test_what_ended_without_a_scheduler_is_told_by_another_one(
    make_executor: Callable[[], EdgeControlExecutor], database: Database
) -> None:
    # Airflow does not offer it for adoption: its task has told Airflow how it ended.
    dead, heir = make_executor(), make_executor()
    old, young = task(map_index=1), task(map_index=2)
    queue(dead, old, young)
    turn(dead)
    for workload in (old, young):
        rows.end(database, job_id(workload), state="success", outcome="success")
    database.execute("UPDATE edgecontrol.job SET finished_at = now() - interval '1 hour' WHERE map_index = 1")
    heir._next_overdue = float("-inf")
    for _ in range(3):
        turn(heir)
    assert rows.job(database, job_id(old)).told_at
    assert not rows.job(database, job_id(young)).told_at


def test_what_nobody_can_go_on_with_is_given_back(executor: EdgeControlExecutor) -> None:
    unknown, foreign, unassigned = task(map_index=1), task(map_index=2), task(map_index=3)
    foreign.ti.external_executor_id = "celery-task"
    unassigned.ti.external_executor_id = None
    orphans = [as_orphan(workload) for workload in (unknown, foreign, unassigned)]
    given_back = executor.try_adopt_task_instances(orphans)
    assert {ti.id for ti in given_back} == {ti.id for ti in orphans}
    assert not executor._hand_over


def test_a_running_task_without_a_job_is_left_to_its_heartbeats(executor: EdgeControlExecutor) -> None:
    # Given back, it would be started beside itself.
    unknown, unassigned = task(map_index=1), task(map_index=2)
    unassigned.ti.external_executor_id = None
    orphans = [as_orphan(workload, state="running") for workload in (unknown, unassigned)]
    assert executor.try_adopt_task_instances(orphans) == []


def test_after_an_outage_what_was_not_written_is_queued_again_too(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritten = task()
    task_instances.add_run(unwritten)
    task_instances.add(unwritten)
    with monkeypatch.context() as patch:
        break_store(patch, executor, "adopt", StoreAway("gone"))
        assert executor.try_adopt_task_instances([as_orphan(unwritten)]) == []
    let_time_pass(executor)
    for _ in range(3):
        assert turn(executor) == {}
    assert rows.job(database, job_id(unwritten)).state == "queued"


def test_with_the_database_away_all_counts_as_adopted_and_the_hand_over_is_repeated(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = make_executor(), make_executor()
    waiting, never_stored = task(map_index=1), task(map_index=2)
    queue(dead, waiting)
    turn(dead)
    task_instances.add(never_stored)
    with monkeypatch.context() as patch:
        break_store(patch, heir, "adopt", StoreAway("gone"))
        assert heir.try_adopt_task_instances([as_orphan(waiting), as_orphan(never_stored)]) == []
        with pytest.raises(NotImplementedError):
            heir.revoke_task(ti=never_stored.ti)
    let_time_pass(heir)
    events = {**turn(heir), **turn(heir)}
    assert rows.job(database, job_id(waiting)).dispatcher == heir.dispatcher
    assert heir.has_task(waiting.ti)
    assert events == {never_stored.key: (FAILED, "the scheduler that queued it died before EdgeControl had it")}


def test_any_number_of_jobs_is_taken_over_slice_by_slice(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = make_executor(), make_executor()
    monkeypatch.setattr("airflow_bridge.executor.HAND_OVER_LIMIT", 100)
    monkeypatch.setattr("airflow_bridge.executor.TURN_SECONDS", 0)
    rows.store_many(database, 350, dispatcher=dead.dispatcher, state="queued")
    ids = stored(database)

    def taken_over() -> int:
        found = database.execute("SELECT FROM edgecontrol.job WHERE dispatcher = %s", [heir.dispatcher])
        return len(found.fetchall())

    orphans = [SimpleNamespace(id=uuid4(), external_executor_id=str(job_id), state="queued") for job_id in ids]
    assert heir.try_adopt_task_instances(orphans) == []
    counts = [taken_over()]
    for _ in range(4):
        turn(heir)
        counts.append(taken_over())
    assert counts == [100, 200, 300, 350, 350]
    assert not heir._hand_over


def test_a_job_that_somebody_keeps_locked_holds_up_no_other_ones_adoption(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, postgres_url: str
) -> None:
    dead, heir = make_executor(), make_executor()
    locked, free = task(map_index=1), task(map_index=2)
    queue(dead, locked, free)
    turn(dead)
    with psycopg.connect(postgres_url) as operator:
        operator.execute("SELECT FROM edgecontrol.job WHERE id = %s FOR UPDATE", [job_id(locked)])
        assert heir.try_adopt_task_instances([as_orphan(locked), as_orphan(free)]) == []
        assert turn(heir) == {}
        assert rows.job(database, job_id(free)).dispatcher == heir.dispatcher
        with pytest.raises(NotImplementedError):
            heir.revoke_task(ti=locked.ti)
    assert turn(heir) == {}
    assert rows.job(database, job_id(locked)).dispatcher == heir.dispatcher
    assert not heir._hand_over


def test_airflows_stuck_timer_leaves_waiting_jobs_alone(executor: EdgeControlExecutor) -> None:
    buffered, waiting = task(map_index=1), task(map_index=2)
    queue(executor, waiting)
    turn(executor)
    queue(executor, buffered)
    for workload in (buffered, waiting):
        with pytest.raises(NotImplementedError):
            executor.revoke_task(ti=workload.ti)


def test_a_task_without_a_job_is_given_back_to_airflow(executor: EdgeControlExecutor) -> None:
    executor.revoke_task(ti=task().ti)
    assert executor.get_event_buffer() == {}


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
