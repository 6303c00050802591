"""Operations on queues as commands: finds the queues that are meant, and sees what of them is still held."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from jobs_app.models import Queue
from workers_app import selection
from workers_app.management.endings import Refused, unknown
from workers_app.management.operation_command import Chosen, OperationCommand, Subject, pattern


class QueueCommand(OperationCommand):
    one, many = "queue", "queues"
    ways = ("NAME ...", "--pattern GLOB", "--all")

    def add_choices(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="names of queues")
        parser.add_argument("--pattern", type=pattern, metavar="GLOB", help="those with such a name, as 'press-*'")
        parser.add_argument("--all", action="store_true", help="every queue")

    def choose(self, options: Mapping[str, Any]) -> Chosen:
        # As the admin does: a queue that workers serve exists before its first job.
        Queue.objects.remember_served()
        names, glob = list(dict.fromkeys(options["names"])), options["pattern"]
        self.one_way(bool(names), glob is not None, options["all"])
        queues = Queue.objects.order_by("name")
        if names:
            found = {queue.name: queue for queue in queues.filter(name__in=names)}
            if missing := [name for name in names if name not in found]:
                raise unknown(self.one, missing, queues.values_list("name", flat=True))
            return Chosen([_subject(found[name]) for name in names], in_bulk=False)
        if glob is not None:
            queues = queues.filter(selection.like(glob))
        subjects = [_subject(queue) for queue in queues]
        if not subjects:
            raise Refused(f"no queue {'exists' if glob is None else f'has a name like {glob!r}'}")
        return Chosen(subjects, in_bulk=True)


def _subject(queue: Queue) -> Subject:
    limit = "" if queue.concurrency_limit is None else f"at most {queue.concurrency_limit} slots"
    return Subject(queue.pk, queue.name, ", ".join(filter(None, ["paused" if queue.paused else "", limit])))
