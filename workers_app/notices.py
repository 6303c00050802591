"""How a change of a worker reaches its parked poll: a revision that grows, and a notification that says so."""

from __future__ import annotations

import json
from collections.abc import Iterable

from django.db import connection, models

from workers_app.models import Worker

#: Payload {"worker": id}. Bound to the database, not to a schema.
WORKER_CHANNEL = "edgecontrol_worker"


def announce(workers: Iterable[int]) -> None:
    """Make these workers' agents send a heartbeat at once, which brings them their new orders.

    Level-triggered: an agent whose poll is not parked just now sees the newer revision at its next claim.
    """
    ids = sorted(set(workers))
    if not ids:
        return
    Worker.objects.filter(id__in=ids).update(revision=models.F("revision") + 1)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) AS payload",
            [WORKER_CHANNEL, [json.dumps({"worker": worker}) for worker in ids]],
        )
