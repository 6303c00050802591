"""Operations on workers as commands: finds the workers that are meant, and sees whether they have come to it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from workers_app import selection
from workers_app.management.endings import Refused, unknown
from workers_app.management.operation_command import Chosen, OperationCommand, Sight, Subject, pattern
from workers_app.models import Worker
from workers_app.states import GONE, Requested, Shown


@dataclass(frozen=True)
class Goal:
    """What --wait waits for: one of these states, while nobody wishes anything else."""

    wish: Requested
    states: frozenset[Shown]


class WorkerCommand(OperationCommand):
    one, many = "worker host", "worker hosts"
    ways = ("NAME ...", "--pattern GLOB", "--queue QUEUE", "--all")
    goal: Goal | None = None

    def add_choices(self, parser: ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="names of worker hosts")
        parser.add_argument("--pattern", type=pattern, metavar="GLOB", help="those with such a name, as 'press-*'")
        parser.add_argument("--queue", metavar="QUEUE", help="those that serve this queue")
        parser.add_argument("--all", action="store_true", help="every worker host")

    def choose(self, options: Mapping[str, Any]) -> Chosen:
        names, glob, queue = list(dict.fromkeys(options["names"])), options["pattern"], options["queue"]
        self.one_way(bool(names), glob is not None, queue is not None, options["all"])
        #: Whose process was asked, so that its end is seen even if it is started again.
        self.sessions: dict[int, UUID | None] = {}
        workers = Worker.objects.order_by("name").only("name", "state", "session")
        if names:
            found = {worker.name: worker for worker in workers.filter(name__in=names)}
            if missing := [name for name in names if name not in found]:
                raise unknown(self.one, missing, Worker.objects.values_list("name", flat=True))
            return Chosen([self._subject(found[name]) for name in names], in_bulk=False)
        if glob is not None:
            workers, why = workers.filter(selection.like(glob)), f"has a name like {glob!r}"
        elif queue is not None:
            workers, why = workers.filter(selection.serving(queue)), f"serves the queue {queue!r}"
        else:
            why = "exists"
        subjects = [self._subject(worker) for worker in workers]
        if not subjects:
            raise Refused(f"no {self.one} {why}")
        return Chosen(subjects, in_bulk=True)

    def _subject(self, worker: Worker) -> Subject:
        self.sessions[worker.pk] = worker.session
        taking = self.goal is not None and self.goal.wish == Requested.ACTIVE
        return Subject(worker.pk, worker.name, worker.state, away=taking and worker.state in GONE)

    def look(self, subjects: Sequence[Subject]) -> Mapping[Any, Sight]:
        columns = ("state", "requested", "requested_by", "requested_by_kind", "jobs_active", "session")
        workers = Worker.objects.only(*columns).in_bulk([subject.id for subject in subjects])
        return {subject.id: self.sight(subject.id, workers.get(subject.id)) for subject in subjects}

    def sight(self, pk: int, worker: Worker | None) -> Sight:
        assert self.goal is not None  # noqa: S101 - a command that waits has one
        if worker is None:
            return Sight("removed", failed=True)
        if worker.requested != self.goal.wish:
            by = f" by {worker.wished_by}" if worker.wished_by else ""
            return Sight(f"{worker.state}: {worker.requested} was asked for meanwhile{by}", failed=True)
        jobs = {0: "", 1: ", 1 job"}.get(worker.jobs_active, f", {worker.jobs_active} jobs")
        return Sight(f"{worker.state}{jobs}", there=worker.state in self.goal.states)
