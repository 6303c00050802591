"""`manage.py cancel_shutdown`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.worker_command import Goal, WorkerCommand
from workers_app.states import Requested, Shown


class Command(WorkerCommand):
    operation = operations.CANCEL_SHUTDOWN
    awaited = "until the worker host takes jobs again"
    goal = Goal(Requested.ACTIVE, frozenset({Shown.IDLE, Shown.RUNNING}))
