"""What operators, and machines of themselves, want: the only writer of `requested`, operators' columns, and removals.

Each function takes many workers, changes those it can in one transaction, writes each change into the
record, wakes the agents, and says why it skipped the rest. Who may do it is decided by the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from django.utils import timezone

from workers_app import audit, notices
from workers_app.audit import Actor, ActorKind
from workers_app.models import Worker
from workers_app.outcomes import Outcome
from workers_app.states import GONE, Reported, Requested, RequestedBy, Shown, shown_state


class Skip(Exception):
    """This worker cannot or need not be changed; the text says why."""


#: The columns of a wish, which a new one replaces as a whole.
_WISH = ("requested", "requested_by", "requested_by_kind", "requested_at", "requested_comment", "requested_until")
#: What the record of a change names by itself.
_NOT_TOLD = ("requested_at", "requested_by", "requested_by_kind", "heard_wish")
_WHOSE = {
    ActorKind.PERSON: RequestedBy.OPERATOR,
    ActorKind.COMMAND: RequestedBy.OPERATOR,
    ActorKind.MACHINE: RequestedBy.MACHINE,
    ActorKind.AUTOMATIC: RequestedBy.AUTOMATIC,
}


@dataclass(frozen=True, kw_only=True)
class MachineWish:
    """Maintenance that is wanted on the machine itself, or its end."""

    id: UUID
    requested: Requested
    comment: str
    #: Wanted by the machine's thresholds, not by somebody there.
    automatic: bool
    #: How long ago it was had; the machine may have been cut off.
    age: timedelta


def request_maintenance(
    worker_ids: Sequence[int], *, by: Actor, comment: str, until: datetime | None = None
) -> Outcome:
    """Let workers finish what they hold and take no more, until `until` if given. The last wish wins."""
    return _wish(worker_ids, Requested.MAINTENANCE, action="request_maintenance", by=by, comment=comment, until=until)


def update_maintenance_comment(worker_ids: Sequence[int], *, by: Actor, comment: str) -> Outcome:
    """Say anew why workers are in maintenance."""

    def decide(worker: Worker) -> dict[str, Any]:
        if worker.requested != Requested.MAINTENANCE:
            raise Skip("it is not in maintenance")
        return {
            "requested_comment": comment,
            "requested_by": by.name,
            "requested_by_kind": _WHOSE[by.kind].value,
            "requested_at": Now(),
        }

    return _change(worker_ids, decide, action="update_maintenance_comment", by=by, comment=comment)


def exit_maintenance(worker_ids: Sequence[int], *, by: Actor, comment: str = "") -> Outcome:
    """Let workers take jobs again."""

    def decide(worker: Worker) -> dict[str, Any]:
        if worker.requested != Requested.MAINTENANCE:
            raise Skip("it is not in maintenance")
        return _wished(Requested.ACTIVE, by=by, comment="", until=None)

    return _change(worker_ids, decide, action="exit_maintenance", by=by, comment=comment)


def end_due_maintenance() -> Outcome:
    """End the maintenance of every worker whose end time has come."""
    due = dict(
        Worker.objects.filter(requested=Requested.MAINTENANCE, requested_until__lte=Now()).values_list(
            "pk", "requested_until"
        )
    )

    def decide(worker: Worker) -> dict[str, Any]:
        # Somebody may have wished for more time since it was looked for.
        if (worker.requested, worker.requested_until) != (Requested.MAINTENANCE, due[worker.pk]):
            raise Skip("its end time has been changed")
        return _wished(Requested.ACTIVE, by=audit.AUTOMATIC, comment="", until=None)

    if not due:
        return Outcome()
    because = "its end time has come"
    return _change(list(due), decide, action="exit_maintenance", by=audit.AUTOMATIC, comment=because)


def hear(worker: Worker, wish: MachineWish, *, origin: str) -> None:
    """Let a worker rest or work as its machine wants, unless somebody has wished otherwise since. Updates `worker`.

    What a machine wants by itself never overrules what somebody asked for. The same wish again changes nothing. The
    agent obeys by the same rule before it is heard (`agent/wishes.py`).
    """
    kind = ActorKind.AUTOMATIC if wish.automatic else ActorKind.MACHINE

    def decide(row: Worker) -> dict[str, Any]:
        if row.heard_wish == wish.id:
            raise Skip("it has been heard")
        if row.requested_at is not None and row.requested_at > timezone.now() - wish.age:
            raise Skip("somebody has wished otherwise since")
        resting_by_itself = (row.requested, row.requested_by_kind) == (Requested.MAINTENANCE, RequestedBy.AUTOMATIC)
        if wish.requested == Requested.MAINTENANCE:
            if wish.automatic and row.requested != Requested.ACTIVE and not resting_by_itself:
                raise Skip("somebody has asked for something else")
        elif row.requested != Requested.MAINTENANCE or (wish.automatic and not resting_by_itself):
            raise Skip("it is not in a maintenance that this could end")
        comment = wish.comment if wish.requested == Requested.MAINTENANCE else ""
        wished = _wished(wish.requested, by=by, comment=comment, until=None)
        return {**wished, "requested_at": Now() - wish.age, "heard_wish": wish.id}

    by = Actor(kind=kind, name=worker.name, origin=origin)
    action = "request_maintenance" if wish.requested == Requested.MAINTENANCE else "exit_maintenance"
    _change([worker.pk], decide, action=action, by=by, comment=wish.comment)
    # Also of one that was skipped: a copy of the request that comes late must not find it younger than it is.
    Worker.objects.filter(pk=worker.pk).update(heard_wish=wish.id)
    worker.refresh_from_db()


def shut_down(worker_ids: Sequence[int], *, by: Actor, comment: str = "", until: datetime | None = None) -> Outcome:
    """Let agents finish what they hold and end; what still runs at `until` is stopped. Ends with the next start."""

    def decide(worker: Worker) -> dict[str, Any]:
        if worker.state in GONE:
            raise Skip(f"it is {worker.state} already")
        return _wished(Requested.SHUTDOWN, by=by, comment=comment, until=until)

    return _change(worker_ids, decide, action="shutdown_worker", by=by, comment=comment)


def cancel_shutdown(worker_ids: Sequence[int], *, by: Actor, comment: str = "") -> Outcome:
    """Let workers go on that are asked to end and have not ended yet; jobs that were stopped stay stopped."""

    def decide(worker: Worker) -> dict[str, Any]:
        if worker.requested != Requested.SHUTDOWN:
            raise Skip("it is not asked to shut down")
        if worker.state in GONE:
            raise Skip(f"it is {worker.state} already")
        return _wished(Requested.ACTIVE, by=by, comment="", until=None)

    return _change(worker_ids, decide, action="cancel_shutdown", by=by, comment=comment)


def remove(worker_ids: Sequence[int], *, by: Actor, comment: str = "") -> Outcome:
    """Delete workers that are gone, with their tokens. Their finished jobs stay, without a worker's name."""
    outcome = Outcome()
    for pk in worker_ids:
        with transaction.atomic():
            worker = Worker.objects.select_for_update().filter(pk=pk).first()
            if worker is None:
                continue
            if worker.state not in GONE:
                outcome.skip(worker.name, f"it is {worker.state}; only an offline or silent worker can be removed")
                continue
            entry = audit.Entry(
                action="remove_worker",
                kind="worker",
                id=worker.pk,
                name=worker.name,
                before={"state": worker.state, "queues": worker.effective_queues, "team": worker.team_name},
            )
            try:
                with transaction.atomic():
                    worker.delete()
            except IntegrityError:
                # The database knows jobs; this app does not.
                outcome.skip(worker.name, "it still holds jobs; revoke them first")
                continue
            audit.record([entry], by=by, comment=comment)
            outcome.done.append(worker.name)
    return outcome


