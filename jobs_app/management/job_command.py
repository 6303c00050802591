"""Operations on jobs as commands: finds the jobs that are meant; finished ones only when their ids are given."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from jobs_app import listing
from jobs_app.models import Job
from jobs_app.states import FINAL, JobState
from workers_app.management.endings import Refused, unknown
from workers_app.management.operation_command import Chosen, OperationCommand, Subject
from workers_app.models import Worker

OPEN = [state.value for state in JobState if state not in FINAL]
#: Among so many of the newest jobs the nearest id to an unknown one is looked for.
_NEWEST = 1000
_SHOWN = ("kind", "dag_id", "task_id", "map_index", "try_number", "state", "queue")


class JobCommand(OperationCommand):
    one, many = "job", "jobs"
    ways = ("ID ...", "[--dag DAG] [--queue QUEUE] [--worker NAME] [--state STATE]", "--all")

    def add_choices(self, parser: ArgumentParser) -> None:
        parser.add_argument("ids", nargs="*", type=job_id, metavar="ID", help="ids of jobs, as `list_jobs` shows them")
        parser.add_argument("--dag", metavar="DAG", help="open jobs of this DAG; these four narrow each other down")
        parser.add_argument("--queue", metavar="QUEUE", help="open jobs of this queue")
        parser.add_argument("--worker", metavar="NAME", help="jobs that this worker host holds")
        parser.add_argument("--state", choices=OPEN, metavar="STATE", help=f"jobs in this state: {', '.join(OPEN)}")
        parser.add_argument("--all", action="store_true", help="every open job")

    def choose(self, options: Mapping[str, Any]) -> Chosen:
        ids = list(dict.fromkeys(options["ids"]))
        narrowed = any(options[name] is not None for name in ("dag", "queue", "worker", "state"))
        self.one_way(bool(ids), narrowed, options["all"])
        jobs = Job.objects.order_by("queued_at").only(*_SHOWN)
        if ids:
            found = {job.pk: job for job in jobs.filter(pk__in=ids)}
            if missing := [str(pk) for pk in ids if pk not in found]:
                newest = listing.look(listing.Wanted(), size=_NEWEST).jobs
                raise unknown(self.one, missing, [str(job.pk) for job in newest])
            return Chosen([_subject(found[pk]) for pk in ids], in_bulk=False)
        columns = {"dag": "dag_id", "queue": "queue", "state": "state"}
        wanted = {column: options[name] for name, column in columns.items() if options[name] is not None}
        if options["worker"] is not None:
            wanted["worker"] = worker_named(options["worker"])
        subjects = [_subject(job) for job in jobs.filter(state__in=OPEN).filter(**wanted).iterator()]
        if not subjects:
            raise Refused("no open job is like that")
        return Chosen(subjects, in_bulk=True)


def worker_named(name: str) -> Worker:
    """Raises Refused when there is none."""
    worker = Worker.objects.filter(name=name).only("pk").first()
    if worker is None:
        raise unknown("worker host", [name], Worker.objects.values_list("name", flat=True))
    return worker


def _subject(job: Job) -> Subject:
    return Subject(job.pk, str(job), f"{job.state} in queue {job.queue}")


def job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no id of a job") from None
