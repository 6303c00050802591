"""Every statement the bridge sends to the tables it shares with the control plane: one method, one statement.

Nothing here knows Airflow. The state words are those of `states.JobState`; times are the database's. Each method
raises a StoreError and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, LiteralString
from uuid import UUID, uuid4

from airflow_bridge import fleet
from airflow_bridge.database import Connections
from airflow_bridge.fleet import QueueNow, WorkerNow

#: A place among all that waits: when it was queued, and its id.
Place = tuple[datetime, UUID]
_NIL = UUID(int=0)
_OPEN = ("queued", "claimed", "running")


@dataclass(frozen=True, kw_only=True, slots=True)
class NewJob:
    """One queueing of one workload, as it is inserted."""

    id: UUID
    kind: str
    airflow_id: UUID
    workload: Mapping[str, Any]
    token: str
    queue: str
    slots: int
    priority: int
    team_name: str
    dispatcher: UUID
    dag_id: str = ""
    task_id: str = ""
    run_id: str = ""
    map_index: int = -1
    try_number: int = 0
    log_path: str = ""
    #: For how much longer Airflow accepts the token; None when nobody knows.
    token_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRow:
    """What the executor needs to know of a stored job."""

    id: UUID
    kind: str
    airflow_id: UUID
    dag_id: str
    task_id: str
    run_id: str
    map_index: int
    try_number: int
    state: str
    airflow_outcome: str
    reason: str
    queue: str = ""
    #: How often it was handed out.
    attempt: int = 0
    #: Its process cannot be alive any more, whoever saw it last.
    process_gone: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where a job stands that the executor believes to be open."""

    id: UUID
    airflow_id: UUID
    try_number: int
    state: str
    airflow_outcome: str
    dispatcher: UUID | None
    #: How often it was handed out, and why it came back when it did.
    attempt: int
    reason: str
    #: Airflow knows how it ended.
    told: bool
    #: Seconds since it was queued.
    age: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LogPart:
    """The log of one attempt of one job, and what people should know about it."""

    job_id: UUID
    attempt: int
    state: str
    reason: str
    queue: str
    worker: str
    has_log: bool
    #: The newest attempt, which the following figures are of.
    newest: bool
    #: Bytes that are stored, and that the machine said there are; None while the job runs.
    log_size: int
    log_final_size: int | None
    #: It has reached the size that is kept.
    log_full: bool
    #: Why its machine cannot send it on.
    log_trouble: str


# A new job for a task instance takes the place of an older open one, in the same statement: Airflow queues a task
# instance again only when it has given up the earlier queueing. The holder of a revoked job hears of it at once.
# outrun: a scheduler that hung for long may write an earlier try after another one has queued the next. It is stored
#         as revoked, since Airflow does not wait for it any more.
_ENQUEUE = """
WITH batch AS (
    SELECT * FROM jsonb_to_recordset(%(batch)s::jsonb) AS job (
        id uuid, kind text, airflow_id uuid, workload jsonb, token text, queue text, slots int, priority int,
        team_name text, dispatcher uuid, dag_id text, task_id text, run_id text, map_index int, try_number int,
        log_path text, token_seconds float8)
), queues AS (
    INSERT INTO edgecontrol.queue (name) SELECT DISTINCT queue FROM batch ORDER BY queue ON CONFLICT DO NOTHING
), outrun AS (
    SELECT batch.id, (
        SELECT id FROM edgecontrol.job AS later
        WHERE airflow_id = batch.airflow_id AND later.try_number > batch.try_number
            AND state IN ('queued', 'claimed', 'running')
        LIMIT 1
    ) AS later FROM batch
), inserted AS (
    INSERT INTO edgecontrol.job (state, finished_at, reason, id, kind, airflow_id, workload, token, queue, slots,
        priority, team_name, dispatcher, dag_id, task_id, run_id, map_index, try_number, log_path, token_until)
    SELECT CASE WHEN later IS NULL THEN 'queued' ELSE 'revoked' END, CASE WHEN later IS NOT NULL THEN now() END,
        coalesce('superseded by job ' || later, ''), id, kind, airflow_id, workload,
        CASE WHEN later IS NULL THEN token END, queue, slots, priority, team_name, dispatcher, dag_id, task_id, run_id,
        map_index, try_number, log_path,
        now() + make_interval(secs => token_seconds)
    FROM batch JOIN outrun USING (id) ON CONFLICT (id) DO NOTHING
    RETURNING id, airflow_id, queue, team_name, slots, state
), superseded AS (
    UPDATE edgecontrol.job AS older
    SET state = 'revoked', finished_at = now(), token = NULL, reason = 'superseded by job ' || inserted.id
    FROM inserted, LATERAL (
        SELECT id FROM edgecontrol.job
        WHERE airflow_id = inserted.airflow_id AND id <> inserted.id AND state IN ('queued', 'claimed', 'running')
        OFFSET 0
    ) AS found
    WHERE inserted.state = 'queued' AND older.id = found.id
        AND coalesce(older.state, '') IN ('queued', 'claimed', 'running')
    RETURNING older.worker_id
), bumped AS (
    UPDATE edgecontrol.worker SET revision = revision + 1
    WHERE id IN (SELECT worker_id FROM superseded) RETURNING id
), told_workers AS (
    SELECT count(pg_notify('edgecontrol_worker', json_build_object('worker', id)::text)) AS told FROM bumped
), told_jobs AS (
    SELECT count(pg_notify('edgecontrol_jobs', json_build_object(
        'queue', queue, 'team', team_name, 'slots', slots, 'count', jobs)::text)) AS told
    FROM (
        SELECT queue, team_name, slots, count(*) AS jobs FROM inserted WHERE state = 'queued' GROUP BY 1, 2, 3
    ) AS groups
)
SELECT id FROM inserted WHERE (SELECT told FROM told_workers) >= 0 AND (SELECT told FROM told_jobs) >= 0
"""