def add_queues(worker_ids: Sequence[int], *, by: Actor, queues: Sequence[str]) -> Outcome:
    """Let workers serve further queues, also beyond what their enrolment lets their agents ask for."""

    def decide(worker: Worker) -> dict[str, Any]:
        served = worker.effective_queues
        if served is None:
            raise Skip("it serves every queue already")
        if not set(queues) - set(served):
            raise Skip("it serves them already")
        return {"queues_override": [*served, *(queue for queue in queues if queue not in served)]}

    return _change(worker_ids, decide, action="add_worker_queues", by=by)


def remove_queues(worker_ids: Sequence[int], *, by: Actor, queues: Sequence[str]) -> Outcome:
    """Let workers serve these queues no more; one that loses its last queue serves none."""

    def decide(worker: Worker) -> dict[str, Any]:
        served = worker.effective_queues
        if served is None:
            raise Skip("it serves every queue; set its queues first")
        if not set(queues) & set(served):
            raise Skip("it does not serve them")
        return {"queues_override": [queue for queue in served if queue not in queues]}

    return _change(worker_ids, decide, action="remove_worker_queues", by=by)


def set_queues(worker_ids: Sequence[int], *, by: Actor, queues: Sequence[str] | None) -> Outcome:
    """Let workers serve exactly these queues; None leaves it to their agents again."""

    def decide(worker: Worker) -> dict[str, Any]:
        wanted = None if queues is None else list(queues)
        if worker.queues_override == wanted:
            raise Skip("it has exactly these already" if wanted is not None else "its agent decides already")
        return {"queues_override": wanted}

    return _change(worker_ids, decide, action="set_worker_queues", by=by)


