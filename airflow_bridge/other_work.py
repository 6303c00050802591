"""What Airflow's tables say of callbacks and connection tests, each time in one query of a session of its own.

Only a callback that nobody has is changed: it is put back to where Airflow looks for new ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from airflow._shared.timezones import timezone
from airflow.models.callback import Callback, CallbackType, ExecutorCallback
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import with_row_locks
from airflow.utils.state import CallbackState
from sqlalchemy import select, update

from airflow_bridge.airflow_features import ConnectionTestRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuedCallback:
    """A callback that some scheduler has given to an executor."""

    id: UUID
    dag_id: str | None
    #: The executor that it names, if it names one.
    executor: str | None


def callback_states(ids: Collection[UUID]) -> dict[UUID, str]:
    """The states of those of these callbacks that are still there."""
    if not ids:
        return {}
    with create_session(scoped=False) as session:
        rows = session.execute(select(Callback.id, Callback.state).where(Callback.id.in_(ids))).all()
    return {UUID(str(row.id)): str(row.state) for row in rows}


def connection_test_states(ids: Collection[UUID]) -> dict[UUID, str]:
    """The states of those of these connection tests that are still there."""
    if not ids or ConnectionTestRequest is None:
        return {}
    request = ConnectionTestRequest
    with create_session(scoped=False) as session:
        rows = session.execute(select(request.id, request.state).where(request.id.in_(ids))).all()
    return {UUID(str(row.id)): str(row.state) for row in rows}


def queued_callbacks(*, younger_than: float, limit: int) -> list[QueuedCallback]:
    """Callbacks that wait in some executor, whoever's, and were made within so many seconds."""
    query = (
        select(ExecutorCallback.id, ExecutorCallback.data)
        .where(
            ExecutorCallback.type == CallbackType.EXECUTOR,
            ExecutorCallback.state == CallbackState.QUEUED,
            ExecutorCallback.created_at > timezone.utcnow() - timedelta(seconds=younger_than),
        )
        .order_by(ExecutorCallback.created_at)
        .limit(limit)
    )
    with create_session(scoped=False) as session:
        rows = session.execute(query).all()
    return [
        QueuedCallback(id=UUID(str(row.id)), dag_id=row.data.get("dag_id"), executor=row.data.get("executor"))
        for row in rows
        if isinstance(row.data, dict)
    ]


def put_back(ids: Collection[UUID]) -> set[UUID]:
    """Let Airflow queue those of these callbacks anew that are still queued; return which. What is locked is left."""
    queued = select(Callback.id).where(Callback.id.in_(ids), Callback.state == CallbackState.QUEUED)
    with create_session(scoped=False) as session:
        free = list(session.scalars(with_row_locks(queued, session, of=Callback, skip_locked=True)))
        if free:
            session.execute(
                update(Callback)
                .where(Callback.id.in_(free), Callback.state == CallbackState.QUEUED)
                .values(state=CallbackState.PENDING)
                .execution_options(synchronize_session=False)
            )
    return {UUID(str(found)) for found in free}
