"""`manage.py set_queue_concurrency`."""

from __future__ import annotations

from jobs_app import operations
from jobs_app.management.queue_command import QueueCommand


class Command(QueueCommand):
    operation = operations.SET_QUEUE_CONCURRENCY
