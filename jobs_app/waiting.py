"""Why waiting jobs wait: what is read for it, and for which queues nobody is there; the words are `waiting_words`'s.

Nothing is changed here, and no claim reads any of it. What is read grows with the fleet and with what it holds, never
with what waits or has ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import F
from django.db.models.fields.json import KT
from django.db.models.functions import Now

from jobs_app.models import Job, Queue
from jobs_app.states import JobState
from jobs_app.waiting_words import Host, Rules, sentence
from workers_app import versions
from workers_app.models import Worker
from workers_app.states import GONE, Shown

#: A queue's waiting jobs are counted up to here; this number means "so many or more".
MOST_COUNTED = 1000


class Unserved(NamedTuple):
    """A queue with waiting jobs that no live worker may take."""

    queue: str
    #: At most MOST_COUNTED, which then means "or more".
    waiting: int
    #: When the longest waiting one was queued; beyond MOST_COUNTED, of those that would be handed out first.
    oldest: datetime


def because(jobs: Iterable[Job]) -> dict[UUID, str]:
    """Say of each of these jobs that waits why it does; the others are left out. Four queries, however many jobs."""
    waiting = [job for job in jobs if job.state == JobState.QUEUED]
    if not waiting:
        return {}
    held_by_worker, held_of_queue = _held()
    hosts = _hosts(held=held_by_worker)
    rules = _rules({job.queue for job in waiting}, held=held_of_queue)
    groups = {(job.queue, job.team_name, job.slots) for job in waiting}
    sentences = {
        group: sentence(queue=group[0], team=group[1], slots=group[2], hosts=hosts, rules=rules.get(group[0]))
        for group in groups
    }
    ran_out = _without_token([job.pk for job in waiting if job.token_until is not None])
    return {
        job.pk: (_RAN_OUT if job.pk in ran_out else sentences[job.queue, job.team_name, job.slots])
        # A hand-out that came to nothing left its reason behind.
        + (f"; earlier: {job.reason}" if job.reason else "")
        for job in waiting
    }


_RAN_OUT = "its token has run out and no scheduler renews it: is Airflow's scheduler running?"


def _without_token(job_ids: Sequence[UUID]) -> set[UUID]:
    """Those of these jobs that cannot be started before Airflow's side has renewed their token."""
    if not job_ids:
        return set()
    return set(Job.objects.filter(pk__in=job_ids, token_until__lte=Now()).values_list("pk", flat=True))


def unserved_queues() -> list[Unserved]:
    """Queues with waiting jobs that no live worker of their team serves, longest waiting first.

    A worker in maintenance does serve its queues; so does one that is full. The cost grows with the
    number of queues in which jobs wait: no backlog is read beyond MOST_COUNTED.
    """
    live = [host for host in _hosts(held={}) if host.state not in GONE]
    with connection.cursor() as cursor:
        cursor.execute(_WAITING_PAIRS)
        pairs = [
            (queue, team)
            for queue, team in cursor.fetchall()
            if not any(host.team == team and host.serves(queue) for host in live)
        ]
        if not pairs:
            return []
        cursor.execute(
            _COUNT, {"queues": [pair[0] for pair in pairs], "teams": [pair[1] for pair in pairs], "most": MOST_COUNTED}
        )
        counts: dict[str, list[tuple[int, datetime]]] = defaultdict(list)
        for queue, waiting, oldest in cursor.fetchall():
            counts[queue].append((waiting, oldest))
    found = [
        Unserved(queue, min(sum(waiting for waiting, _ in teams), MOST_COUNTED), min(oldest for _, oldest in teams))
        for queue, teams in counts.items()
    ]
    return sorted(found, key=lambda unserved: (unserved.oldest, unserved.queue))


# Each pair of queue and team with waiting jobs, by skipping along the index `job_claimable`.
_WAITING_PAIRS = """
WITH RECURSIVE pair AS (
    (SELECT queue, team_name FROM job WHERE state = 'queued' ORDER BY queue, team_name LIMIT 1)
    UNION ALL
    SELECT next.* FROM pair, LATERAL (
        SELECT queue, team_name FROM job
         WHERE state = 'queued' AND (queue, team_name) > (pair.queue, pair.team_name)
         ORDER BY queue, team_name LIMIT 1
    ) AS next
)
SELECT queue, team_name FROM pair
"""

# In the order of the same index, which holds all that is asked for.
_COUNT = """
SELECT pair.queue, counted.jobs, counted.oldest
  FROM unnest(%(queues)s::text[], %(teams)s::text[]) AS pair (queue, team), LATERAL (
    SELECT count(*) AS jobs, min(queued_at) AS oldest FROM (
        SELECT queued_at FROM job
         WHERE state = 'queued' AND queue = pair.queue AND team_name = pair.team
         ORDER BY queue, team_name, slots, priority DESC, queued_at LIMIT %(most)s
    ) AS first
) AS counted
 WHERE counted.jobs > 0
"""


# One pass over the partial index of what is held.
_HELD_SLOTS = """
SELECT worker_id, queue, sum(slots) FROM job WHERE state IN ('claimed', 'running')
 GROUP BY GROUPING SETS ((worker_id), (queue))
"""


def _held() -> tuple[dict[int, int], dict[str, int]]:
    """Slots held per worker and per queue."""
    with connection.cursor() as cursor:
        cursor.execute(_HELD_SLOTS)
        rows = cursor.fetchall()
    by_worker = {worker_id: slots for worker_id, _, slots in rows if worker_id is not None}
    of_queue = {queue: slots for _, queue, slots in rows if queue is not None}
    return by_worker, of_queue


def _hosts(*, held: Mapping[int, int]) -> list[Host]:
    """The whole fleet; who was heard last comes first, so that those who went lately are named before the others."""
    columns = (
        "name",
        "team_name",
        "state",
        "queues",
        "allowed_queues",
        "queues_override",
        "concurrency",
        "concurrency_override",
        "agent_version",
    )
    workers = Worker.objects.only(*columns).annotate(
        not_working=KT("sysinfo__not_working"), not_served=F("sysinfo__not_served")
    )
    return [
        Host(
            name=worker.name,
            team=worker.team_name,
            queues=None if worker.effective_queues is None else frozenset(worker.effective_queues),
            slots=worker.effective_concurrency,
            held=held.get(worker.pk, 0),
            state=Shown(worker.state),
            not_working=worker.not_working or _refusal(worker.agent_version),
            not_served=_reasons(worker.not_served),
        )
        for worker in workers.order_by(F("last_heartbeat").desc(nulls_last=True), "name")
    ]


def _reasons(told: Any) -> dict[str, str]:
    """By queue; an agent may have told anything."""
    return {queue: str(why or "") for queue, why in told.items()} if isinstance(told, dict) else {}


def _refusal(agent_version: str) -> str:
    """Why an agent of this version gets no jobs; empty when it does."""
    told = versions.judge(agent_version, server_version=str(settings.SPECTACULAR_SETTINGS["VERSION"]))
    return told.text if told.verdict is versions.Verdict.REFUSED else ""


def _rules(names: Collection[str], *, held: Mapping[str, int]) -> dict[str, Rules]:
    return {
        queue.name: Rules(
            paused=queue.paused,
            comment=queue.pause_comment,
            limit=queue.concurrency_limit,
            held=held.get(queue.name, 0),
        )
        for queue in Queue.objects.filter(pk__in=names)
    }
