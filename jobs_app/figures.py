"""How much waits and runs in each queue, and who serves it: numbers for people. Nothing is changed here.

The cost grows with the number of queues, of slot sizes and priorities that wait, and with the fleet;
never with the length of a backlog, nor with what has ended beyond MOST_ENDED jobs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import Count, Q, Sum

from jobs_app.models import Job
from jobs_app.states import FINAL, HELD, JobState
from workers_app.models import Worker
from workers_app.states import GONE, LEAVING, Requested

#: Waiting jobs are counted up to here; this number means "so many or more".
MOST_COUNTED = 10_000
#: Of the last hour's ended jobs so many of the newest are counted; with more, an hour is estimated from these.
MOST_ENDED = 10_000
_HOUR_SECONDS = 3600

# size: each queue, team and slot size with waiting jobs, by skipping along the index `job_claimable`.
# front: the longest waiting job of each of these and each priority, likewise; so the oldest of all is among them.
_WAITING = """
WITH RECURSIVE size AS (
    (SELECT queue, team_name, slots FROM job WHERE state = 'queued' ORDER BY queue, team_name, slots LIMIT 1)
    UNION ALL
    SELECT next.* FROM size, LATERAL (
        SELECT queue, team_name, slots FROM job
         WHERE state = 'queued' AND (queue, team_name, slots) > (size.queue, size.team_name, size.slots)
         ORDER BY queue, team_name, slots LIMIT 1
    ) AS next
),
front AS (
    SELECT size.*, first.* FROM size, LATERAL (
        SELECT priority, queued_at FROM job
         WHERE state = 'queued' AND queue = size.queue AND team_name = size.team_name AND slots = size.slots
         ORDER BY priority DESC, queued_at LIMIT 1
    ) AS first
    UNION ALL
    SELECT front.queue, front.team_name, front.slots, next.* FROM front, LATERAL (
        SELECT priority, queued_at FROM job
         WHERE state = 'queued' AND queue = front.queue AND team_name = front.team_name AND slots = front.slots
           AND priority < front.priority
         ORDER BY priority DESC, queued_at LIMIT 1
    ) AS next
),
oldest AS (SELECT queue, min(queued_at) AS queued_at FROM front WHERE queue = ANY (%(names)s) GROUP BY queue)
SELECT oldest.queue, oldest.queued_at, counted.jobs FROM oldest, LATERAL (
    SELECT count(*) AS jobs FROM (
        SELECT FROM job WHERE state = 'queued' AND queue = oldest.queue ORDER BY queue, team_name LIMIT %(most)s
    ) AS waiting
) AS counted
"""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A queue at this moment."""

    #: At most MOST_COUNTED.
    waiting: int = 0
    #: When the longest waiting job was queued.
    oldest: datetime | None = None
    #: On workers, confirmed or not.
    held: int = 0
    #: Of these, those that are confirmed.
    running: int = 0
    held_slots: int = 0
    #: Workers that serve it and are there, in maintenance or not; and those of them that take jobs now.
    workers: int = 0
    taking: int = 0


def of_queues(names: Sequence[str]) -> dict[str, Figures]:
    """Three queries, however many queues."""
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, {"names": list(names), "most": MOST_COUNTED})
        waiting = {queue: (oldest, jobs) for queue, oldest, jobs in cursor.fetchall()}
    rows = Job.objects.filter(state__in=sorted(HELD), queue__in=names).order_by().values_list("queue")
    running = Count("pk", filter=Q(state=JobState.RUNNING))
    held = {queue: counts for queue, *counts in rows.annotate(jobs=Count("pk"), running=running, sum=Sum("slots"))}
    serving, taking = _served()
    figures = {}
    for name in names:
        oldest, waits = waiting.get(name, (None, 0))
        jobs, confirmed, slots = held.get(name, (0, 0, 0))
        figures[name] = Figures(
            waiting=waits,
            oldest=oldest,
            held=jobs,
            running=confirmed,
            held_slots=slots,
            workers=serving[None] + serving[name],
            taking=taking[None] + taking[name],
        )
    return figures


