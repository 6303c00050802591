from __future__ import annotations

import time
from uuid import UUID

import pytest
from airflow.utils.state import CallbackState

from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import StoreAway
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import (
    FAILED,
    SUCCESS,
    break_store,
    held_task,
    job_id,
    let_time_pass,
    queue,
    stored_task,
    turn,
)
from tests.unit.airflow_bridge.builders import callback, connection_test, task


def test_an_accepted_success_is_told_once_and_marked_on_the_next_turn(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = held_task(executor, database, worker=worker)
    rows.end(database, job_id(workload), state="success", outcome="success")
    assert turn(executor) == {workload_key(workload): (SUCCESS, None)}
    assert rows.job(database, job_id(workload)).told_at is None
    assert not executor.has_task(workload.ti)
    assert executor.slots_occupied == 0
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_failure_in_doubt_is_told_until_airflow_has_acted(executor: EdgeControlExecutor, database: Database) -> None:
    workload = stored_task(executor)
    task_instances.change(workload, state="running", silence=1)
    rows.end(database, job_id(workload), state="failed", reason="result not delivered")
    assert turn(executor) == {workload_key(workload): (FAILED, "result not delivered")}
    # Airflow dropped the event: another scheduler had the row locked.
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is None
    let_time_pass(executor)
    assert turn(executor) == {workload_key(workload): (FAILED, "result not delivered")}
    task_instances.change(workload, state="up_for_retry")
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_deferral_frees_the_slot_and_tells_nothing(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = held_task(executor, database, worker=worker)
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
    workload = stored_task(executor)
    task_instances.change(workload, state="running", silence=5)
    rows.hold(database, job_id(workload), worker=worker)
    rows.end(database, job_id(workload), state="lost", reason="berlin-3 rebooted")
    for _ in range(3):
        assert turn(executor) == {}
        let_time_pass(executor)
    assert executor.has_task(workload.ti)
    task_instances.change(workload, state="running", silence=executor.config.outage_patience * 2)
    assert turn(executor) == {workload_key(workload): (FAILED, "berlin-3 rebooted")}
    assert [log.event for log in executor._task_event_logs] == ["edgecontrol lost"]


def test_a_lost_job_whose_task_finished_after_all_is_not_told(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = stored_task(executor)
    task_instances.change(workload, state="success")
    rows.end(database, job_id(workload), state="lost")
    assert turn(executor) == {}
    assert turn(executor) == {}
    assert rows.job(database, job_id(workload)).told_at is not None


def test_a_deleted_job_does_not_leave_its_task_waiting_for_ever(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = stored_task(executor)
    database.execute("DELETE FROM edgecontrol.job")
    events = {**turn(executor), **turn(executor)}
    assert events == {workload_key(workload): (FAILED, "its job was deleted")}


def test_a_job_that_nobody_takes_fails_after_the_limit_with_the_reason(
    executor: EdgeControlExecutor, database: Database
) -> None:
    workload = task(queue="site-b")
    queue(executor, workload)
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '25 hours'")
    events = {**turn(executor), **turn(executor)}
    state, reason = events[workload_key(workload)]
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


def test_as_many_tokens_are_renewed_as_have_to_be(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workloads = [task(map_index=number) for number in range(600)]
    monkeypatch.setattr(executor._reconciliation, "withdraw", lambda jobs, held: None)  # Airflow has none of them
    for workload in workloads:
        executor.queue_workload(workload, session=None)
    turn(executor)
    database.execute("UPDATE edgecontrol.job SET token_until = now() - interval '1 hour'")
    for workload in workloads:
        executor._ledger.renew(job_id(workload), at=0)
    for _ in range(20):  # each turn does what fits into its time
        turn(executor)
        if not database.execute("SELECT 1 FROM edgecontrol.job WHERE token_until < now()").fetchone():
            break
    else:
        pytest.fail("tokens were not renewed")
    assert executor._ledger.due_for_renewal(now=time.monotonic() + executor._tokens.lifetime / 7, limit=1) == []


def test_a_renewal_that_failed_is_made_up_for_at_once(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = stored_task(executor)
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
    executor._buffer.since[workload_key(workload)] -= 10_000
    turn(executor)
    turn(executor)
    row = rows.job(database, job_id(workload))
    assert row.token.count(".") == 2
    assert row.token_until > row.queued_at


def test_a_callback_is_told_as_running_and_as_ended(
    executor: EdgeControlExecutor, database: Database, worker: int
) -> None:
    workload = callback()
    queue(executor, workload)
    assert turn(executor) == {}
    identity = UUID(workload.callback.id)
    rows.hold(database, identity, worker=worker)
    assert turn(executor) == {workload_key(workload): (CallbackState.RUNNING, None)}
    assert turn(executor) == {}
    rows.end(database, identity, state="failed", reason="exit code 1")
    assert turn(executor) == {workload_key(workload): (CallbackState.FAILED, "exit code 1")}


def test_a_connection_test_that_airflow_gave_up_is_revoked(
    executor: EdgeControlExecutor, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:

    workload = connection_test()
    queue(executor, workload)
    turn(executor)
    executor.fail_connection_test(workload_key(workload))
    turn(executor)
    assert rows.job(database, workload.connection_test_id).state == "revoked"
