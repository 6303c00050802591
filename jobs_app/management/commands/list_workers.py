"""`manage.py list_workers`: the fleet as a table or as JSON; nothing is changed.

It stands here because workers_app does not know what its workers hold.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from django.conf import settings
from django.db.models import Count, Sum
from django.utils import timezone

from jobs_app.models import Job
from jobs_app.states import HELD
from workers_app import selection, versions
from workers_app.management import tables
from workers_app.management.fleet_command import FleetCommand, plain
from workers_app.management.operation_command import pattern
from workers_app.management.tables import Cell, Column, Painted
from workers_app.models import Worker
from workers_app.states import GONE, Reported, Requested, Shown

COLUMNS = (
    Column("NAME"),
    Column("STATE", whole=True),
    Column("JOBS", whole=True),
    Column("SLOTS", whole=True),
    Column("QUEUES"),
    Column("TEAM", optional=True),
    Column("HEARD", whole=True),
    Column("AGENT", optional=True),
    Column("WISH"),
    Column("TAKES NO WORK"),
)
#: Jobs and slots that a worker holds.
Held = tuple[int, int]


class Command(FleetCommand):
    help = (
        "Lists worker hosts: state, jobs and slots, queues, last word, what was asked of them, and what hinders them."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--state",
            type=_state,
            action="append",
            help="only those in this state, such as idle or 'maintenance mode'; may be repeated",
        )
        parser.add_argument("--queue", help="only those that serve this queue")
        parser.add_argument("--team", help="only those of this team")
        parser.add_argument("--pattern", type=pattern, metavar="GLOB", help="only those with such a name, as 'press-*'")
        parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")

    def handle(self, **options: Any) -> None:
        workers = Worker.objects.order_by("name")
        if options["state"]:
            workers = workers.filter(state__in=options["state"])
        if options["queue"] is not None:
            workers = workers.filter(selection.serving(options["queue"]))
        if options["team"] is not None:
            workers = workers.filter(team_name=options["team"])
        if options["pattern"] is not None:
            workers = workers.filter(selection.like(options["pattern"]))
        rows = list(workers)
        held = _held()
        if options["json"]:
            known = [_known(worker, held.get(worker.pk, (0, 0))) for worker in rows]
            self.stdout.write(json.dumps(known, indent=2, default=plain))
        elif rows:
            now = timezone.now()
            table = [
                self._row(worker, held.get(worker.pk, (0, 0)), heard=tables.ago(worker.last_heartbeat, now))
                for worker in rows
            ]
            for line in tables.lines(COLUMNS, table, width=tables.terminal_width(self.stdout)):
                self.stdout.write(line)
        else:
            self.note("no worker host is like that" if Worker.objects.exists() else "there is no worker host yet")

    def _row(self, worker: Worker, held: Held, *, heard: str) -> Sequence[Cell]:
        queues, (jobs, slots) = worker.effective_queues, held
        return (
            worker.name,
            Painted(worker.state, self.style.WARNING if worker.hindrance else self._paint(worker.state)),
            str(jobs),
            f"{slots}/{worker.effective_concurrency}",
            "(every queue)" if queues is None else ",".join(queues) or "(none)",
            worker.team_name,
            heard or "never",
            worker.agent_version,
            _wish(worker),
            worker.hindrance,
        )

    def _paint(self, state: str) -> Callable[[str], str]:
        plain = {Shown.IDLE: self.style.SUCCESS, Shown.RUNNING: self.style.SUCCESS, Shown.UNKNOWN: self.style.ERROR}
        return plain.get(Shown(state), str if state in GONE else self.style.WARNING)


def _held() -> dict[int, Held]:
    rows = Job.objects.filter(state__in=sorted(HELD)).order_by().values_list("worker")
    return {pk: (jobs, slots) for pk, jobs, slots in rows.annotate(jobs=Count("pk"), sum=Sum("slots"))}


def _known(worker: Worker, held: Held) -> dict[str, Any]:
    """In the words of the operator API."""
    jobs, slots = held
    return {
        "id": worker.pk,
        "name": worker.name,
        "state": worker.state,
        "requested": worker.requested,
        "comment": worker.requested_comment,
        "by": worker.requested_by,
        "by_kind": worker.requested_by_kind,
        "at": worker.requested_at,
        "until": worker.requested_until,
        "reported": worker.reported,
        "queues": worker.effective_queues,
        "agent_queues": worker.queues,
        "allowed_queues": worker.allowed_queues,
        "queues_override": worker.queues_override,
        "team": worker.team_name,
        "slots": {
            "effective": worker.effective_concurrency,
            "used": slots,
            "agent": worker.concurrency,
            "override": worker.concurrency_override,
        },
        "jobs": jobs,
        "agent_version": worker.agent_version,
        "airflow_version": worker.airflow_version,
        "outdated": versions.is_outdated(worker.agent_version, str(settings.SPECTACULAR_SETTINGS["VERSION"])),
        "last_heartbeat": worker.last_heartbeat,
        "silent": worker.state in GONE and worker.reported != Reported.OFFLINE,
        "first_online": worker.first_online,
        "sysinfo": worker.sysinfo,
    }


def _wish(worker: Worker) -> str:
    """Maintenance or shutdown as it was asked for: until when, by whom and why."""
    if worker.requested == Requested.ACTIVE:
        return ""
    until = f" until {worker.requested_until:%Y-%m-%d %H:%M} UTC" if worker.requested_until else ""
    by = f" by {worker.wished_by}" if worker.wished_by else ""
    comment = f": {worker.requested_comment}" if worker.requested_comment else ""
    return f"{worker.requested}{until}{by}{comment}"


def _state(text: str) -> str:
    state = text.replace("_", " ").replace("-", " ")
    if state not in set(Shown):
        raise ArgumentTypeError(f"must be one of {', '.join(Shown)}")
    return state
