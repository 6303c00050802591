"""Task instances in a scratch database of Airflow's, so that the bridge can look them up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from airflow import models, settings
from airflow._shared.timezones import timezone
from airflow.models.base import Base
from airflow.models.callback import Callback
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import delete, insert, select, text, update

from airflow_bridge.airflow_features import ConnectionTestRequest

#: What not every version of Airflow has.
OPTIONAL = [ConnectionTestRequest] if ConnectionTestRequest else []


def create_tables() -> None:
    models.import_all_models()
    Base.metadata.create_all(settings.engine)


def add(workload: Any, *, state: str = "queued", silence: float | None = None) -> None:
    """The task instance of this workload, as the scheduler would have left it."""
    ti = workload.ti
    with create_session(scoped=False) as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        session.execute(
            insert(TaskInstance.__table__).values(
                id=ti.id,
                dag_id=ti.dag_id,
                task_id=ti.task_id,
                run_id=ti.run_id,
                map_index=ti.map_index,
                try_number=ti.try_number,
                pool="default_pool",
                pool_slots=ti.pool_slots,
                span_status="not_started",
                external_executor_id=ti.external_executor_id,
                dag_version_id=ti.dag_version_id,
                priority_weight=ti.priority_weight,
                queue=ti.queue,
            )
        )
    change(workload, state=state, silence=silence)


def add_run(workload: Any) -> None:
    """The DAG and the run of this workload, which its scheduler would need to make it anew."""
    ti = workload.ti
    with create_session(scoped=False) as session:
        session.execute(text("PRAGMA foreign_keys = OFF"))
        session.merge(DagModel(dag_id=ti.dag_id, bundle_name="dags-folder", relative_fileloc="etl.py"))
        run = {
            "dag_id": ti.dag_id,
            "run_id": ti.run_id,
            "run_type": "manual",
            "run_after": timezone.utcnow(),
            "bundle_version": "v7",
        }
        session.execute(insert(DagRun.__table__).values(**run, span_status="not_started", clear_number=0))


def add_callback(workload: Any, *, state: str = "queued", executor: str | None = None) -> None:
    """The deadline callback of this workload, as the scheduler would have left it."""
    with create_session(scoped=False) as session:
        session.execute(
            insert(Callback.__table__).values(
                id=UUID(workload.callback.id),
                type="executor",
                fetch_method="import_path",
                data={"path": "alerts.call", "dag_id": "etl", "executor": executor},
                state=state,
                priority_weight=1,
                created_at=timezone.utcnow(),
            )
        )


def callback_state(workload: Any) -> str | None:
    with create_session(scoped=False) as session:
        found = session.scalar(select(Callback.state).where(Callback.id == UUID(workload.callback.id)))
    return None if found is None else str(found)


def change_callback(workload: Any, *, state: str) -> None:
    with create_session(scoped=False) as session:
        session.execute(update(Callback.__table__).where(Callback.id == UUID(workload.callback.id)).values(state=state))


def add_connection_test(workload: Any, *, state: str = "queued") -> None:
    """The request of this connection test, as the scheduler would have left it."""
    with create_session(scoped=False) as session:
        request = ConnectionTestRequest(connection_id=workload.connection_id, conn_type="http")
        request.id, request.state = workload.connection_test_id, state
        session.add(request)


def leave_queued(workload: Any, *, by: int, seconds: float = 120, executor: str | None = None, **values: Any) -> None:
    """The scheduler of this job queued it that long ago."""
    values |= {
        "queued_by_job_id": by,
        "queued_dttm": timezone.utcnow() - timedelta(seconds=seconds),
        "executor": executor,
    }
    with create_session(scoped=False) as session:
        session.execute(update(TaskInstance.__table__).where(TaskInstance.id == workload.ti.id).values(**values))


def state_of(workload: Any) -> str | None:
    with create_session(scoped=False) as session:
        found = session.scalar(select(TaskInstance.state).where(TaskInstance.id == workload.ti.id))
    return None if found is None else str(found)


def change(workload: Any, *, state: str | None, silence: float | None = None, job_id: object = None) -> None:
    values: dict[str, Any] = {"state": state}
    if silence is not None:
        values["last_heartbeat_at"] = timezone.utcnow() - timedelta(seconds=silence)
    if job_id is not None:
        values["external_executor_id"] = str(job_id)
    with create_session(scoped=False) as session:
        session.execute(update(TaskInstance.__table__).where(TaskInstance.id == workload.ti.id).values(**values))


def clear() -> None:
    with create_session(scoped=False) as session:
        for model in (TaskInstance, DagRun, DagModel, Callback, *OPTIONAL):
            session.execute(delete(model.__table__))
