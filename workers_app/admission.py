"""A worker host before its machine has called: its row, what operators want of it from the start, and its token.

All of it in one transaction, so that whoever repeats a request that failed finds either all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction

from workers_app import auth, registry, wishes
from workers_app.audit import Actor
from workers_app.models import Worker

#: Who makes a worker's token has its identity, and so needs more than who makes its row.
TOKEN_PERMISSION = "workers_app.add_workertoken"  # noqa: S105


@dataclass(frozen=True, kw_only=True)
class Newcomer:
    """What is known of a machine before it calls."""

    name: str
    #: None: every queue.
    allowed_queues: Sequence[str] | None = None
    team_name: str = ""
    #: None leaves it to the agent.
    concurrency: int | None = None
    #: Why it shall rest at first; None lets it work.
    maintenance: str | None = None


def admit(newcomer: Newcomer, *, by: Actor) -> Worker:
    """Make the worker host, without a credential. Raises NameTaken or InvalidName."""
    with transaction.atomic():
        worker = registry.create(
            name=newcomer.name, allowed_queues=newcomer.allowed_queues, team_name=newcomer.team_name, by=by
        )
        if newcomer.concurrency is not None:
            wishes.set_concurrency([worker.pk], by=by, concurrency=newcomer.concurrency)
        if newcomer.maintenance is not None:
            wishes.request_maintenance([worker.pk], by=by, comment=newcomer.maintenance)
        worker.refresh_from_db()
        return worker


def admit_with_token(newcomer: Newcomer, *, by: Actor, valid_for: timedelta | None = None) -> tuple[Worker, str]:
    """Make the worker host and its token, which cannot be shown again. Raises NameTaken or InvalidName."""
    with transaction.atomic():
        worker = admit(newcomer, by=by)
        return worker, auth.issue(worker=worker, by=by, valid_for=valid_for)
