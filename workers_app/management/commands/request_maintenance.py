"""`manage.py request_maintenance`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import Goal, WorkerCommand
from workers_app.states import Requested, Shown


class Command(WorkerCommand):
    operation = operations.REQUEST_MAINTENANCE
    awaited = "until the worker host is in maintenance mode, without jobs, or offline"
    goal = Goal(Requested.MAINTENANCE, frozenset({Shown.MAINTENANCE_MODE, Shown.OFFLINE_MAINTENANCE, Shown.OFFLINE}))
