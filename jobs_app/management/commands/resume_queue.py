"""`manage.py resume_queue`."""

from __future__ import annotations

from jobs_app import operations
from jobs_app.management.queue_command import QueueCommand


class Command(QueueCommand):
    operation = operations.RESUME_QUEUE
