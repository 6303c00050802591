"""What Airflow's scheduler does with an executor, in the words of the tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.utils.state import TaskInstanceState

from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.outage import Outage
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import task

FAILED, SUCCESS, QUEUED = TaskInstanceState.FAILED, TaskInstanceState.SUCCESS, TaskInstanceState.QUEUED


def turn(executor: EdgeControlExecutor) -> dict[Any, Any]:
    """One loop of the scheduler, at least a second after the last one; the events it would act upon."""
    executor._turns.next_watch = float("-inf")
    executor.heartbeat()
    while executor._turns.due:  # however slow this machine is
        executor._turns.go_on_watching(executor._watches)
    return executor.get_event_buffer()


def let_time_pass(executor: EdgeControlExecutor) -> None:
    """The pauses of the executor are over."""
    executor._turns.outage = Outage()
    executor._endings._paused.clear()


def queue(executor: EdgeControlExecutor, *workloads: Any, ti_state: str = "queued") -> None:
    for workload in workloads:
        if workload.type == "ExecuteTask":
            task_instances.add(workload, state=ti_state)
        elif workload.type == "ExecuteCallback":
            task_instances.add_callback(workload)
        else:
            task_instances.add_connection_test(workload)
        executor.queue_workload(workload, session=None)


def stored_task(executor: EdgeControlExecutor) -> Any:
    """A task whose job is stored and waits."""
    workload = task()
    queue(executor, workload)
    turn(executor)
    return workload


def held_task(executor: EdgeControlExecutor, database: Database, *, worker: int) -> Any:
    """A task whose job this worker has, as the executor knows."""
    workload = stored_task(executor)
    rows.hold(database, job_id(workload), worker=worker)
    turn(executor)
    return workload


def job_id(workload: Any) -> UUID:
    return UUID(workload.ti.external_executor_id)


def stored(database: Database) -> set[UUID]:
    return {row.id for row in database.execute("SELECT id FROM edgecontrol.job").fetchall()}


def break_store(monkeypatch: pytest.MonkeyPatch, executor: EdgeControlExecutor, method: str, error: Exception) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(executor._store, method, broken)


def as_orphan(workload: Any, *, state: str = "queued") -> Any:
    """What the scheduler passes: loaded in part, with nothing beyond these columns for free."""
    ti = workload.ti
    return SimpleNamespace(
        id=ti.id, dag_id=ti.dag_id, task_id=ti.task_id, state=state, external_executor_id=ti.external_executor_id
    )
