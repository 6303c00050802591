"""What Airflow's own Edge provider has stored in Airflow's database: its workers, and how much they still have to do.

Only read, through Airflow's session and so on any engine, and by the columns that are there: versions of edge3 differ,
and neither it nor any of its code need be installed.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from typing import Any

from airflow.configuration import conf
from airflow.exceptions import AirflowConfigException
from airflow.utils.session import create_session
from sqlalchemy import MetaData, Table, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from airflow_bridge.cli.endings import Failed

WORKERS, JOBS = "edge_worker", "edge_job"
#: Airflow has handed these to edge3 and has not heard of their end.
_OPEN = ("queued", "restarting", "running")
_RESTING = ("maintenance request", "maintenance pending", "maintenance mode", "offline maintenance")


@dataclass(frozen=True, kw_only=True)
class Edge3Worker:
    name: str
    state: str
    #: None: every queue.
    queues: list[str] | None
    team: str
    #: What an operator set or else what its program said; None when neither did.
    concurrency: int | None
    #: Why it rests; None when it does not.
    maintenance: str | None
    #: Jobs that it holds.
    jobs: int


@dataclass(frozen=True)
class Edge3:
    workers: list[Edge3Worker]
    #: Jobs that wait, by queue.
    waiting: dict[str, int] = field(default_factory=dict)


def read() -> Edge3:
    """All of it. Raises Failed when there is no such database, or edge3 was never used with it."""
    try:
        with create_session() as session:
            return _read(session.connection())
    except (SQLAlchemyError, AirflowConfigException) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Failed(f"Airflow's database cannot be read: {why}; run this where Airflow's scheduler runs") from None


def _read(connection: Any) -> Edge3:
    schema = conf.get("database", "sql_alchemy_schema", fallback="") or None
    there = inspect(connection)
    if not there.has_table(WORKERS, schema=schema):
        raise Failed(
            f"Airflow's database has no table {WORKERS}: the Edge provider was never used with it, or this is another "
            "database ([database] sql_alchemy_conn)"
        )
    held: dict[str, int] = {}
    waiting: dict[str, int] = {}
    if there.has_table(JOBS, schema=schema):
        job = Table(JOBS, MetaData(), schema=schema, autoload_with=connection).c
        counted = select(job.state, job.queue, job.edge_worker, func.count()).where(job.state.in_(_OPEN))
        for state, queue, worker, count in connection.execute(counted.group_by(job.state, job.queue, job.edge_worker)):
            into, name = (waiting, queue) if state == "queued" else (held, worker or "")
            into[name] = into.get(name, 0) + count
    table = Table(WORKERS, MetaData(), schema=schema, autoload_with=connection)
    rows = connection.execute(select(table).order_by(table.c.worker_name)).mappings()
    return Edge3([_worker(dict(row), held) for row in rows], waiting)


def _worker(row: dict[str, Any], held: dict[str, int]) -> Edge3Worker:
    name, state = row["worker_name"], row["state"]
    resting = state in _RESTING
    return Edge3Worker(
        name=name,
        state=state,
        queues=_queues(row["queues"]),
        team=row.get("team_name") or "",
        concurrency=_positive(row.get("concurrency")) or _positive(_sysinfo(row.get("sysinfo")).get("concurrency")),
        maintenance=(row.get("maintenance_comment") or "") if resting else None,
        jobs=held.get(name, 0),
    )


def _queues(text: str | None) -> list[str] | None:
    """edge3 stores Python's spelling of a list; empty or nothing is every queue."""
    try:
        names = ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        names = [text]
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None


def _sysinfo(value: Any) -> dict[str, Any]:
    """JSON, or text where an older version stored it as such."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