def _served() -> tuple[Counter[str | None], Counter[str | None]]:
    """How many workers are there for each queue, and how many of them take jobs; None: those that serve every one."""
    serving: Counter[str | None] = Counter()
    taking: Counter[str | None] = Counter()
    columns = ("queues", "allowed_queues", "queues_override", "requested", "reported")
    for worker in Worker.objects.exclude(state__in=sorted(GONE)).only(*columns):
        queues: list[str | None] = [None] if worker.effective_queues is None else [*worker.effective_queues]
        serving.update(set(queues))
        if worker.requested == Requested.ACTIVE and worker.reported not in LEAVING:
            taking.update(set(queues))
    return serving, taking


# From one name to the next by the index `job_claimable`.
_WAITING_QUEUES = """
WITH RECURSIVE named AS (
    (SELECT queue FROM job WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM job WHERE state = 'queued' AND queue > named.queue ORDER BY queue LIMIT 1)
      FROM named WHERE named.queue IS NOT NULL
)
SELECT queue FROM named WHERE queue IS NOT NULL
"""


def with_waiting_jobs() -> list[str]:
    """The names of queues in which jobs wait."""
    with connection.cursor() as cursor:
        cursor.execute(_WAITING_QUEUES)
        return [name for (name,) in cursor.fetchall()]


# size: as above, of one queue. The first of each size are found by the index; only these few are sorted.
_FIRST = """
WITH RECURSIVE size AS (
    (SELECT team_name, slots FROM job
      WHERE state = 'queued' AND queue = %(queue)s ORDER BY queue, team_name, slots LIMIT 1)
    UNION ALL
    SELECT next.* FROM size, LATERAL (
        SELECT team_name, slots FROM job
         WHERE state = 'queued' AND queue = %(queue)s AND (team_name, slots) > (size.team_name, size.slots)
         ORDER BY queue, team_name, slots LIMIT 1
    ) AS next
)
SELECT first.id FROM size, LATERAL (
    SELECT id, priority, queued_at FROM job
     WHERE state = 'queued' AND queue = %(queue)s AND team_name = size.team_name AND slots = size.slots
     ORDER BY priority DESC, queued_at, id LIMIT %(most)s
) AS first ORDER BY first.priority DESC, first.queued_at, first.id LIMIT %(most)s
"""


def first_waiting(queue: str, *, most: int) -> list[UUID]:
    """The waiting jobs of a queue that come first, in the order in which they are handed out."""
    with connection.cursor() as cursor:
        cursor.execute(_FIRST, {"queue": queue, "most": most})
        return [job_id for (job_id,) in cursor.fetchall()]


class Ended(NamedTuple):
    """Jobs that came to an end in the last hour; what was revoked or refused is no work done."""

    jobs: int = 0
    #: Of these, those that failed or were lost.
    went_wrong: int = 0
    #: From the newest of them, as there were more than are counted.
    estimated: bool = False


# All final states, as the index job_finished has it.
_ENDED = """
WITH newest AS MATERIALIZED (
    SELECT queue, state, finished_at FROM job
     WHERE state = ANY (%(final)s) AND finished_at >= now() - %(seconds)s * interval '1 second'
     ORDER BY finished_at DESC LIMIT %(most)s
)
SELECT queue, count(*), count(*) FILTER (WHERE state IN ('success', 'failed', 'lost')),
       count(*) FILTER (WHERE state IN ('failed', 'lost')), extract(epoch FROM now() - min(finished_at))::float
  FROM newest GROUP BY queue
"""


def ended_in_the_last_hour() -> defaultdict[str, Ended]:
    """By the name of the queue; one query, which reads MOST_ENDED jobs at most."""
    with connection.cursor() as cursor:
        cursor.execute(_ENDED, {"final": sorted(FINAL), "seconds": _HOUR_SECONDS, "most": MOST_ENDED})
        rows = cursor.fetchall()
    estimated = sum(read for _, read, *_ in rows) >= MOST_ENDED
    # What is read then stands for this much of the hour.
    factor = _HOUR_SECONDS / max(1.0, *(age for *_, age in rows)) if estimated else 1
    ended: defaultdict[str, Ended] = defaultdict(lambda: Ended(estimated=estimated))
    for queue, _, jobs, went_wrong, _ in rows:
        ended[queue] = Ended(jobs=round(jobs * factor), went_wrong=round(went_wrong * factor), estimated=estimated)
    return ended
