"""Which waiting jobs a worker gets: one statement whose cost grows neither with finished nor with other waiting jobs.

The natural query (one sorted scan over all of a worker's queues) costs 155-1,100 ms beside a backlog
of 200,000. Here each pair of queue and slot size is one probe of the partial index `job_claimable`;
candidates come first and locks after, so that concurrent claims lock only what they take.
"""

from __future__ import annotations

import time
from uuid import UUID

from django.db import connection

from workers_app.models import Worker

#: How many candidates beyond the free slots are looked at, since others may be locking the first ones.
SLACK = 64
#: How often to look again when every candidate was being taken by somebody else.
LOOKS = 10
_PAUSE_SECONDS = 0.01

# room: what the worker may still take by the server's own count, whatever the request says.
# sizes: the distinct slot sizes waiting in each queue, by skipping along the index.
# candidates: the best of all probes, so that a worker of many queues reads no more rows than one of few.
# locked: by primary key and nothing else. The ids are an array and `state` is spelled so that it fits no partial
#         index: the planner cannot know how few they are, and would scan all that is queued (seen: 75-150 ms
#         beside 200,000 jobs, with statistics from before as from after the burst).
# fit: as many as fit in order; a later, smaller job is left to the next claim.
_PICK = """
WITH RECURSIVE
room AS (
    SELECT least(%(free)s, %(concurrency)s - coalesce(sum(slots), 0))::int AS slots
      FROM job WHERE worker_id = %(worker)s AND state IN ('claimed', 'running')
),
served AS (
    SELECT queue.name FROM queue
     WHERE NOT queue.paused AND (%(queues)s::text[] IS NULL OR queue.name = ANY (%(queues)s::text[]))
),
sizes AS (
    SELECT served.name, first.slots FROM served, LATERAL (
        SELECT job.slots FROM job
         WHERE state = 'queued' AND queue = served.name AND team_name = %(team)s
         ORDER BY job.slots LIMIT 1
    ) AS first
    UNION ALL
    SELECT sizes.name, next.slots FROM sizes, LATERAL (
        SELECT job.slots FROM job
         WHERE state = 'queued' AND queue = sizes.name AND team_name = %(team)s AND job.slots > sizes.slots
         ORDER BY job.slots LIMIT 1
    ) AS next WHERE sizes.slots < (SELECT slots FROM room)
),
candidates AS (
    SELECT waiting.* FROM sizes, LATERAL (
        SELECT job.id, job.slots, job.priority, job.queued_at FROM job
         WHERE state = 'queued' AND queue = sizes.name AND team_name = %(team)s AND job.slots = sizes.slots
         ORDER BY job.priority DESC, job.queued_at, job.id LIMIT (SELECT slots FROM room) + %(slack)s
    ) AS waiting
    WHERE sizes.slots <= (SELECT slots FROM room)
    ORDER BY waiting.priority DESC, waiting.queued_at, waiting.id
    LIMIT (SELECT greatest(slots, 0) FROM room) + %(slack)s
),
locked AS (
    SELECT job.id, job.slots, job.priority, job.queued_at FROM job
     WHERE job.id = ANY (ARRAY(SELECT id FROM candidates)) AND coalesce(job.state, '') = 'queued'
     ORDER BY job.priority DESC, job.queued_at, job.id LIMIT (SELECT greatest(slots, 0) FROM room)
       FOR NO KEY UPDATE SKIP LOCKED
),
fit AS (
    SELECT id, sum(slots) OVER (ORDER BY priority DESC, queued_at, id) AS slots_so_far FROM locked
)
SELECT (SELECT count(*) FROM candidates) AS seen,
       ARRAY(SELECT id FROM fit WHERE slots_so_far <= (SELECT slots FROM room)) AS picked
"""


def pick(*, worker: Worker, free_slots: int) -> list[UUID]:
    """Lock the best waiting jobs that fit into this worker and return their ids.

    Runs in the caller's transaction, which holds the lock of the worker's row: so its own
    claims come one after the other, and the sum of its slots cannot change meanwhile.
    """
    parameters = {
        "worker": worker.pk,
        "free": free_slots,
        "concurrency": worker.effective_concurrency,
        "queues": worker.effective_queues,
        "team": worker.team_name,
        "slack": SLACK,
    }
    for look in range(LOOKS):
        with connection.cursor() as cursor:
            cursor.execute(_PICK, parameters)
            seen, picked = cursor.fetchone()
        if picked or not seen:
            break
        # Claims that are about to commit hold all candidates; other jobs may wait behind these.
        time.sleep(_PAUSE_SECONDS * (look + 1))
    return list(picked)