_REVOKE = """
WITH revoked AS (
    UPDATE edgecontrol.job SET state = 'revoked', finished_at = now(), token = NULL, reason = given.reason
    FROM unnest(%(ids)s::uuid[], %(reasons)s::text[]) AS given (id, reason)
    WHERE job.id = given.id AND state = ANY(%(states)s)
        AND state IN ('queued', 'claimed', 'running')
    RETURNING job.id, worker_id
), bumped AS (
    UPDATE edgecontrol.worker SET revision = revision + 1
    WHERE id IN (SELECT worker_id FROM revoked) RETURNING id
), told_workers AS (
    SELECT count(pg_notify('edgecontrol_worker', json_build_object('worker', id)::text)) AS told FROM bumped
)
SELECT id FROM revoked WHERE (SELECT told FROM told_workers) >= 0
"""

# The index job_untold serves this: its size is what is untold, not what is stored.
_UNTOLD = """
SELECT id, kind, airflow_id, dag_id, task_id, run_id, map_index, try_number, state, airflow_outcome, reason,
    queue, attempt, process_gone
FROM edgecontrol.job
WHERE dispatcher = %(dispatcher)s AND told_at IS NULL
    AND state IN ('failed', 'lost', 'refused', 'revoked', 'success')
    AND NOT id = ANY(%(besides)s)
LIMIT %(limit)s
"""

_HELD = """
SELECT array_agg(id) AS ids, array_agg(attempt) AS attempts FROM edgecontrol.job
WHERE state IN ('claimed', 'running') AND dispatcher = %(dispatcher)s
"""

# Told ones are adopted too, and told again: Airflow offers only task instances that are not finished.
_ADOPT = """
WITH free AS (
    SELECT job.id FROM edgecontrol.job WHERE job.id = ANY(%(ids)s) ORDER BY job.id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE edgecontrol.job SET dispatcher = %(dispatcher)s, told_at = NULL FROM free WHERE job.id = free.id
RETURNING job.id, kind, airflow_id, dag_id, task_id, run_id, map_index, try_number, state, airflow_outcome, reason,
    queue, attempt, process_gone
"""

# Costs as much as is untold (job_untold). Airflow takes the end of a callback from any scheduler, however often.
_ADOPT_OVERDUE = """
UPDATE edgecontrol.job SET dispatcher = %(dispatcher)s
WHERE told_at IS NULL AND state IN ('failed', 'lost', 'refused', 'revoked', 'success')
    AND finished_at < now() - make_interval(
        secs => CASE WHEN kind = 'ExecuteTask' THEN %(seconds)s ELSE %(seconds_of_others)s END)
    AND dispatcher <> %(dispatcher)s
RETURNING id
"""

