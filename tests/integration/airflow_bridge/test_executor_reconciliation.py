from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from airflow.executors.executor_utils import ExecutorName
from airflow.utils.state import CallbackState

from airflow_bridge.airflow_features import workload_key
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import (
    FAILED,
    held_task,
    job_id,
    let_time_pass,
    queue,
    stored,
    stored_task,
    turn,
)
from tests.unit.airflow_bridge.builders import callback, connection_test, task

SCHEDULER = 4711
LOCAL = ExecutorName("airflow.executors.local_executor.LocalExecutor", alias="LocalExecutor")
OURS = ExecutorName("airflow_bridge.executor.EdgeControlExecutor", alias="edge")


@pytest.fixture
def in_scheduler(executor: EdgeControlExecutor, monkeypatch: pytest.MonkeyPatch) -> EdgeControlExecutor:
    """The executor as a scheduler has it that has another one besides."""
    monkeypatch.setattr("airflow_bridge.routing.executor_names", lambda: [OURS, LOCAL])
    executor.job_id, executor.name = SCHEDULER, OURS
    return executor


def look_again(executor: EdgeControlExecutor) -> dict[Any, Any]:
    """A minute later."""
    executor._stranded.next_slice = executor._stranded.next_callbacks = float("-inf")
    executor._stranded._without_job = dict.fromkeys(executor._stranded._without_job, 0.0)
    executor._adoption.next_overdue = executor._adoption.next_abandoned = float("-inf")
    return turn(executor)


def events_of(executor: EdgeControlExecutor) -> list[tuple[str, str]]:
    return [(log.event, log.extra) for log in executor._task_event_logs]


# What Airflow has queued here and nobody has.


def test_a_queued_task_without_a_job_is_queued_again_under_its_id(
    in_scheduler: EdgeControlExecutor, database: Database
) -> None:
    workload = task()
    task_instances.add_run(workload)
    task_instances.add(workload)
    task_instances.leave_queued(workload, by=SCHEDULER)
    for _ in range(3):
        assert turn(in_scheduler) == {}
    assert rows.job(database, job_id(workload)).state == "queued"
    assert in_scheduler.has_task(workload.ti)


def test_a_queued_task_whose_job_belongs_to_a_dead_scheduler_is_taken_over(
    make_executor: Callable[[], EdgeControlExecutor], in_scheduler: EdgeControlExecutor, database: Database
) -> None:
    workload = stored_task(make_executor())
    task_instances.leave_queued(workload, by=SCHEDULER)
    for _ in range(2):
        turn(in_scheduler)
    assert rows.job(database, job_id(workload)).dispatcher == in_scheduler.dispatcher
    assert in_scheduler.has_task(workload.ti)


def test_a_queued_task_that_nobody_can_go_on_with_is_given_back_and_keeps_its_try(
    in_scheduler: EdgeControlExecutor, database: Database
) -> None:
    unmakeable, used = task(map_index=1), task(map_index=2)
    task_instances.add(unmakeable)
    task_instances.leave_queued(unmakeable, by=SCHEDULER, dag_version_id=None)
    # Its id is that of an earlier queueing, whose end Airflow knows.
    queue(in_scheduler, used)
    turn(in_scheduler)
    rows.end(database, job_id(used), state="success", outcome="deferred")
    turn(in_scheduler)
    turn(in_scheduler)
    task_instances.leave_queued(used, by=SCHEDULER)
    for _ in range(3):
        assert look_again(in_scheduler) == {}
    assert [task_instances.state_of(workload) for workload in (unmakeable, used)] == ["scheduled", "scheduled"]
    assert [event for event, _ in events_of(in_scheduler)] == ["edgecontrol given back"] * 2


@pytest.mark.parametrize(
    "whose", ["another executor's", "another scheduler's", "young", "waiting", "buffered", "ended"]
)
def test_what_is_somebodys_is_left_alone(in_scheduler: EdgeControlExecutor, database: Database, whose: str) -> None:
    workload = task()
    if whose in ("waiting", "ended"):
        queue(in_scheduler, workload)
        turn(in_scheduler)
    else:
        task_instances.add(workload)
    if whose == "buffered":
        in_scheduler._buffer.set_apart.add(workload_key(workload))
        in_scheduler._turns.outage.failed(workload_key(workload), alone=True)
        in_scheduler.queue_workload(workload, session=None)
    if whose == "ended":
        rows.end(database, job_id(workload), state="failed")
    task_instances.leave_queued(
        workload,
        by=SCHEDULER + (whose == "another scheduler's"),
        executor="LocalExecutor" if whose == "another executor's" else None,
        seconds=10 if whose == "young" else 600,
        dag_version_id=None,
    )
    before = stored(database)
    look_again(in_scheduler)
    look_again(in_scheduler)
    assert task_instances.state_of(workload) == "queued"
    assert stored(database) == before


