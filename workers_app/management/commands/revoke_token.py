"""`manage.py revoke_token`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import WorkerCommand


class Command(WorkerCommand):
    operation = operations.REVOKE_TOKEN
