"""How much waits and runs in each queue, and who serves it: numbers for people. Nothing is changed here.

The cost grows with the number of queues, of slot sizes and priorities that wait, and with the fleet;
never with the length of a backlog or with what has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import connection
from django.db.models import Count, Sum

from jobs_app.models import Job
from jobs_app.states import HELD
from workers_app.models import Worker
from workers_app.states import GONE, LEAVING, Requested

#: Waiting jobs are counted up to here; this number means "so many or more".
MOST_COUNTED = 10_000

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
    held = {queue: (jobs, slots) for queue, jobs, slots in rows.annotate(jobs=Count("pk"), sum=Sum("slots"))}
    serving, taking = _served()
    figures = {}
    for name in names:
        oldest, waits = waiting.get(name, (None, 0))
        jobs, slots = held.get(name, (0, 0))
        figures[name] = Figures(
            waiting=waits,
            oldest=oldest,
            held=jobs,
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
