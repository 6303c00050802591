"""`manage.py pause_queue`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Count

from jobs_app import operations
from jobs_app.management.queue_command import QueueCommand
from jobs_app.models import Job, Queue
from jobs_app.states import HELD
from workers_app.management.operation_command import Sight, Subject


class Command(QueueCommand):
    operation = operations.PAUSE_QUEUE
    awaited = "until no worker host holds a job of the queue"

    def look(self, subjects: Sequence[Subject]) -> Mapping[Any, Sight]:
        names = [subject.id for subject in subjects]
        paused = set(Queue.objects.filter(pk__in=names, paused=True).values_list("pk", flat=True))
        counted = Job.objects.filter(state__in=HELD, queue__in=names).values_list("queue").annotate(Count("pk"))
        held = dict(counted.order_by())
        return {name: self._sight(held.get(name, 0), paused=name in paused) for name in names}

    @staticmethod
    def _sight(held: int, *, paused: bool) -> Sight:
        if not paused:
            return Sight("it was resumed meanwhile", failed=True)
        return Sight(f"{held} job{'' if held == 1 else 's'} held", there=held == 0)