# A living dispatcher renews tokens long before they run out. One slice of all that waits, the newest first
# (job_waiting_newest).
_ADOPT_ABANDONED = """
WITH slice AS (
    SELECT id, queued_at, team_name, dispatcher, token_until FROM edgecontrol.job
    WHERE state = 'queued' AND (queued_at, id) < (%(before)s::timestamptz, %(before_id)s::uuid)
    ORDER BY queued_at DESC, id DESC LIMIT %(limit)s
), free AS (
    SELECT job.id FROM edgecontrol.job JOIN slice USING (id)
    WHERE slice.token_until < now() - make_interval(secs => %(seconds)s) AND slice.dispatcher <> %(dispatcher)s
        AND slice.team_name = %(team_name)s AND job.state = 'queued'
    FOR NO KEY UPDATE OF job SKIP LOCKED
), adopted AS (
    UPDATE edgecontrol.job SET dispatcher = %(dispatcher)s FROM free WHERE job.id = free.id AND job.state = 'queued'
    RETURNING job.id, kind, airflow_id, dag_id, task_id, run_id, map_index, try_number, state, airflow_outcome, reason,
        queue, attempt, process_gone
)
SELECT last.queued_at, last.id AS last_id, (SELECT count(*) FROM slice) AS looked_at, adopted.*
FROM (SELECT queued_at, id FROM slice ORDER BY queued_at, id LIMIT 1) AS last LEFT JOIN adopted ON true
"""

_EXPIRE = """
UPDATE edgecontrol.job SET state = 'failed', finished_at = now(), token = NULL,
    reason = format('no worker took it within %%s s: queue %%s %%s', %(limit)s::int, quote_literal(queue),
        CASE WHEN (SELECT paused FROM edgecontrol.queue WHERE name = job.queue) THEN 'is paused'
             ELSE 'has no free worker that may take it' END)
WHERE id = ANY(%(ids)s) AND state = 'queued' AND queued_at < now() - make_interval(secs => %(limit)s)
RETURNING id, reason
"""

# No worker was given a job whose token had run out, so that it is announced again.
_RENEW = """
WITH due AS (
    SELECT job.id, fresh.token, queue, team_name, slots, coalesce(token_until <= now(), false) AS ran_out
    FROM edgecontrol.job JOIN unnest(%(ids)s::uuid[], %(tokens)s::text[]) AS fresh (id, token) USING (id)
    WHERE job.state = 'queued' FOR NO KEY UPDATE OF job
), renewed AS (
    UPDATE edgecontrol.job SET token = due.token, token_until = now() + make_interval(secs => %(seconds)s)
    FROM due WHERE job.id = due.id AND job.state = 'queued'
    RETURNING job.id
), told_jobs AS (
    SELECT count(pg_notify('edgecontrol_jobs', json_build_object(
        'queue', queue, 'team', team_name, 'slots', slots, 'count', jobs)::text)) AS told
    FROM (SELECT queue, team_name, slots, count(*) AS jobs FROM due WHERE ran_out GROUP BY 1, 2, 3) AS groups
)
SELECT id FROM renewed WHERE (SELECT told FROM told_jobs) >= 0
"""

_LOG_PARTS = """
SELECT job.id AS job_id, attempt.number AS attempt, job.state, job.reason, job.queue,
    coalesce(worker.name, '') AS worker, chunk.found IS NOT NULL AS has_log,
    attempt.number = job.attempt AS newest, job.log_size, job.log_final_size, job.log_full, job.log_trouble
FROM edgecontrol.job
LEFT JOIN edgecontrol.worker ON worker.id = job.worker_id
CROSS JOIN generate_series(0, job.attempt) AS attempt (number)
LEFT JOIN LATERAL (
    SELECT true AS found FROM edgecontrol.log_chunk
    WHERE log_chunk.job_id = job.id AND log_chunk.attempt = attempt.number LIMIT 1
) AS chunk ON true
WHERE job.log_path = %(log_path)s AND job.log_path <> '' AND (chunk.found OR attempt.number = job.attempt)
ORDER BY job.queued_at, job.id, attempt.number
"""

