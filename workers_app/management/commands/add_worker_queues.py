"""`manage.py add_worker_queues`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import WorkerCommand


class Command(WorkerCommand):
    operation = operations.ADD_WORKER_QUEUES
