"""What a workload of Airflow becomes in the job table, and which key of Airflow a row stands for; no I/O."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from airflow.executors import workloads
from airflow.models.callback import CallbackKey
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_bridge.airflow_features import ConnectionTestKey
from airflow_bridge.states import Kind
from airflow_bridge.store import JobRow, NewJob

#: Callbacks and connection tests go before every task, as Airflow's own executors do it.
URGENT = 2**31 - 1


def parse_id(text: object) -> UUID | None:
    """Airflow keeps queueing ids as text, and other executors keep theirs in the same column."""
    try:
        return UUID(str(text))
    except ValueError:
        return None


def job_of(
    workload: Any,
    *,
    job_id: UUID,
    dispatcher: UUID,
    team_name: str,
    default_queue: str,
    token_seconds: float | None = None,
) -> NewJob:
    """The row of this workload. The token travels apart from the rest, so that it can be nulled and renewed."""
    content = workload.model_dump(mode="json")
    token = content.pop("token")
    if isinstance(workload, workloads.ExecuteTask):
        ti = workload.ti
        return NewJob(
            id=job_id,
            kind=Kind.TASK,
            airflow_id=ti.id,
            workload=content,
            token=token,
            token_seconds=token_seconds,
            queue=ti.queue,
            slots=ti.pool_slots,
            priority=ti.priority_weight,
            team_name=team_name,
            dispatcher=dispatcher,
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            try_number=ti.try_number,
            log_path=workload.log_path or "",
        )
    return NewJob(
        id=job_id,
        kind=Kind(workload.type),
        airflow_id=airflow_id_of(workload),
        workload=content,
        token=token,
        token_seconds=token_seconds,
        queue=getattr(workload, "queue", None) or default_queue,
        slots=1,
        priority=URGENT,
        team_name=team_name,
        dispatcher=dispatcher,
        log_path=getattr(workload, "log_path", None) or "",
    )


def airflow_id_of(workload: Any) -> UUID:
    """The id of what is executed: task instance, callback or connection test."""
    if isinstance(workload, workloads.ExecuteTask):
        return UUID(str(workload.ti.id))
    if isinstance(workload, workloads.ExecuteCallback):
        return UUID(workload.callback.id)
    return UUID(str(workload.connection_test_id))


def assigned_id(workload: Any) -> UUID | None:
    """The id that Airflow gave this queueing; None when it gave none.

    Airflow assigns one to tasks only, and not to a task that names its executor by bare class name
    (seen in 3.3.2). A callback or a connection test is queued once, so its own id serves.
    """
    if isinstance(workload, workloads.ExecuteTask):
        return parse_id(workload.ti.external_executor_id)
    return airflow_id_of(workload)


def key_of(row: JobRow | NewJob) -> Any:
    """Airflow's key of this job."""
    if row.kind == Kind.CALLBACK:
        return CallbackKey(str(row.airflow_id))  # a plain string before 3.3
    if row.kind == Kind.CONNECTION_TEST:
        return ConnectionTestKey(id=str(row.airflow_id))
    return TaskInstanceKey(
        dag_id=row.dag_id,
        task_id=row.task_id,
        run_id=row.run_id,
        try_number=row.try_number,
        map_index=row.map_index,
    )