# Offsets are byte positions without gaps, so a range of offsets is a bounded number of bytes.
_LOG_PAGE = """
SELECT "offset", data FROM edgecontrol.log_chunk
WHERE job_id = %(job_id)s AND attempt = %(attempt)s AND "offset" >= %(start)s AND "offset" < %(end)s
ORDER BY "offset"
"""

_ADD_LOG = """
INSERT INTO edgecontrol.log_chunk (job_id, attempt, "offset", data)
SELECT job.id, 0, coalesce(stored.size, 0), %(data)s
FROM (
    SELECT id FROM edgecontrol.job WHERE log_path = %(log_path)s AND log_path <> '' ORDER BY queued_at DESC LIMIT 1
) AS job
LEFT JOIN LATERAL (
    SELECT "offset" + octet_length(data) AS size FROM edgecontrol.log_chunk
    WHERE job_id = job.id AND attempt = 0 ORDER BY "offset" DESC LIMIT 1
) AS stored ON true
RETURNING job_id
"""


_NEW = tuple(column.name for column in fields(NewJob))


def _columns(job: NewJob) -> dict[str, Any]:
    """Its columns as they are: `asdict` would copy each value of the workload, which costs more than all else."""
    return {name: getattr(job, name) for name in _NEW}


class Store:
    """EdgeControl's tables, for one process."""

    _done = 0

    def __init__(self, url: str, *, connections: int = 1) -> None:
        self._connections = Connections(url, limit=connections)

    @property
    def done(self) -> int:
        """How many statements PostgreSQL has carried out."""
        return self._done

    def close(self) -> None:
        self._connections.close()

    def enqueue(self, jobs: Sequence[NewJob]) -> set[UUID]:
        """Insert what is not there yet; return the ids that were inserted by this call.

        A batch whose COMMIT was not answered may be written again. Raises RowRefused when any of the rows is
        unfit; none is written then.
        """
        batch = json.dumps([_columns(job) for job in jobs], default=str)
        return {row.id for row in self._run(_ENQUEUE, batch=batch)}

    def rehearse(self) -> None:
        """Insert a plain job and take it back. Raises what keeps every job out, whatever is in it."""
        plain = NewJob(
            id=uuid4(),
            kind="ExecuteTask",
            airflow_id=uuid4(),
            workload={},
            token="",
            queue="default",
            slots=1,
            priority=1,
            team_name="",
            dispatcher=uuid4(),
        )
        batch = json.dumps([_columns(plain)], default=str)
        with self._connections.borrow() as connection, connection.transaction(force_rollback=True):
            connection.execute(_ENQUEUE, {"batch": batch})

    def revoke(self, ids: Sequence[UUID], *, reason: str) -> set[UUID]:
        """Withdraw those of the jobs that are still open; return their ids."""
        return self.revoke_each(dict.fromkeys(ids, reason), states=_OPEN)

    def revoke_each(self, reasons: Mapping[UUID, str], *, states: Collection[str]) -> set[UUID]:
        """Withdraw those of the jobs that are in one of these open states, each for its reason; return their ids."""
        rows = self._run(_REVOKE, ids=list(reasons), reasons=list(reasons.values()), states=list(states))
        return {row.id for row in rows}

    def untold(self, *, dispatcher: UUID, besides: Iterable[UUID], limit: int) -> list[JobRow]:
        """Final jobs of this dispatcher that Airflow does not know of yet."""
        rows = self._run(_UNTOLD, dispatcher=dispatcher, besides=list(besides), limit=limit)
        return [JobRow(**row._asdict()) for row in rows]

    def mark_told(self, ids: Sequence[UUID]) -> None:
        """Airflow knows how these ended."""
        self._run("UPDATE edgecontrol.job SET told_at = now() WHERE id = ANY(%(ids)s) RETURNING id", ids=list(ids))

    def held(self, *, dispatcher: UUID) -> dict[UUID, int]:
        """This dispatcher's jobs that a worker has now, with their attempts. Costs as much as the fleet holds."""
        (row,) = self._run(_HELD, dispatcher=dispatcher)
        return dict(zip(row.ids or (), row.attempts or (), strict=True))

    def standing(self, ids: Sequence[UUID]) -> list[Standing]:
        """Where these jobs stand; a job that is missing from the answer has been deleted."""
        query = """
            SELECT id, airflow_id, try_number, state, airflow_outcome, dispatcher, attempt, reason,
                told_at IS NOT NULL AS told,
                extract(epoch FROM now() - queued_at)::float8 AS age
            FROM edgecontrol.job WHERE id = ANY(%(ids)s)"""
        return [Standing(**row._asdict()) for row in self._run(query, ids=list(ids))]

    def adopt(self, ids: Sequence[UUID], *, dispatcher: UUID) -> list[JobRow]:
        """Take over a dead dispatcher's jobs; those not in the answer are not stored, or locked just now."""
        return [JobRow(**row._asdict()) for row in self._run(_ADOPT, ids=list(ids), dispatcher=dispatcher)]

    def adopt_overdue(self, *, dispatcher: UUID, seconds: int, seconds_of_others: int) -> set[UUID]:
        """Take over what ended that long ago and is still untold, since its dispatcher is gone; return the ids.

        Callbacks and connection tests have a time of their own.
        """
        rows = self._run(_ADOPT_OVERDUE, dispatcher=dispatcher, seconds=seconds, seconds_of_others=seconds_of_others)
        return {row.id for row in rows}

    def adopt_abandoned(
        self, *, dispatcher: UUID, team_name: str, seconds: int, before: Place | None, limit: int
    ) -> tuple[list[JobRow], Place | None]:
        """Take over what waits and whose token ran out that long ago, in one slice of all that waits.

        Returns these jobs, and where the next slice begins; None when this was the last one.
        """
        rows = self._run(
            _ADOPT_ABANDONED,
            dispatcher=dispatcher,
            team_name=team_name,
            seconds=seconds,
            before=before[0] if before else "infinity",
            before_id=before[1] if before else _NIL,
            limit=limit,
        )
        names = [field.name for field in fields(JobRow)]
        adopted = [JobRow(**{name: getattr(row, name) for name in names}) for row in rows if row.kind]
        more = bool(rows) and rows[0].looked_at == limit
        return adopted, ((rows[0].queued_at, rows[0].last_id) if more else None)

    def expire(self, ids: Sequence[UUID], *, limit_seconds: int) -> dict[UUID, str]:
        """Fail those of the jobs that have waited longer than the limit; return why nobody took each."""
        return {row.id: row.reason for row in self._run(_EXPIRE, ids=list(ids), limit=limit_seconds)}

    def renew_tokens(self, tokens: Mapping[UUID, str], *, seconds: float) -> set[UUID]:
        """Give jobs that still wait a fresh token, which is accepted for so long; return those that did."""
        rows = self._run(_RENEW, ids=list(tokens.keys()), tokens=list(tokens.values()), seconds=seconds)
        return {row.id for row in rows}

    def workers_now(self, *, team_name: str) -> list[WorkerNow]:
        """This team's workers, those that are gone too. Costs as much as they are and the fleet holds."""
        return [WorkerNow(**row._asdict()) for row in self._run(fleet.WORKERS, team_name=team_name)]

    def queues_now(self, *, team_name: str) -> list[QueueNow]:
        """The queues in which jobs of this team wait or are held."""
        rows = self._run(fleet.QUEUES, team_name=team_name, most=fleet.MOST_COUNTED)
        return [QueueNow(**row._asdict()) for row in rows]

    def log_parts(self, log_path: str) -> list[LogPart]:
        """Whose logs make up this path, oldest first: one part per attempt with a log, and every newest attempt."""
        return [LogPart(**row._asdict()) for row in self._run(_LOG_PARTS, log_path=log_path)]

    def log_page(self, *, job_id: UUID, attempt: int, start: int, size: int) -> list[tuple[int, bytes]]:
        """Chunks (offset, bytes) that begin within `size` bytes from `start`."""
        rows = self._run(_LOG_PAGE, job_id=job_id, attempt=attempt, start=start, end=start + size)
        return [(row.offset, bytes(row.data)) for row in rows]

    def add_log(self, *, log_path: str, data: bytes) -> bool:
        """Append to what Airflow's own side wrote for the newest job of this path; False when there is none."""
        return bool(self._run(_ADD_LOG, log_path=log_path, data=data))

    def _run(self, query: LiteralString, **values: Any) -> list[Any]:
        with self._connections.borrow() as connection:
            rows = connection.execute(query, values, binary=True).fetchall()
        self._done += 1
        return rows
