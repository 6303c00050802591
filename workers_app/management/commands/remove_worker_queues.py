"""`manage.py remove_worker_queues`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import WorkerCommand


class Command(WorkerCommand):
    operation = operations.REMOVE_WORKER_QUEUES
