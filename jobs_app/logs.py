"""Logs in PostgreSQL: append at an offset, read from an offset. Bytes in, the same bytes out; never a job's state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from django.db import connection
from django.db.models.functions import Length

from jobs_app.lifecycle import StaleAttempt
from jobs_app.models import Job, LogChunk
from jobs_app.states import FINAL
from workers_app.errors import Refusal


class WrongOffset(Refusal):
    """The log has another size here; go on from there."""

    code = "wrong_offset"


class LogFull(Refusal):
    """The log has reached the size that is kept here; the rest stays on the edge machine."""

    code = "log_full"


def append(*, worker_id: int, job_id: UUID, attempt: int, offset: int, data: bytes, cap_bytes: int) -> int:
    """Store `data` at `offset` of this attempt's log and return the log's size in bytes.

    Bytes that are known already change nothing. Only the attempt's holder may append, also after the
    job's end. Raises StaleAttempt, WrongOffset with the `size` to go on from, or LogFull.
    """
    end = offset + len(data)
    if end <= cap_bytes and data and _extend(worker_id, job_id, attempt, offset, data):
        return end
    size = (
        Job.objects.filter(pk=job_id, attempt=attempt, worker_id=worker_id).values_list("log_size", flat=True).first()
    )
    if size is None:
        raise StaleAttempt
    if offset <= size and end <= size:
        return size
    if end > cap_bytes:
        raise LogFull(f"The log has {size} bytes here and may have {cap_bytes}; the rest stays on the edge machine.")
    raise WrongOffset(f"The log has {size} bytes here; go on from there.", size=size)


def _extend(worker_id: int, job_id: UUID, attempt: int, offset: int, data: bytes) -> bool:
    """Grow the log if it ends exactly at `offset`. One statement: two appends of the same bytes cannot both win."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH grown AS (
                UPDATE job SET log_size = %s
                 WHERE id = %s AND attempt = %s AND worker_id = %s AND log_size = %s RETURNING id
            )
            INSERT INTO log_chunk (job_id, attempt, "offset", data) SELECT id, %s, %s, %s FROM grown
            """,
            [offset + len(data), job_id, attempt, worker_id, offset, attempt, offset, data],
        )
        return bool(cursor.rowcount)


def read(*, job_id: UUID, attempt: int, offset: int = 0) -> Iterator[bytes]:
    """The stored bytes of this attempt's log from `offset` on, chunk by chunk, in bounded memory."""
    while True:
        chunk = LogChunk.objects.filter(job_id=job_id, attempt=attempt, offset__lte=offset).order_by("-offset").first()
        if chunk is None or offset >= chunk.offset + len(chunk.data):
            return
        yield bytes(chunk.data)[offset - chunk.offset :]
        offset = chunk.offset + len(chunk.data)


@dataclass(frozen=True)
class Extent:
    """How much of a log is stored."""

    size: int
    #: Nothing more will come.
    complete: bool


def extent(job: Job, *, attempt: int, cap_bytes: int, chunk_bytes: int) -> Extent:
    """What is stored of this attempt's log, as of when `job` was read."""
    chunks = LogChunk.objects.filter(job_id=job.pk, attempt=attempt).order_by("-offset")
    last = chunks.values_list("offset", Length("data")).first()
    size = sum(last) if last else 0
    if attempt == 0:
        return Extent(size, job.state in FINAL)
    if attempt != job.attempt or job.worker_id is None:
        # Its holder may append no more.
        return Extent(size, True)
    told = job.log_final_size
    # Of a log beyond the cap, the first chunk that does not fit is the end.
    full = told is not None and told > cap_bytes and size > cap_bytes - chunk_bytes
    return Extent(size, told is not None and (size >= told or full))