def test_all_that_is_queued_is_gone_through_slice_by_slice(
    in_scheduler: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_bridge.stranded.SLICE_LIMIT", 2)
    workloads = [task(map_index=number) for number in range(5)]
    task_instances.add_run(workloads[0])
    for workload in workloads:
        task_instances.add(workload)
        task_instances.leave_queued(workload, by=SCHEDULER)
    for _ in range(5):
        look_again(in_scheduler)
    assert stored(database) == {job_id(workload) for workload in workloads}


# What Airflow waits for no longer.


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("deleted", "the task instance was deleted or cleared"),
        ("failed", "the task instance is failed"),
        ("skipped", "the task instance is skipped"),
        (None, "the task instance is to be scheduled anew"),
    ],
)
def test_a_waiting_job_that_airflow_waits_for_no_longer_is_revoked_with_the_reason(
    executor: EdgeControlExecutor, database: Database, state: str | None, says: str
) -> None:
    workload = stored_task(executor)
    if state == "deleted":
        task_instances.clear()
    else:
        task_instances.change(workload, state=state)
    for _ in range(3):
        assert turn(executor) == {}
    row = rows.job(database, job_id(workload))
    assert (row.state, row.reason) == ("revoked", f"Airflow withdrew it: {says}")
    assert row.told_at
    assert not executor.has_task(workload.ti)


@pytest.mark.parametrize("state", ["queued", "running", "restarting"])
def test_a_waiting_job_that_airflow_waits_for_stays(
    executor: EdgeControlExecutor, database: Database, state: str
) -> None:
    workload = stored_task(executor)
    task_instances.change(workload, state=state)
    turn(executor)
    assert rows.job(database, job_id(workload)).state == "queued"


