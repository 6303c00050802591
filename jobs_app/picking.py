"""Which waiting jobs a worker gets: one statement whose cost grows neither with finished nor with other waiting jobs.

The natural query (one sorted scan over all of a worker's queues) costs 155-1,100 ms beside a backlog
of 200,000. Here each pair of queue and slot size is one probe of the partial index `job_claimable`;
candidates come first and locks after, so that concurrent claims lock only what they take. Only where jobs
wait in a queue with a limit that lets one more in, claims of that queue come one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError, connection, transaction
from psycopg.errors import LockNotAvailable

from workers_app.models import Worker

#: How many candidates beyond the free slots are looked at, since others may be locking the first ones.
SLACK = 64
#: The same for a queue whose row this claim has locked: no other claim takes its jobs, but one may be being revoked.
SPARE = 8
#: How many waiting jobs of one queue and size are read at most, while no scheduler lives that renews their tokens.
DEPTH = 1000
#: How often to look again when every candidate was being taken by somebody else.
LOOKS = 10
_PAUSE_SECONDS = 0.01
#: How long other claims of a limited queue are waited for. Who holds its row for longer stops that queue, no worker.
_QUEUE_WAIT_MS = 1000

# room: what the worker may still take by the server's own count, whatever the request says.
# sizes: the distinct slot sizes waiting in each queue, by skipping along the index.
_WAITING = """
WITH RECURSIVE
room AS (
    SELECT least(%(free)s, %(concurrency)s - coalesce(sum(slots), 0))::int AS slots
      FROM job WHERE worker_id = %(worker)s AND state IN ('claimed', 'running')
),
served AS (
    SELECT queue.name, queue.concurrency_limit FROM queue
     WHERE NOT queue.paused AND (%(queues)s::text[] IS NULL OR queue.name = ANY (%(queues)s::text[]))
       AND NOT queue.name = ANY (%(without)s::text[])
),
sizes AS (
    SELECT served.name, served.concurrency_limit, first.slots FROM served, LATERAL (
        SELECT job.slots FROM job
         WHERE state = 'queued' AND queue = served.name AND team_name = %(team)s
         ORDER BY job.slots LIMIT 1
    ) AS first
    UNION ALL
    SELECT sizes.name, sizes.concurrency_limit, next.slots FROM sizes, LATERAL (
        SELECT job.slots FROM job
         WHERE state = 'queued' AND queue = sizes.name AND team_name = %(team)s AND job.slots > sizes.slots
         ORDER BY job.slots LIMIT 1
    ) AS next WHERE sizes.slots < (SELECT slots FROM room)
),
"""

# limited: queues with a limit and a job that this worker could take. With any of them nothing is locked here: what is
#          handed out depends on what they still let in, which only _PICK_WITHIN_LIMITS may read.
# candidates: the best of all probes, so that a worker of many queues reads no more rows than one of few. A job whose
#             token has run out cannot be started, and every start that fails brakes its machine.
# locked: by primary key and nothing else. The ids are an array and `state` is spelled so that it fits no partial
#         index: the planner cannot know how few they are, and would scan all that is queued (seen: 75-150 ms
#         beside 200,000 jobs, with statistics from before as from after the burst).
# fit: as many as fit in order; a later, smaller job is left to the next claim.
_FROM_UNLIMITED = """
limited AS (
    SELECT name FROM sizes WHERE slots <= least((SELECT slots FROM room), concurrency_limit)
       AND concurrency_limit IS NOT NULL
),
candidates AS (
    SELECT waiting.* FROM sizes, LATERAL (
        SELECT first.id, first.slots, first.priority, first.queued_at FROM (
            SELECT job.id, job.slots, job.priority, job.queued_at, job.token_until FROM job
             WHERE state = 'queued' AND queue = sizes.name AND team_name = %(team)s AND job.slots = sizes.slots
             ORDER BY job.priority DESC, job.queued_at, job.id LIMIT %(depth)s
        ) AS first
         WHERE coalesce(first.token_until > now(), true)
         ORDER BY first.priority DESC, first.queued_at, first.id LIMIT (SELECT slots FROM room) + %(slack)s
    ) AS waiting
    WHERE sizes.slots <= (SELECT slots FROM room) AND concurrency_limit IS NULL AND NOT EXISTS (SELECT FROM limited)
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
       ARRAY(SELECT id FROM fit WHERE slots_so_far <= (SELECT slots FROM room)) AS picked,
       ARRAY(SELECT DISTINCT name FROM limited) AS limited
"""
_PICK = _WAITING + _FROM_UNLIMITED

# A queue that is seen to be full is left alone, as if this claim had come that much earlier: then nobody waits for it.
_WITH_ROOM = """
SELECT name FROM queue
 WHERE name = ANY (%(names)s) AND concurrency_limit > (
        SELECT coalesce(sum(slots), 0) FROM job WHERE job.queue = queue.name AND state IN ('claimed', 'running'))
"""
# In the order of the names, so that two claims of the same queues wait for each other in one direction only.
_LOCK_QUEUES = "SELECT FROM queue WHERE name = ANY (%(names)s) ORDER BY name FOR NO KEY UPDATE"

# Begins after the queues' rows were locked, and so sees every job that an earlier claim has taken from them.
# lines: each locked queue with what it lets in, and all queues without a limit as one line (NULL). Each line has its
#        own candidates and locks, so that one line's backlog takes no place of another's; an unlocked limited queue
#        is in none.
# allowed: what does not fit into its queue neither blocks nor counts for what other queues have.
_FROM_LINES = """
lines AS (
    SELECT NULL AS queue, greatest(slots, 0) AS room, %(slack)s AS spare FROM room
    UNION ALL
    SELECT served.name, greatest(least((SELECT slots FROM room), concurrency_limit - (
            SELECT coalesce(sum(slots), 0) FROM job WHERE job.queue = served.name AND state IN ('claimed', 'running')
           )), 0)::int, %(spare)s
      FROM served WHERE concurrency_limit IS NOT NULL AND name = ANY (%(locked)s)
),
candidates AS (
    SELECT lines.queue, lines.room, best.id FROM lines, LATERAL (
        SELECT waiting.* FROM sizes, LATERAL (
            SELECT first.id, first.priority, first.queued_at FROM (
                SELECT job.id, job.priority, job.queued_at, job.token_until FROM job
                 WHERE state = 'queued' AND queue = sizes.name AND team_name = %(team)s AND job.slots = sizes.slots
                 ORDER BY job.priority DESC, job.queued_at, job.id LIMIT %(depth)s
            ) AS first
             WHERE coalesce(first.token_until > now(), true)
             ORDER BY first.priority DESC, first.queued_at, first.id LIMIT lines.room + lines.spare
        ) AS waiting
        WHERE sizes.slots <= lines.room
          AND CASE WHEN concurrency_limit IS NOT NULL THEN name END IS NOT DISTINCT FROM lines.queue
        ORDER BY waiting.priority DESC, waiting.queued_at, waiting.id LIMIT lines.room + lines.spare
    ) AS best
),
locked AS (
    SELECT chosen.queue, chosen.room, mine.* FROM (
        SELECT queue, room, array_agg(id) AS ids FROM candidates GROUP BY queue, room
    ) AS chosen, LATERAL (
        SELECT job.id, job.slots, job.priority, job.queued_at FROM job
         WHERE job.id = ANY (chosen.ids) AND coalesce(job.state, '') = 'queued'
         ORDER BY job.priority DESC, job.queued_at, job.id LIMIT chosen.room
           FOR NO KEY UPDATE SKIP LOCKED
    ) AS mine
),
allowed AS (
    SELECT *, sum(slots) OVER (PARTITION BY queue ORDER BY priority DESC, queued_at, id) AS slots_of_line FROM locked
),
fit AS (
    SELECT id, sum(slots) OVER (ORDER BY priority DESC, queued_at, id) AS slots_so_far
      FROM allowed WHERE slots_of_line <= room
)
SELECT (SELECT count(*) FROM candidates) AS seen,
       ARRAY(SELECT id FROM fit WHERE slots_so_far <= (SELECT slots FROM room)) AS picked
"""
_PICK_WITHIN_LIMITS = _WAITING + _FROM_LINES


class Able(NamedTuple):
    """What an agent can run at the moment of the queues that its worker serves: some may lack what their tasks need."""

    #: None: all but `without`.
    only: Sequence[str] | None = None
    without: Sequence[str] = ()

    def runs(self, queue: str) -> bool:
        return (self.only is None or queue in self.only) and queue not in self.without


ALL = Able()


def pick(*, worker: Worker, free_slots: int, able: Able = ALL) -> list[UUID]:
    """Lock the best waiting jobs that fit into this worker and their queues' limits, and return their ids.

    Runs in the caller's transaction, which holds the lock of the worker's row: so its own
    claims come one after the other, and the sum of its slots cannot change meanwhile.
    """
    parameters = _parameters(worker=worker, free_slots=free_slots, able=able)
    locked: list[str] | None = None
    for look in range(LOOKS):
        if locked is None:
            seen, picked, limited = _one_row(_PICK, parameters)
            if limited:
                # Once only: a second time might not be in the order of the names.
                locked = _lock_those_with_room(limited)
        if locked is not None:
            seen, picked = _one_row(_PICK_WITHIN_LIMITS, parameters | {"locked": locked})
        if picked or not seen:
            break
        # Claims that are about to commit hold all candidates; other jobs may wait behind these.
        time.sleep(_PAUSE_SECONDS * (look + 1))
    return list(picked)


def _parameters(*, worker: Worker, free_slots: int, able: Able = ALL) -> dict[str, Any]:
    queues = worker.effective_queues
    if able.only is not None:
        queues = [queue for queue in able.only if queues is None or queue in queues]
    return {
        "worker": worker.pk,
        "free": free_slots,
        "concurrency": worker.effective_concurrency,
        "queues": queues,
        "without": list(able.without),
        "team": worker.team_name,
        "slack": SLACK,
        "spare": SPARE,
        "depth": DEPTH,
    }


def _lock_those_with_room(names: Sequence[str]) -> list[str]:
    """Keep other claims off those of these limited queues that have room, until this transaction ends; return them.

    None when somebody holds one of their rows for longer than claims do: the worker gets other jobs meanwhile.
    """
    with connection.cursor() as cursor:
        cursor.execute(_WITH_ROOM, {"names": list(names)})
        with_room = [name for (name,) in cursor.fetchall()]
        if not with_room:
            return []
        try:
            with transaction.atomic():
                cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{_QUEUE_WAIT_MS}ms"])
                cursor.execute(_LOCK_QUEUES, {"names": with_room})
        except OperationalError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            return []
    return with_room


def _one_row(statement: str, parameters: Mapping[str, Any]) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        row: tuple[Any, ...] = cursor.fetchone()
    return row
