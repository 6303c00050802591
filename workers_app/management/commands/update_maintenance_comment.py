"""`manage.py update_maintenance_comment`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import WorkerCommand


class Command(WorkerCommand):
    operation = operations.UPDATE_MAINTENANCE_COMMENT
