"""How parked polls learn that a job waits again; the bridge sends the same notification when it queues."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from django.db import connection

#: Payload {"queue", "team", "slots", "count"}. Bound to the database, not to a schema.
JOBS_CHANNEL = "edgecontrol_jobs"


def announce(jobs: Iterable[tuple[str, str, int]]) -> None:
    """Wake as many polls as there are jobs, given as (queue, team, slots); delivered when the transaction commits."""
    payloads = [
        json.dumps({"queue": queue, "team": team, "slots": slots, "count": count})
        for (queue, team, slots), count in Counter(jobs).items()
    ]
    if payloads:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload", [JOBS_CHANNEL, payloads])


def announce_queues(names: Iterable[str]) -> None:
    """Wake every poll of these queues: what they hand out has changed."""
    # One each: a payload has at most 8,000 bytes.
    payloads = [json.dumps({"queues": [name]}) for name in sorted(names)]
    if payloads:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload", [JOBS_CHANNEL, payloads])
