"""What the control plane and its agents would have done to a job, written straight into the tables."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

Database = psycopg.Connection[Any]


def job(database: Database, job_id: UUID) -> Any:
    row = database.execute("SELECT * FROM edgecontrol.job WHERE id = %s", [job_id]).fetchone()
    assert row is not None
    return row


def hold(database: Database, job_id: UUID, *, worker: int, state: str = "running") -> None:
    database.execute(
        "UPDATE edgecontrol.job SET state = %s, worker_id = %s, attempt = attempt + 1 WHERE id = %s",
        [state, worker, job_id],
    )


def end(database: Database, job_id: UUID, *, state: str, outcome: str = "", reason: str = "") -> None:
    database.execute(
        "UPDATE edgecontrol.job SET state = %s, airflow_outcome = %s, reason = %s, finished_at = now(), token = NULL"
        " WHERE id = %s",
        [state, outcome, reason, job_id],
    )


def add_log(database: Database, job_id: UUID, data: bytes, *, attempt: int = 1, chunk_size: int = 1000) -> None:
    for start in range(0, len(data), chunk_size):
        database.execute(
            'INSERT INTO edgecontrol.log_chunk (job_id, attempt, "offset", data) VALUES (%s, %s, %s, %s)',
            [job_id, attempt, start, data[start : start + chunk_size]],
        )


def store_many(database: Database, number: int, *, dispatcher: UUID, state: str) -> None:
    """Waiting jobs, or finished ones that Airflow was told of."""
    database.execute(
        """
        INSERT INTO edgecontrol.job
            (id, kind, airflow_id, workload, queue, dispatcher, state, finished_at, told_at)
        SELECT gen_random_uuid(), 'ExecuteTask', gen_random_uuid(), '{}', 'q', %(dispatcher)s, %(state)s, moment, moment
        FROM generate_series(1, %(number)s), (SELECT CASE WHEN %(state)s <> 'queued' THEN now() END AS moment) AS ended
        """,
        {"dispatcher": dispatcher, "state": state, "number": number},
    )
    database.execute("ANALYZE edgecontrol.job")
