"""`manage.py shutdown_worker`."""

from __future__ import annotations

from workers_app import operations
from workers_app.management.operation_command import Sight
from workers_app.management.worker_command import Goal, WorkerCommand
from workers_app.models import Worker
from workers_app.states import Requested, Shown


class Command(WorkerCommand):
    operation = operations.SHUTDOWN_WORKER
    awaited = "until the worker host is offline"
    goal = Goal(Requested.SHUTDOWN, frozenset({Shown.OFFLINE, Shown.OFFLINE_MAINTENANCE}))

    def sight(self, pk: int, worker: Worker | None) -> Sight:
        if worker is None:
            return Sight("removed", there=True)
        if worker.session != self.sessions[pk]:
            return Sight("has ended, and was started again", there=True)
        return super().sight(pk, worker)
