"""`manage.py set_worker_concurrency`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import WorkerCommand


class Command(WorkerCommand):
    operation = operations.SET_WORKER_CONCURRENCY
