"""The only writer of queues' settings: pause, resume, limit. Jobs and workers are not changed here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from jobs_app import notices
from jobs_app.models import Queue
from workers_app import audit
from workers_app.audit import Actor
from workers_app.outcomes import Outcome
from workers_app.wishes import Skip


def pause(names: Sequence[str], *, by: Actor, comment: str) -> Outcome:
    """Hand out no more jobs of these queues; those that are held go on."""

    def decide(queue: Queue) -> dict[str, Any]:
        if queue.paused and queue.pause_comment == comment:
            raise Skip("it is paused already, with this comment")
        return {"paused": True, "pause_comment": comment, "paused_by": by.name, "paused_at": Now()}

    return _change(names, decide, action="pause_queue", by=by, comment=comment)


def resume(names: Sequence[str], *, by: Actor, comment: str = "") -> Outcome:
    """Hand out jobs of these queues again, at once."""

    def decide(queue: Queue) -> dict[str, Any]:
        if not queue.paused:
            raise Skip("it is not paused")
        return {"paused": False, "pause_comment": "", "paused_by": "", "paused_at": None}

    return _change(names, decide, action="resume_queue", by=by, comment=comment)


def set_limit(names: Sequence[str], *, by: Actor, concurrency: int | None) -> Outcome:
    """Bound the slots of these queues' jobs that are held at once, over all workers; None takes the bound away."""

    def decide(queue: Queue) -> dict[str, Any]:
        if queue.concurrency_limit == concurrency:
            raise Skip("it has that limit already" if concurrency is not None else "it has no limit")
        return {"concurrency_limit": concurrency}

    return _change(names, decide, action="set_queue_concurrency", by=by)


def _change(
    names: Sequence[str], decide: Callable[[Queue], dict[str, Any]], *, action: str, by: Actor, comment: str = ""
) -> Outcome:
    outcome, entries = Outcome(), []
    with transaction.atomic():
        for queue in Queue.objects.select_for_update(no_key=True).filter(pk__in=names).order_by("pk"):
            try:
                columns = decide(queue)
            except Skip as skip:
                outcome.skip(queue.name, str(skip))
                continue
            told = [name for name in columns if name not in ("paused_by", "paused_at")]
            before, after = {name: getattr(queue, name) for name in told}, {name: columns[name] for name in told}
            Queue.objects.filter(pk=queue.pk).update(**columns)
            entries.append(
                audit.Entry(action=action, kind="queue", id=queue.pk, name=queue.name, before=before, after=after)
            )
            outcome.done.append(queue.name)
        audit.record(entries, by=by, comment=comment)
        # Whoever serves them looks again: there may be more to take than a moment ago.
        notices.announce_queues(outcome.done)
    return outcome
