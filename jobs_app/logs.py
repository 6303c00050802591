"""Logs in PostgreSQL: append at an offset, read from an offset. Bytes in, the same bytes out; never a job's state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db import connection
from django.db.models.functions import Length

from jobs_app.lifecycle import StaleAttempt
from jobs_app.models import Job, LogChunk
from jobs_app.states import FINAL
from workers_app.errors import Refusal

#: As many as its column can count.
_MOST_ATTEMPTS = 2**31 - 1


class WrongOffset(Refusal):
    """The log has another size here; go on from there."""

    code = "wrong_offset"


class LogFull(Refusal):
    """The log has reached the size that is kept here; the rest is not kept."""

    code = "log_full"


def append(*, worker_id: int, job_id: UUID, attempt: int, offset: int, data: bytes, cap_bytes: int) -> int:
    """Store `data` at `offset` of this attempt's log and return the log's size in bytes.

    Bytes that are known already change nothing. Only the attempt's holder may append, also after the
    job's end. What fits below the cap is stored; whoever sends more is told that the log is full.
    Raises StaleAttempt, WrongOffset with the `size` to go on from, or LogFull.
    """
    end = offset + len(data)
    fits = data[: max(0, cap_bytes - offset)]
    mine = Job.objects.filter(pk=job_id, attempt=attempt, worker_id=worker_id)
    if attempt > _MOST_ATTEMPTS:
        raise StaleAttempt
    if fits and _extend(worker_id, job_id, attempt, offset, fits, full=end >= cap_bytes):
        return offset + len(fits)
    size = mine.values_list("log_size", flat=True).first()
    if size is None:
        raise StaleAttempt
    if offset <= size and end <= size:
        return size
    if size >= cap_bytes:
        mine.filter(log_full=False).update(log_full=True)  # the cap was higher when its bytes came
        raise LogFull(f"The log has {size} bytes here and may have {cap_bytes}; the rest is not kept.")
    raise WrongOffset(f"The log has {size} bytes here; go on from there.", size=size)


def _extend(worker_id: int, job_id: UUID, attempt: int, offset: int, data: bytes, *, full: bool) -> bool:
    """Grow the log if it ends exactly at `offset`. One statement: two appends of the same bytes cannot both win."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH grown AS (
                UPDATE job SET log_size = %s, log_full = %s, log_trouble = ''
                 WHERE id = %s AND attempt = %s AND worker_id = %s AND log_size = %s RETURNING id
            )
            INSERT INTO log_chunk (job_id, attempt, "offset", data) SELECT id, %s, %s, %s FROM grown
            """,
            [offset + len(data), full, job_id, attempt, worker_id, offset, attempt, offset, data],
        )
        return bool(cursor.rowcount)


def note_troubles(*, worker_id: int, troubles: Sequence[tuple[UUID, int, str]]) -> None:
    """Keep what a machine says of logs that it cannot send on: (job, attempt, why), an empty text when it can again."""
    if not troubles:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE job SET log_trouble = said.trouble
              FROM unnest(%s::uuid[], %s::int[], %s::text[]) AS said (id, attempt, trouble)
             WHERE job.id = said.id AND job.attempt = said.attempt AND worker_id = %s
            """,
            [*map(list, zip(*troubles, strict=True)), worker_id],
        )


def missing(job: Job) -> str:
    """Why what is stored of the newest attempt's log is not all of it, for people; empty when nothing is amiss."""
    told = job.log_final_size
    if told is not None and job.log_size >= told:
        return ""
    if job.log_full:
        return f"The log has reached the size that is kept here, {job.log_size:,} bytes; the rest is not kept."
    if job.log_trouble and job.worker_id is not None:
        part = "The rest of the log" if job.log_size else "The log"
        return f"{part} is not here; its worker host says: {job.log_trouble}"
    if told is None:
        return ""
    part = "the rest of its log" if job.log_size else "its log"
    return f"The job has ended; {part} has not come from the worker host yet."


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


def extent(job: Job, *, attempt: int) -> Extent:
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
    return Extent(size, job.log_full or (told is not None and size >= told))
