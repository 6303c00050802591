"""`manage.py list_jobs`: the newest jobs as a table or as JSON, and why those that wait do; nothing is changed."""

from __future__ import annotations

import json
import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from django.utils import timezone

from jobs_app import listing, waiting
from jobs_app.management.job_command import worker_named
from jobs_app.models import Job
from jobs_app.states import JobState
from workers_app.management import tables
from workers_app.management.fleet_command import FleetCommand, plain
from workers_app.management.tables import Cell, Column, Painted

COLUMNS = (
    Column("ID", whole=True),
    Column("STATE", whole=True),
    Column("JOB"),
    Column("QUEUE"),
    Column("WORKER"),
    Column("SINCE", whole=True),
    Column("RUN", optional=True),
    Column("WHY"),
)
MOST = 10_000
#: As the operator API calls them.
_FIELDS = (
    "id",
    "kind",
    "dag_id",
    "task_id",
    "run_id",
    "map_index",
    "try_number",
    "airflow_id",
    "queue",
    "slots",
    "priority",
    "state",
    "attempt",
    "queued_at",
    "claimed_at",
    "started_at",
    "finished_at",
    "exit_code",
    "airflow_outcome",
    "reason",
    "unconfirmed_claims",
    "missed_heartbeats",
    "log_path",
    "log_size",
    "log_final_size",
    "log_sha256",
    "told_at",
)


class Command(FleetCommand):
    help = "Lists jobs, newest first: their state, queue and worker host, and why they wait or ended."

    def add_arguments(self, parser: ArgumentParser) -> None:
        states = [state.value for state in JobState]
        parser.add_argument(
            "--state",
            choices=states,
            action="append",
            default=[],
            metavar="STATE",
            help=f"only those in this state, one of {', '.join(states)}; may be repeated",
        )
        parser.add_argument("--queue", type=_text, help="only those of this queue")
        parser.add_argument("--worker", metavar="NAME", help="only those that this worker host holds or held")
        parser.add_argument("--dag", type=_text, help="only those of this DAG")
        parser.add_argument("--limit", type=_limit, default=50, metavar="N", help="so many at most (default: 50)")
        parser.add_argument("--json", action="store_true", help="print all of it as JSON")

    def handle(self, **options: Any) -> None:
        wanted = listing.Wanted(
            states=frozenset(JobState(state) for state in options["state"]),
            queue=options["queue"] or "",
            worker_id=None if options["worker"] is None else worker_named(options["worker"]).pk,
            dag=options["dag"] or "",
        )
        page = listing.look(wanted, size=options["limit"])
        why = waiting.because(page.jobs)
        if options["json"]:
            rows = [_known(job) | {"waits_because": why.get(job.pk)} for job in page.jobs]
            self.stdout.write(json.dumps(rows, indent=2, default=plain))
        elif page.jobs:
            self._table(page.jobs, why)
        else:
            self.note("no job is like that")
        if page.older:
            self.note(f"there are more than these {len(page.jobs)}: --limit N shows more of them")

    def _table(self, jobs: Sequence[Job], why: dict[Any, str]) -> None:
        now = timezone.now()
        rows: list[Sequence[Cell]] = [
            (
                str(job.pk),
                Painted(job.state, self._paint(job.state)),
                str(job),
                job.queue,
                job.worker.name if job.worker else "",
                tables.ago(job.finished_at or job.started_at or job.claimed_at or job.queued_at, now),
                job.run_id,
                why.get(job.pk) or job.reason,
            )
            for job in jobs
        ]
        for line in tables.lines(COLUMNS, rows, width=tables.terminal_width(self.stdout)):
            self.stdout.write(line)

    def _paint(self, state: str) -> Callable[[str], str]:
        colours = {
            JobState.QUEUED: self.style.WARNING,
            JobState.RUNNING: self.style.SUCCESS,
            JobState.FAILED: self.style.ERROR,
            JobState.LOST: self.style.ERROR,
        }
        return colours.get(JobState(state), str)


def _known(job: Job) -> dict[str, Any]:
    worker = {"id": job.worker.pk, "name": job.worker.name} if job.worker else None
    return {name: getattr(job, name) for name in _FIELDS} | {"team": job.team_name, "worker": worker}


def _text(text: str) -> str:
    # Empty would mean all of them.
    if not text:
        raise ArgumentTypeError("must not be empty")
    return text


def _limit(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 1 <= int(text) <= MOST:
        raise ArgumentTypeError(f"must be a whole number from 1 to {MOST}")
    return int(text)
