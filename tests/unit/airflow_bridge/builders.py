"""Jobs, rows and workloads that are valid as they are; each test names only what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from airflow.executors import workloads
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.callback import CallbackDTO, CallbackFetchMethod, ExecuteCallback
from airflow.executors.workloads.task import TaskInstanceDTO

from airflow_bridge.states import JobState, Kind
from airflow_bridge.store import JobRow, NewJob

DISPATCHER = UUID("d15ba7c4-0000-4000-8000-000000000001")
_TASK = {"dag_id": "etl", "task_id": "extract", "run_id": "manual", "map_index": -1, "try_number": 1}


def new_job(**changes: Any) -> NewJob:
    values: dict[str, Any] = {
        "id": uuid4(),
        "kind": Kind.TASK,
        "airflow_id": uuid4(),
        "workload": {"type": "ExecuteTask"},
        "token": "a token",
        "queue": "default",
        "slots": 1,
        "priority": 1,
        "team_name": "",
        "dispatcher": DISPATCHER,
        **_TASK,
    }
    return NewJob(**{**values, **changes})


def job_row(**changes: Any) -> JobRow:
    values: dict[str, Any] = {
        "id": uuid4(),
        "kind": Kind.TASK,
        "airflow_id": uuid4(),
        "state": JobState.SUCCESS,
        "airflow_outcome": "",
        "reason": "",
        **_TASK,
    }
    return JobRow(**{**values, **changes})


def task(*, job_id: UUID | None = None, token: str = "", **changes: Any) -> workloads.ExecuteTask:
    values: dict[str, Any] = {
        "id": uuid4(),
        "dag_version_id": uuid4(),
        "queue": "default",
        "pool_slots": 1,
        "priority_weight": 1,
        "external_executor_id": str(job_id or uuid4()),
        **_TASK,
    }
    ti = TaskInstanceDTO(**{**values, **changes})
    return workloads.ExecuteTask(
        ti=ti,
        dag_rel_path=Path("etl.py"),
        token=token,
        bundle_info=BundleInfo(name="dags-folder"),
        log_path=f"dag_id={ti.dag_id}/run_id={ti.run_id}/task_id={ti.task_id}/attempt={ti.try_number}.log",
    )


def callback() -> ExecuteCallback:
    return ExecuteCallback(
        callback=CallbackDTO(
            id=str(uuid4()), fetch_method=CallbackFetchMethod.IMPORT_PATH, data={"path": "alerts.call"}
        ),
        dag_rel_path=Path("etl.py"),
        token="a token",
        bundle_info=BundleInfo(name="dags-folder"),
        log_path="executor_callbacks/etl/manual/1",
    )


def connection_test(**changes: Any) -> Any:
    """Skips the test where Airflow has none."""
    module = pytest.importorskip("airflow.executors.workloads.connection_test", reason="no connection tests before 3.3")
    values = {"connection_test_id": uuid4(), "connection_id": "warehouse", "timeout": 60, "token": "a token"}
    return module.TestConnection(**{**values, **changes})
