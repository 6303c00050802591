from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from uuid import uuid4

import psycopg
import pytest

from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import StoreAway
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import (
    FAILED,
    as_orphan,
    break_store,
    job_id,
    let_time_pass,
    queue,
    stored,
    turn,
)
from tests.unit.airflow_bridge.builders import task


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
    assert turn(heir) == {workload_key(ended): (FAILED, "exit code 1")}
    assert heir.running == {workload_key(running)}
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


@pytest.mark.parametrize("had_an_id", [False, True])
def test_a_scheduler_that_hung_gives_no_new_id_to_what_another_one_runs_by_now(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, worker: int, had_an_id: bool
) -> None:
    """Its job would take the place of the one that runs."""
    hung, heir = make_executor(), make_executor()
    hung.job_id, heir.job_id = 1, 2
    workload = task()
    if had_an_id:
        # As another one wrote it, and the task deferred.
        queue(heir, workload)
        turn(heir)
        rows.end(database, job_id(workload), state="success", outcome="deferred")
        turn(heir)
    else:
        task_instances.add(workload)
        workload.ti.external_executor_id = None
    hung.queue_workload(workload, session=None)
    resumed = task(id=workload.ti.id)
    task_instances.change(resumed, state="queued", job_id=job_id(resumed))
    heir.queue_workload(resumed, session=None)
    turn(heir)
    rows.hold(database, job_id(resumed), worker=worker)
    task_instances.change(resumed, state="running", silence=1)
    for _ in range(2):
        assert turn(hung) == {}
    assert rows.job(database, job_id(resumed)).state == "running"
    assert not hung.has_task(workload.ti)


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
    heir._adoption.next_overdue = float("-inf")
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
    assert not executor._adoption.hand_over


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
    heir.job_id = 4711
    task_instances.leave_queued(never_stored, by=4711)
    let_time_pass(heir)
    assert {**turn(heir), **turn(heir)} == {}
    assert rows.job(database, job_id(waiting)).dispatcher == heir.dispatcher
    assert heir.has_task(waiting.ti)
    # Nobody can go on with it, and it was never started: Airflow queues it again, in the same try.
    assert task_instances.state_of(never_stored) == "scheduled"


def test_any_number_of_jobs_is_taken_over_slice_by_slice(
    make_executor: Callable[[], EdgeControlExecutor], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, heir = make_executor(), make_executor()
    monkeypatch.setattr("airflow_bridge.adoption.HAND_OVER_LIMIT", 100)
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
    assert not heir._adoption.hand_over


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
    assert not heir._adoption.hand_over


def test_airflows_stuck_timer_leaves_waiting_jobs_alone(executor: EdgeControlExecutor) -> None:
    buffered, waiting = task(map_index=1), task(map_index=2)
    queue(executor, waiting)
    turn(executor)
    queue(executor, buffered)
    for workload in (buffered, waiting):
        with pytest.raises(NotImplementedError):
            executor.revoke_task(ti=workload.ti)

    with pytest.raises(NotImplementedError):  # Airflow would stop at the others before it came to this one
        executor.revoke_task(ti=task().ti)
