"""`manage.py list_workers`: the fleet as a table or as JSON; nothing is changed."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from workers_app import selection
from workers_app.management import tables
from workers_app.management.fleet_command import FleetCommand
from workers_app.management.operation_command import pattern
from workers_app.management.tables import Cell, Column, Painted
from workers_app.models import Worker
from workers_app.states import GONE, Requested, Shown

COLUMNS = (
    Column("NAME"),
    Column("STATE", whole=True),
    Column("JOBS", whole=True),
    Column("QUEUES"),
    Column("TEAM", optional=True),
    Column("HEARD", whole=True),
    Column("AGENT", optional=True),
    Column("WISH"),
)
_FIELDS = (
    "id",
    "name",
    "state",
    "requested",
    "requested_by",
    "requested_at",
    "requested_comment",
    "requested_until",
    "reported",
    "queues",
    "allowed_queues",
    "queues_override",
    "effective_queues",
    "team_name",
    "concurrency",
    "concurrency_override",
    "effective_concurrency",
    "jobs_active",
    "sysinfo",
    "agent_version",
    "airflow_version",
    "first_online",
    "last_heartbeat",
)


class Command(FleetCommand):
    help = "Lists worker hosts: their state, jobs and slots, queues, last word, and what was asked of them."

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
        if options["json"]:
            rows = [{name: getattr(worker, name) for name in _FIELDS} for worker in workers]
            self.stdout.write(json.dumps(rows, indent=2, cls=DjangoJSONEncoder))
            return
        now = timezone.now()
        table = [self._row(worker, heard=tables.ago(worker.last_heartbeat, now)) for worker in workers]
        if not table:
            self.note("no worker host is like that" if Worker.objects.exists() else "there is no worker host yet")
            return
        for line in tables.lines(COLUMNS, table, width=tables.terminal_width(self.stdout)):
            self.stdout.write(line)

    def _row(self, worker: Worker, *, heard: str) -> Sequence[Cell]:
        queues = worker.effective_queues
        return (
            worker.name,
            Painted(worker.state, self._paint(worker.state)),
            f"{worker.jobs_active}/{worker.effective_concurrency}",
            "(every queue)" if queues is None else ",".join(queues) or "(none)",
            worker.team_name,
            heard or "never",
            worker.agent_version,
            _wish(worker),
        )

    def _paint(self, state: str) -> Callable[[str], str]:
        plain = {Shown.IDLE: self.style.SUCCESS, Shown.RUNNING: self.style.SUCCESS, Shown.UNKNOWN: self.style.ERROR}
        return plain.get(Shown(state), str if state in GONE else self.style.WARNING)


def _wish(worker: Worker) -> str:
    """Maintenance or shutdown as it was asked for: until when, by whom and why."""
    if worker.requested == Requested.ACTIVE:
        return ""
    until = f" until {worker.requested_until:%Y-%m-%d %H:%M} UTC" if worker.requested_until else ""
    by = f" by {worker.requested_by}" if worker.requested_by else ""
    comment = f": {worker.requested_comment}" if worker.requested_comment else ""
    return f"{worker.requested}{until}{by}{comment}"


def _state(text: str) -> str:
    state = text.replace("_", " ").replace("-", " ")
    if state not in set(Shown):
        raise ArgumentTypeError(f"must be one of {', '.join(Shown)}")
    return state
