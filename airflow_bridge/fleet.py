"""What the fleet's gauges are made of: the statements' text, and what their rows say. Nothing here knows Airflow.

Neither statement grows with what has ended, and a queue's backlog is counted up to MOST_COUNTED only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Waiting jobs of a queue are counted up to here; this number means "so many or more".
MOST_COUNTED = 10_000
#: No living agent is behind these states.
GONE = frozenset({"offline", "offline maintenance", "unknown"})
#: Those that Airflow's own edge worker counts as maintenance.
MAINTENANCE = frozenset({"maintenance mode", "maintenance exit", "offline maintenance"})


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerNow:
    """A worker at this moment."""

    name: str
    #: One of the twelve that people see.
    state: str
    #: None: every queue.
    queues: Sequence[str] | None
    concurrency: int
    #: Held ones, confirmed or not.
    jobs: int
    slots: int
    #: Grows with every heartbeat; None before the first.
    heard_at: float | None
    #: It takes no work although it shall, and says why.
    hindered: bool
    #: What it tells about its machine.
    sysinfo: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class QueueNow:
    """A queue in which jobs wait or are held at this moment."""

    name: str
    #: At most MOST_COUNTED.
    waiting: int
    #: For how long the longest of these has waited; of more than MOST_COUNTED, of those that come first.
    waiting_seconds: float
    held: int


# Queues as `Worker.effective_queues` of the control plane has it.
WORKERS = """
SELECT name, state, coalesce(concurrency_override, concurrency) AS concurrency,
    CASE WHEN queues_override IS NOT NULL THEN queues_override
         WHEN queues IS NULL OR allowed_queues IS NULL THEN coalesce(queues, allowed_queues)
         ELSE ARRAY(SELECT queue FROM unnest(queues) AS queue WHERE queue = ANY(allowed_queues)) END AS queues,
    coalesce(held.jobs, 0) AS jobs, coalesce(held.slots, 0) AS slots,
    extract(epoch FROM last_heartbeat)::float8 AS heard_at,
    coalesce(sysinfo ->> 'not_working', '') <> '' AS hindered,
    CASE WHEN jsonb_typeof(sysinfo) = 'object' THEN sysinfo ELSE '{}' END AS sysinfo
FROM edgecontrol.worker
LEFT JOIN (
    SELECT worker_id, count(*) AS jobs, sum(slots) AS slots FROM edgecontrol.job
    WHERE state IN ('claimed', 'running') GROUP BY worker_id
) AS held ON held.worker_id = worker.id
WHERE worker.team_name = %(team_name)s
ORDER BY name
"""

# named: from one queue with waiting jobs to the next by the index job_claimable, which the count then reads.
QUEUES = """
WITH RECURSIVE named AS (
    (SELECT queue FROM edgecontrol.job WHERE state = 'queued' ORDER BY queue LIMIT 1)
    UNION ALL
    SELECT (SELECT queue FROM edgecontrol.job WHERE state = 'queued' AND queue > named.queue ORDER BY queue LIMIT 1)
    FROM named WHERE named.queue IS NOT NULL
), waiting AS (
    SELECT named.queue, counted.jobs, counted.seconds FROM named, LATERAL (
        SELECT count(*) AS jobs, extract(epoch FROM now() - min(queued_at)) AS seconds FROM (
            SELECT queued_at FROM edgecontrol.job
            WHERE state = 'queued' AND queue = named.queue AND team_name = %(team_name)s
            ORDER BY queue, team_name, slots, priority DESC, queued_at LIMIT %(most)s
        ) AS first
    ) AS counted WHERE counted.jobs > 0
), held AS (
    SELECT queue, count(*) AS jobs FROM edgecontrol.job
    WHERE state IN ('claimed', 'running') AND team_name = %(team_name)s GROUP BY queue
)
SELECT queue AS name, coalesce(waiting.jobs, 0) AS waiting,
    greatest(0, coalesce(waiting.seconds, 0))::float8 AS waiting_seconds, coalesce(held.jobs, 0) AS held
FROM waiting FULL JOIN held USING (queue)
"""
