"""What Airflow itself says of task instances, each time in one query of a session of its own.

Not the scoped session: the scheduler's loop has rows locked and pending in that one. Nothing is changed, but for what
is queued and nobody has: Airflow is given that back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from airflow._shared.timezones import timezone
from airflow.executors import workloads
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import TaskInstanceState
from sqlalchemy import and_, or_, select, tuple_, update
from sqlalchemy.orm import joinedload

from airflow_bridge.queueing import parse_id


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInstanceNow:
    """A task instance as Airflow has it now."""

    key: TaskInstanceKey
    state: str | None
    #: The newest queueing: a different one means that Airflow has moved on from the job in hand.
    job_id: UUID | None
    #: Seconds since the task last spoke to Airflow; None when it never did.
    silence: float | None
    #: The scheduler that queued it, or took it over.
    queued_by: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedTask:
    """A task instance that some scheduler has queued."""

    id: UUID
    key: TaskInstanceKey
    #: Its queueing; None when it has none of ours.
    job_id: UUID | None
    #: The executor that it names, if it names one.
    executor: str | None


def look_up(ids: Collection[UUID]) -> dict[UUID, TaskInstanceNow]:
    """These task instances by id. One that was deleted, cleared or ended a try after it ran is missing."""
    return dict(_select(TaskInstance.id.in_(ids))) if ids else {}


def look_up_cleared(keys: Collection[TaskInstanceKey]) -> dict[UUID, TaskInstanceNow]:
    """Those of these tasks that were cleared while they ran, by the job that ran them.

    Airflow 3.3.2 gives them a new id, leaves the job's with them, and waits in RESTARTING for the job to end.
    """
    if not keys:
        return {}
    ti = TaskInstance
    places = [(key.dag_id, key.run_id, key.task_id, key.map_index) for key in keys]
    found = _select(
        tuple_(ti.dag_id, ti.run_id, ti.task_id, ti.map_index).in_(places), ti.state == TaskInstanceState.RESTARTING
    )
    return {now.job_id: now for _, now in found if now.job_id}


def _select(*conditions: Any) -> list[tuple[UUID, TaskInstanceNow]]:
    ti = TaskInstance
    query = select(
        ti.id,
        ti.dag_id,
        ti.task_id,
        ti.run_id,
        ti.try_number,
        ti.map_index,
        ti.state,
        ti.external_executor_id,
        ti.last_heartbeat_at,
        ti.queued_by_job_id,
    ).where(*conditions)
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    now = timezone.utcnow()
    return [
        (
            UUID(str(row.id)),
            TaskInstanceNow(
                key=TaskInstanceKey(row.dag_id, row.task_id, row.run_id, row.try_number, row.map_index),
                state=row.state,
                job_id=parse_id(row.external_executor_id),
                silence=(now - row.last_heartbeat_at).total_seconds() if row.last_heartbeat_at else None,
                queued_by=row.queued_by_job_id,
            ),
        )
        for row in rows
    ]


def workloads_of(ids: Collection[UUID], **options: Any) -> list[Any]:
    """Make the workloads of those of these task instances that are queued, as the scheduler that queued them did.

    `options` are those of `ExecuteTask.make`.
    """
    ti = TaskInstance
    query = (
        select(ti)
        .options(joinedload(ti.dag_model))
        .where(ti.id.in_(ids), ti.state == TaskInstanceState.QUEUED, ti.dag_version_id.is_not(None))
    )
    with create_session(scoped=False) as session:
        return [workloads.ExecuteTask.make(found, **options) for found in session.scalars(query).unique()]


def queued_by(
    scheduler: Any, *, seconds: float, after: tuple[Any, Any] | None, limit: int
) -> tuple[list[QueuedTask], tuple[Any, Any] | None]:
    """What this scheduler's job has queued longer ago than that: a slice, the oldest first.

    Also returns where the next slice begins; None when this was the last one. Costs as much as is queued.
    """
    ti = TaskInstance
    query = (
        select(*_QUEUED_TASK)
        .where(
            ti.state == TaskInstanceState.QUEUED,
            ti.queued_by_job_id == scheduler,
            ti.queued_dttm < timezone.utcnow() - timedelta(seconds=seconds),
        )
        .order_by(ti.queued_dttm, ti.id)
        .limit(limit)
    )
    if after:
        moment, last = after
        query = query.where(or_(ti.queued_dttm > moment, and_(ti.queued_dttm == moment, ti.id > last)))
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    return [_queued_task(row) for row in rows], ((rows[-1].queued_dttm, rows[-1].id) if len(rows) == limit else None)


def give_back(tasks: Mapping[UUID, UUID | None], *, queued_by: Any) -> list[QueuedTask]:
    """Let Airflow queue those of these tasks anew that are still queued as these jobs; return which.

    It costs no try, and a deferred task still resumes where it was: as Airflow does with what is queued too long
    (`SchedulerJobRunner._reschedule_stuck_task`). What is locked is left.
    """
    ti = TaskInstance
    as_it_was = (ti.state == TaskInstanceState.QUEUED, ti.queued_by_job_id == queued_by)
    with create_session(scoped=False) as session:
        query = select(*_QUEUED_TASK).where(ti.id.in_(tasks), *as_it_was)
        rows = session.execute(with_row_locks(query, session, of=ti, skip_locked=True)).all()
        same = [task for row in rows if (task := _queued_task(row)).job_id == tasks[task.id]]
        if same:
            session.execute(
                update(ti)
                .where(ti.id.in_([task.id for task in same]), *as_it_was)
                .values(state=TaskInstanceState.SCHEDULED, queued_dttm=None, queued_by_job_id=None)
                .execution_options(synchronize_session=False)
            )
    return same


_QUEUED_TASK = (
    TaskInstance.id,
    TaskInstance.dag_id,
    TaskInstance.task_id,
    TaskInstance.run_id,
    TaskInstance.try_number,
    TaskInstance.map_index,
    TaskInstance.external_executor_id,
    TaskInstance.executor,
    TaskInstance.queued_dttm,
)


def _queued_task(row: Any) -> QueuedTask:
    return QueuedTask(
        id=UUID(str(row.id)),
        key=TaskInstanceKey(row.dag_id, row.task_id, row.run_id, row.try_number, row.map_index),
        job_id=parse_id(row.external_executor_id),
        executor=row.executor,
    )