def set_concurrency(worker_ids: Sequence[int], *, by: Actor, concurrency: int | None) -> Outcome:
    """Set how many slots workers may fill; None leaves it to their agents again."""

    def decide(worker: Worker) -> dict[str, Any]:
        if worker.concurrency_override == concurrency:
            raise Skip("it has that already" if concurrency is not None else "its agent decides already")
        return {"concurrency_override": concurrency}

    return _change(worker_ids, decide, action="set_worker_concurrency", by=by)


def _wish(
    worker_ids: Sequence[int], wish: Requested, *, action: str, by: Actor, comment: str, until: datetime | None
) -> Outcome:
    wished = _wished(wish, by=by, comment=comment, until=until)
    return _change(worker_ids, lambda worker: wished, action=action, by=by, comment=comment)


def _wished(wish: Requested, *, by: Actor, comment: str, until: datetime | None) -> dict[str, Any]:
    return dict(zip(_WISH, (wish.value, by.name, _WHOSE[by.kind].value, Now(), comment, until), strict=True))


def _change(
    worker_ids: Sequence[int],
    decide: Callable[[Worker], dict[str, Any]],
    *,
    action: str,
    by: Actor,
    comment: str = "",
) -> Outcome:
    """Change each worker as `decide` says, or skip it for the reason that `decide` raises."""
    outcome, changed, entries = Outcome(), [], []
    #: Workers that become the same, most often nearly all of them, are one UPDATE.
    alike: dict[str, tuple[dict[str, Any], list[int]]] = {}
    with transaction.atomic():
        rows = Worker.objects.select_for_update(no_key=True).filter(pk__in=worker_ids).order_by("pk")
        for worker in rows:
            try:
                columns = dict(decide(worker))
            except Skip as skip:
                outcome.skip(worker.name, str(skip))
                continue
            told = [name for name in columns if name not in _NOT_TOLD]
            before, after = {name: getattr(worker, name) for name in told}, {name: columns[name] for name in told}
            for name, value in columns.items():
                setattr(worker, name, value)
            columns["state"] = _state(worker)
            alike.setdefault(repr((after, columns["state"])), (columns, []))[1].append(worker.pk)
            entries.append(
                audit.Entry(action=action, kind="worker", id=worker.pk, name=worker.name, before=before, after=after)
            )
            changed.append(worker)
        for columns, ids in alike.values():
            Worker.objects.filter(pk__in=ids).update(**columns)
        audit.record(entries, by=by, comment=comment)
        notices.announce(worker.pk for worker in changed)
    outcome.done = [worker.name for worker in changed]
    return outcome


def _state(worker: Worker) -> Shown:
    silent = worker.state in GONE and worker.reported != Reported.OFFLINE
    return shown_state(requested=Requested(worker.requested), reported=Reported(worker.reported), silent=silent)
