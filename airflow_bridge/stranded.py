"""What Airflow believes to be queued here and nobody has: found once a minute, and queued again.

It is what remains when a scheduler dies between Airflow's commit and ours and Airflow has nobody take it over, or when
an event of ours was dropped. Airflow's own timer for tasks that stay queued does not get there, as it stops at
the first one that `revoke_task` leaves alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

from airflow.models.callback import CallbackKey

from airflow_bridge import other_work, routing, task_instances
from airflow_bridge.adoption import Adoption
from airflow_bridge.store import Store
from airflow_bridge.task_instances import QueuedTask

#: How long something may be queued without a job, before it is one that has none.
STRANDED_SECONDS = 60
#: Rounds begin this often.
ROUND_SECONDS = 60
#: Task instances of one slice, and the pause between two slices of a round.
SLICE_LIMIT = 2000
SLICE_SECONDS = 5


class Knowledge(Protocol):
    """What the executor knows by heart."""

    job_id: Any
    name: Any

    def knows_of(self, key: Any, job_id: UUID | None) -> bool:
        """True while this work is buffered, stored, or ended and not yet told."""


class Stranded:
    """The search of one executor."""

    def __init__(
        self,
        store: Store,
        adoption: Adoption,
        *,
        knowledge: Knowledge,
        wait_limit: int,
        note: Callable[[Any, str], None],
        log: Any,
    ) -> None:
        """`wait_limit` is the age beyond which a callback is history; `note` tells people about a task."""
        self._store = store
        self._adoption = adoption
        self._knowledge = knowledge
        self._wait_limit = wait_limit
        self._note = note
        self._log = log
        self._after: tuple[Any, Any] | None = None
        self.next_slice = float("-inf")
        self.next_callbacks = float("-inf")
        #: Callbacks without a job, since when.
        self._without_job: dict[UUID, float] = {}

    def look_for_tasks(self) -> None:
        """Go through a slice of what this scheduler has queued in Airflow; take over or give back what has no job."""
        if time.monotonic() < self.next_slice or self._knowledge.job_id is None or self._knowledge.name is None:
            return
        self.next_slice = time.monotonic() + SLICE_SECONDS
        queued, self._after = task_instances.queued_by(
            self._knowledge.job_id, seconds=STRANDED_SECONDS, after=self._after, limit=SLICE_LIMIT
        )
        if self._after is None:
            self.next_slice += ROUND_SECONDS - SLICE_SECONDS
        unknown = [ti for ti in queued if not self._knowledge.knows_of(ti.key, ti.job_id)]
        if unknown := self._ours(unknown):
            self._go_on_with(unknown)

    def _ours(self, tasks: Sequence[QueuedTask]) -> list[QueuedTask]:
        names = routing.executor_names()
        teams = routing.teams_of({ti.key.dag_id for ti in tasks})
        return [
            ti
            for ti in tasks
            if routing.goes_to(wanted=ti.executor, team=teams.get(ti.key.dag_id), names=names) == self._knowledge.name
        ]

    def _go_on_with(self, tasks: Sequence[QueuedTask]) -> None:
        """Let what has an id be adopted, or queued again under it; the rest goes back to Airflow's own scheduling."""
        found = {standing.id: standing for standing in self._store.standing([ti.job_id for ti in tasks if ti.job_id])}
        give_back = []
        for ti in tasks:
            standing = found.get(ti.job_id) if ti.job_id else None
            if ti.job_id is None or (standing and standing.told):
                # The id, if there is one, is that of an earlier queueing.
                give_back.append(ti)
            else:
                self._adoption.hand_over[ti.job_id] = ti.id
        self.give_back({ti.id: ti.job_id for ti in give_back})

    def give_back(self, tasks: Mapping[UUID, UUID | None]) -> set[UUID]:
        """Let Airflow schedule these task instances anew that are queued as these jobs; return which."""
        if not tasks or self._knowledge.job_id is None:
            return set()
        given = task_instances.give_back(tasks, queued_by=self._knowledge.job_id)
        for ti in given:
            self._log.warning("EdgeControl: %s had no job; Airflow queues it again", ti.key)
            self._note(ti.key, "it was queued and had no job: Airflow queues it again")
        return {ti.id for ti in given}

    def look_for_callbacks(self) -> None:
        """Put callbacks back that have been queued for long and have no job: no scheduler adopts those."""
        now = time.monotonic()
        if now < self.next_callbacks or self._knowledge.name is None:
            return
        self.next_callbacks = now + ROUND_SECONDS
        queued = other_work.queued_callbacks(younger_than=self._wait_limit, limit=SLICE_LIMIT)
        ids = {callback.id for callback in queued}
        stored = {standing.id for standing in self._store.standing(list(ids))} if ids else set()
        names = routing.executor_names() if queued else []
        teams = routing.teams_of({callback.dag_id for callback in queued if callback.dag_id})
        without_job = {
            callback.id
            for callback in queued
            if callback.id not in stored
            and not self._knowledge.knows_of(CallbackKey(str(callback.id)), callback.id)
            and routing.goes_to(wanted=callback.executor, team=teams.get(callback.dag_id or ""), names=names)
            == self._knowledge.name
        }
        self._without_job = {callback_id: self._without_job.get(callback_id, now) for callback_id in without_job}
        late = [callback_id for callback_id, since in self._without_job.items() if since <= now - STRANDED_SECONDS]
        for callback_id in other_work.put_back(late) if late else ():
            self._log.warning("EdgeControl: callback %s had no job; Airflow queues it again", callback_id)