def test_a_held_job_that_airflow_waits_for_no_longer_has_the_patience_to_end_by_itself(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = held_task(executor, database, worker=worker)
    task_instances.change(workload, state="failed")
    turn(executor)
    assert rows.job(database, job_id(workload)).state == "running"
    executor._reconciliation._unwanted_since[job_id(workload)] -= executor.config.outage_patience + 61
    turn(executor)
    row = rows.job(database, job_id(workload))
    assert (row.state, row.reason) == ("revoked", "Airflow withdrew it: the task instance is failed")
    assert turn(executor) == {}
    assert executor.slots_occupied == 0


def test_a_job_that_was_taken_and_ended_while_airflow_was_asked_is_not_revoked(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = stored_task(executor)
    look_up = executor._reconciliation._look_up

    def slow(ids: Any) -> Any:
        rows.hold(database, job_id(workload), worker=worker)
        task_instances.change(workload, state="success")
        return look_up(ids)

    executor._reconciliation._look_up = slow
    turn(executor)
    assert rows.job(database, job_id(workload)).state == "running"


# What a dead scheduler left waiting.


def test_what_a_dead_scheduler_left_waiting_is_gone_on_with_or_withdrawn(
    make_executor: Callable[[], EdgeControlExecutor], database: Database
) -> None:
    dead, heir = make_executor(), make_executor()
    wanted, unwanted, alive, teams = (task(map_index=number) for number in range(4))
    queue(dead, wanted, unwanted, alive, teams)
    turn(dead)
    database.execute("UPDATE edgecontrol.job SET token_until = now() - interval '2 min' WHERE map_index <> 2")
    database.execute("UPDATE edgecontrol.job SET team_name = 'press' WHERE map_index = 3")
    task_instances.change(unwanted, state="skipped")
    for _ in range(3):
        assert turn(heir) == {}
    found = {row.map_index: row for row in database.execute("SELECT * FROM edgecontrol.job").fetchall()}
    assert [found[number].dispatcher for number in range(4)] == [
        heir.dispatcher,
        heir.dispatcher,
        dead.dispatcher,
        dead.dispatcher,
    ]
    assert heir.has_task(wanted.ti)
    assert found[0].token.count(".") == 2
    assert (found[1].state, found[1].reason) == ("revoked", "Airflow withdrew it: the task instance is skipped")


def test_all_that_waits_is_gone_through_slice_by_slice(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_bridge.adoption.ABANDONED_LIMIT", 3)
    dead, heir = make_executor(), make_executor()
    rows.store_many(database, 5, dispatcher=dead.dispatcher, state="queued")
    database.execute("UPDATE edgecontrol.job SET token_until = now() - interval '1 h', kind = 'ExecuteTask'")
    monkeypatch.setattr(heir._reconciliation, "_look_up", lambda ids: {})
    for expected in (3, 5):
        turn(heir)
        ours = database.execute("SELECT FROM edgecontrol.job WHERE dispatcher = %s", [heir.dispatcher]).fetchall()
        assert len(ours) == expected


# Callbacks.


def test_the_end_of_a_callback_is_told_by_any_scheduler(
    make_executor: Callable[[], EdgeControlExecutor], database: Database
) -> None:
    dead, heir = make_executor(), make_executor()
    workload = callback()
    queue(dead, workload)
    turn(dead)
    rows.end(database, UUID(workload.callback.id), state="success")
    assert look_again(heir) == {}
    database.execute("UPDATE edgecontrol.job SET finished_at = now() - interval '61 seconds'")
    events = {**look_again(heir), **turn(heir)}
    assert events == {workload_key(workload): (CallbackState.SUCCESS, None)}


def test_a_callback_counts_as_told_only_once_airflow_says_so(executor: EdgeControlExecutor, database: Database) -> None:
    workload = callback()
    identity = UUID(workload.callback.id)
    queue(executor, workload)
    turn(executor)
    rows.end(database, identity, state="failed", reason="exit code 1")
    told = {workload_key(workload): (CallbackState.FAILED, "exit code 1")}
    assert turn(executor) == told
    turn(executor)  # the scheduler was killed before it looked at the event
    assert not rows.job(database, identity).told_at
    let_time_pass(executor)
    assert turn(executor) == told
    task_instances.change_callback(workload, state="failed")
    turn(executor)
    assert rows.job(database, identity).told_at


def test_a_queued_callback_without_a_job_is_put_back_after_a_minute(
    in_scheduler: EdgeControlExecutor, database: Database
) -> None:
    lost, stored_one, buffered, locals_ = (callback() for _ in range(4))
    queue(in_scheduler, stored_one)
    turn(in_scheduler)
    for workload in (lost, buffered):
        task_instances.add_callback(workload)
    task_instances.add_callback(locals_, executor="LocalExecutor")
    in_scheduler._buffer.set_apart.add(workload_key(buffered))
    in_scheduler._turns.outage.failed(workload_key(buffered), alone=True)
    in_scheduler.queue_workload(buffered, session=None)
    in_scheduler._stranded.next_callbacks = float("-inf")
    turn(in_scheduler)
    assert task_instances.callback_state(lost) == "queued"
    look_again(in_scheduler)
    states = [task_instances.callback_state(workload) for workload in (lost, stored_one, buffered, locals_)]
    assert states == ["pending", "queued", "queued", "queued"]


# Connection tests.


def test_connection_tests_are_stored_though_all_slots_are_taken(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = connection_test(queue="site-b")
    executor.parallelism = 1
    executor.running.add("something else")
    queue(executor, workload)
    turn(executor)
    row = rows.job(database, workload.connection_test_id)
    assert (row.state, row.kind, row.queue) == ("queued", "TestConnection", "site-b")
    assert executor.supports_connection_test
    assert not executor.queued_connection_tests


def test_a_connection_test_that_a_dead_scheduler_queued_is_revoked_when_airflow_gives_it_up(
    make_executor: Callable[[], EdgeControlExecutor], database: Database
) -> None:
    dead, heir = make_executor(), make_executor()
    workload = connection_test()
    queue(dead, workload)
    turn(dead)
    heir.fail_connection_test(workload_key(workload))
    turn(heir)
    assert rows.job(database, workload.connection_test_id).state == "revoked"


# The audit log.


@pytest.mark.parametrize(
    ("state", "airflow_state"),
    [("lost", "success"), ("refused", "failed"), ("revoked", "running"), ("lost", "running")],
)
def test_what_became_of_a_job_stands_in_the_audit_log_once(
    executor: EdgeControlExecutor, database: Database, state: str, airflow_state: str
) -> None:
    workload = stored_task(executor)
    task_instances.change(workload, state=airflow_state, silence=1)
    rows.end(database, job_id(workload), state=state, reason="press-7 rebooted")
    for _ in range(3):
        turn(executor)
        let_time_pass(executor)
    # Airflow ignores the failure that follows, and is told again.
    task_instances.change(workload, state=airflow_state, silence=10_000)
    for _ in range(3):
        turn(executor)
        let_time_pass(executor)
    assert events_of(executor) == [(f"edgecontrol {state}", "press-7 rebooted")]


def test_a_hand_out_that_came_back_stands_in_the_audit_log_with_its_reason(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = held_task(executor, database, worker=worker)
    back = "UPDATE edgecontrol.job SET state = 'queued', worker_id = NULL, reason = 'Airflow''s API: 503'"
    database.execute(back)
    turn(executor)
    turn(executor)
    assert events_of(executor) == [("edgecontrol released", "Airflow's API: 503")]
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    database.execute(back)  # and handed out again before anybody looked
    rows.hold(database, job_id(workload), worker=worker)
    database.execute("UPDATE edgecontrol.job SET reason = ''")
    turn(executor)
    assert events_of(executor)[1:] == [("edgecontrol released", "it was not started, and handed out again")]


def test_a_job_that_nobody_took_stands_in_the_audit_log(executor: EdgeControlExecutor, database: Database) -> None:
    workload = stored_task(executor)
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '25 hours'")
    events = {**turn(executor), **turn(executor)}
    assert events[workload_key(workload)][0] == FAILED
    ((event, reason),) = events_of(executor)
    assert event == "edgecontrol expired"
    assert reason.startswith("no worker took it within 86400 s")
