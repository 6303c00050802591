"""How a change of a worker reaches its parked poll: a revision that grows, and a notification that says so."""

from __future__ import annotations

import json
from collections.abc import Iterable

from django.db import connection

#: Payload {"worker": id}. Bound to the database, not to a schema.
WORKER_CHANNEL = "edgecontrol_worker"

# In the order of the ids, as `wishes` locks them: changes of many workers wait for each other in one direction only.
_ADVANCE = """
WITH locked AS MATERIALIZED (SELECT id FROM worker WHERE id = ANY (%s) ORDER BY id FOR NO KEY UPDATE)
UPDATE worker SET revision = revision + 1 WHERE id = ANY (ARRAY(SELECT id FROM locked))
"""


def announce(workers: Iterable[int]) -> None:
    """Make these workers' agents send a heartbeat at once, which brings them their new orders.

    Level-triggered: an agent whose poll is not parked just now sees the newer revision at its next claim.
    """
    ids = sorted(set(workers))
    if not ids:
        return
    with connection.cursor() as cursor:
        cursor.execute(_ADVANCE, [ids])
        cursor.execute(
            "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload",
            [WORKER_CHANNEL, [json.dumps({"worker": worker}) for worker in ids]],
        )
