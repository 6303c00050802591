"""EdgeControlExecutor: what Airflow's scheduler asks of an executor, answered from memory and a few bounded statements.

No SQL stands here, and no exception of ours leaves it: the scheduler's loop has nothing around its executors.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from uuid import UUID, uuid4

from airflow.configuration import conf as airflow_conf
from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads.base import BaseWorkloadSchema
from airflow.models.callback import CallbackKey
from airflow.utils.state import CallbackState, TaskInstanceState

from airflow_bridge import config, outbox, queueing
from airflow_bridge.containment import contained, nothing
from airflow_bridge.database import NoConnection, StoreAway, StoreError
from airflow_bridge.endings import Ending, Endings
from airflow_bridge.ledger import Ledger, OpenJob
from airflow_bridge.outage import Outage
from airflow_bridge.states import FINAL, JobState
from airflow_bridge.store import NewJob, Store
from airflow_bridge.task_instances import look_up, workloads_of
from airflow_bridge.verdict import Verdict

#: Rows in one statement.
BATCH = 500
#: What one turn of the scheduler's loop may spend here. No statement is begun beyond, but for one of each kind: jobs
#: that are written, endings that are told, and one step of the watch. The rest has its turn in the next one.
TURN_SECONDS = 3
#: The same for the scheduler's end: the next one queues again what was not written.
END_SECONDS = 10
#: Open jobs compared with the table once a second, so that all are within a minute (or at this pace).
CHECK_LIMIT = 500
CHECK_ROUND_SECONDS = 60
#: Jobs taken over in one statement.
HAND_OVER_LIMIT = 1000
#: Ended jobs of dispatchers that are gone are looked for this often. They are told when they ended that much more than
#: the patience ago: a living dispatcher keeps none longer.
OVERDUE_SECONDS = 60
#: Tokens renewed in one statement, and what one turn may spend on them.
RENEW_LIMIT = 250
RENEW_SECONDS = 1.0
#: How much of a token's life counts: who is given a job needs some of it to start it.
TOKEN_SHARE = 0.9


_HAND_OVER = "take over jobs of other schedulers"


class EdgeControlExecutor(BaseExecutor):
    """Hands Airflow's workloads to EdgeControl and tells Airflow how they ended.

    `running` holds what a worker has (claimed or running). Jobs that wait are only in the ledger: they occupy none of
    Airflow's slots, or one dead site would stop all of Airflow at [core] parallelism.
    """

    pre_assigns_external_executor_id: ClassVar[bool] = True
    supports_callbacks = True
    supports_multi_team = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Also made in processes that only read logs or print settings: nothing is opened here.
        self.config = config.read(self.conf)
        self.dispatcher = uuid4()
        self._store = Store(self.config.database_url)
        self._outage = Outage()
        self._ledger = Ledger()
        self._endings = Endings(self._store, self._ledger, patience=self.config.outage_patience)
        self.running: set[Any] = set()
        self._buffered_at: dict[Any, float] = {}
        #: Buffered ones whose INSERT may have had its effect, by id.
        self._tried: set[UUID] = set()
        #: Buffered ones that another scheduler had queued, and may write yet.
        self._inherited: set[UUID] = set()
        #: Buffered ones that could not be stored while others could: each is a step of its own.
        self._set_apart: set[Any] = set()
        self._batch = BATCH
        self._held: set[UUID] = set()
        self._event_logs: list[Any] = []
        #: Jobs of dead schedulers that could not be taken over yet, with their task instances.
        self._hand_over: dict[UUID, UUID] = {}
        self._to_revoke: set[UUID] = set()
        self._turn_ends = float("-inf")
        self._next_watch = float("-inf")
        self._due: deque[str] = deque()
        self._watches: dict[str, Callable[[], None]] = {
            "see what workers hold": self._watch_held,
            _HAND_OVER: self._take_over_late,
            "revoke what Airflow gave up": self._revoke,
            "compare open jobs": self._check_open_jobs,
            "renew tokens": self._renew_tokens,
            "tell what others left": self._take_over_ended,
        }
        self._next_overdue = float("-inf")

    # What Airflow calls, in the order of a scheduler's life.

    @contained(otherwise=nothing)
    def start(self) -> None:
        """Called once, in a scheduler: from now on this instance is a dispatcher."""
        self.dispatcher = uuid4()
        self.log.info("EdgeControl: this scheduler is dispatcher %s", self.dispatcher)
        if complaint := config.patience_complaint(self.config):
            self.log.error("EdgeControl: %s", complaint)

    def heartbeat(self) -> None:
        """One turn of the scheduler's loop."""
        self._turn_ends = time.monotonic() + TURN_SECONDS
        super().heartbeat()

    def queue_workload(self, workload: Any, session: Any) -> None:
        """Only buffer: this runs inside the scheduler's critical section."""
        super().queue_workload(workload, session)
        self._buffered_at[workload.key] = time.monotonic()

    def trigger_tasks(self, open_slots: int) -> None:
        """Write all that is buffered, whatever the slots: jobs that wait for a worker occupy none."""
        super().trigger_tasks(len(self.queued_tasks) + len(self.queued_callbacks))

    @contained(otherwise=nothing)
    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        batches = outbox.batches([w for w in workload_items if w.key not in self._set_apart], size=self._batch)
        batches += [[w] for w in workload_items if w.key in self._set_apart and self._outage.may_try(w.key)]
        for number, batch in enumerate(batches):
            if number and not self._time_is_left():
                return
            with self._reaching_store("store new jobs") as reachable:
                if not reachable:
                    return
                if jobs := [job for workload in batch if (job := self._job_of(workload))]:
                    self._write(jobs)

    @contained(otherwise=nothing)
    def sync(self) -> None:
        """Tell Airflow of jobs that ended; once a second, compare what is believed with the table."""
        with self._reaching_store("note what Airflow knows") as reachable:
            if reachable:
                self._endings.confirm()
        with self._reaching_store("read which jobs ended") as reachable:
            if reachable:
                for ending in self._endings.collect(dispatcher=self.dispatcher):
                    self._tell(ending)
        self._go_on_watching()

    @contained(otherwise=list)
    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Take over what a dead scheduler queued; return the task instances that are not ours to go on with.

        What it had queued and not yet written is queued here, under the same id: Airflow would count another try, and
        forget where a deferred task is to resume. What runs without a job is left to its own heartbeats.
        What does not fit into one turn counts as adopted, as all does while the database is away, and `sync` goes on.
        """
        mine = {job_id: ti for ti in tis if (job_id := queueing.parse_id(ti.external_executor_id))}
        nobodys = [ti for ti in tis if queueing.parse_id(ti.external_executor_id) is None]
        # Noted first, so that nothing is forgotten whatever fails below.
        self._hand_over.update({job_id: ti.id for job_id, ti in mine.items()})
        with self._reaching_store(_HAND_OVER) as reachable:
            if reachable:
                for job_id, airflow_id in self._take_over(ends=time.monotonic() + TURN_SECONDS):
                    if job_id in mine:
                        nobodys.append(mine[job_id])
                    else:
                        self._fail_late(job_id, airflow_id)
        return [ti for ti in nobodys if ti.state != TaskInstanceState.RUNNING]

    def revoke_task(self, *, ti: Any) -> None:
        """Called for task instances that are queued for long, which is no failure here: a site may be away overnight.

        NotImplementedError makes Airflow leave them alone. Only one that has no job is given back to Airflow,
        since nothing would ever start it.
        """
        if self.has_task(ti) or self._hand_over or self._outage.lasts:
            raise NotImplementedError("EdgeControl keeps jobs until [edgecontrol] queue_wait_limit")
        self.log.warning("EdgeControl: %s is queued but has no job; Airflow queues it again", ti)

    @contained(otherwise=nothing)
    def end(self) -> None:
        """The scheduler ends: write what is buffered, leave the rest to the next one. Work goes on at the edge."""
        self._turn_ends = time.monotonic() + END_SECONDS
        self._drop_rolled_back()
        self.trigger_tasks(0)
        with self._reaching_store("note what Airflow knows") as reachable:
            if reachable:
                self._endings.confirm()
        self._store.close()

    @contained(otherwise=nothing)
    def terminate(self) -> None:
        """The scheduler was told to stop at once; the next one adopts the jobs."""
        self._store.close()

    def get_task_log(self, ti: Any, try_number: int) -> tuple[list[str], list[str]]:
        """Logs come from REMOTE_TASK_LOG; a message here keeps Airflow from probing port 8793 of the edge machine."""
        return ["Live log from EdgeControl"], []

    def has_task(self, task_instance: Any) -> bool:
        """True while a job of this try is buffered, waits or runs."""
        return task_instance.key in self._ledger or super().has_task(task_instance)

    def change_state(self, key: Any, state: Any, info: Any = None, remove_running: bool = True) -> None:
        """Emit an event. Airflow itself calls this too, for tasks that it gave up."""
        super().change_state(key, state, info, remove_running)
        if remove_running:
            # Of what we tell ourselves, the ledger knows no more.
            self._give_up(key)

    def log_task_event(self, *, event: str, extra: str, ti_key: Any) -> None:
        """Add a line to Airflow's audit log."""
        super().log_task_event(event=event, extra=extra, ti_key=ti_key)
        # Airflow 3.3.2 saves them out of a generator, so that SQLAlchemy finds each one collected already, and its
        # columns empty (scheduler_job_runner.py:1268): somebody has to hold them.
        self._event_logs = list(self._task_event_logs)

    def fail_connection_test(self, key: Any) -> None:
        """Airflow's reaper gave up a connection test."""
        super().fail_connection_test(key)
        self._give_up(key)

    def _give_up(self, key: Any) -> None:
        """Airflow waits no longer: the job's process, if it lives, has to stop before another try begins."""
        if job_id := self._ledger.newest(key):
            self._to_revoke.add(job_id)
            self._ledger.forget(job_id)

    # Into the table.

    def _job_of(self, workload: Any) -> NewJob | None:
        """The row to write; None when there can be none, and then the workload has been failed."""
        try:
            waited = time.monotonic() - self._buffered_at.get(workload.key, float("-inf"))
            return queueing.job_of(
                workload,
                token_seconds=max(0.0, self._token_seconds * TOKEN_SHARE - waited),
                job_id=queueing.assigned_id(workload) or self._assign_id(workload),
                dispatcher=self.dispatcher,
                team_name=self.team_name or "",
                default_queue=airflow_conf.get("operators", "default_queue"),
            )
        except Exception as error:
            self.log.exception("EdgeControl: cannot make a job of %s", workload.key)
            self._unbuffer(workload.key)
            self.fail(workload.key, f"EdgeControl could not make a job of it: {error}")
            return None

    def _assign_id(self, workload: Any) -> UUID:
        """Give the queueing an id where Airflow gave none, and let Airflow store it."""
        job_id = uuid4()
        workload.ti.external_executor_id = str(job_id)
        self.change_state(workload.key, TaskInstanceState.QUEUED, str(job_id), remove_running=False)
        return job_id

    def _write(self, jobs: Sequence[NewJob]) -> None:
        result = outbox.Result()
        try:
            outbox.write(self._store, jobs, tried=self._tried, time_is_left=self._time_is_left, result=result)
            self._batch = max(1, len(jobs) // 2) if result.unfinished else min(2 * self._batch, BATCH)
        except StoreAway:
            # It may be too large for the way there.
            self._batch = max(1, len(jobs) // 2)
            raise
        finally:
            for job in result.stored:
                key = queueing.key_of(job)
                self._unbuffer(key, job_id=job.id)
                # What was buffered for long has an old token.
                renew_in = (job.token_seconds or 0) - self._token_seconds * (TOKEN_SHARE - 1 / 3)
                self._open(job_id=job.id, key=key, airflow_id=job.airflow_id, renew_in=renew_in)
                if job.id in self._inherited:
                    # The one that queued it may have been faster: then its row is still to be taken over.
                    self._inherited.remove(job.id)
                    self._hand_over[job.id] = job.airflow_id
            for job in result.id_taken:
                self._assign_id(self.queued_tasks[queueing.key_of(job)])
            for job, reason in result.refused:
                self._isolate(job, reason)
            for job, reason in result.stuck:
                key = queueing.key_of(job)
                self._set_apart.add(key)
                if self._outage.failed(key, alone=True):
                    self.log.error("EdgeControl: the job of %s cannot be stored now: %s", key, reason)

    def _isolate(self, job: NewJob, reason: str) -> None:
        key = queueing.key_of(job)
        self.log.error("EdgeControl: PostgreSQL refuses the job of %s: %s", key, reason)
        self._unbuffer(key, job_id=job.id)
        self._endings.add(
            job_id=job.id,
            kind=job.kind,
            airflow_id=job.airflow_id,
            state=JobState.FAILED,
            reason=f"EdgeControl could not store it: {reason}",
        )

    def _unbuffer(self, key: Any, *, job_id: UUID | None = None) -> None:
        for buffer in (self.queued_tasks, self.queued_callbacks, self.queued_connection_tests, self._buffered_at):
            buffer.pop(key, None)
        if key in self._set_apart:
            self._set_apart.remove(key)
            self._outage.forget(key)
        if job_id:
            self._tried.discard(job_id)

    def _drop_rolled_back(self) -> None:
        """Forget what was queued in a transaction that never was committed: a signal ends a scheduler anywhere."""
        waiting = list(self.queued_tasks.values())
        now = look_up({workload.ti.id for workload in waiting})
        for workload in waiting:
            found = now.get(workload.ti.id)
            if (
                found is None
                or found.state != TaskInstanceState.QUEUED
                or found.job_id != queueing.assigned_id(workload)
            ):
                self._unbuffer(workload.key)

    # Out of the table.

    def _tell(self, ending: Ending) -> None:
        # First: while `has_task` is true Airflow takes the task for queued again, and drops the event.
        self._ledger.forget(ending.job_id)
        if ending.verdict is Verdict.SUCCESS:
            self.success(ending.key)
        elif ending.verdict is Verdict.FAILURE:
            reason = ending.reason or f"the job {ending.job_id} ended as {ending.state}"
            self.fail(ending.key, reason)
            if ending.state != JobState.FAILED:
                self.log_task_event(event=f"edgecontrol {ending.state}", extra=reason, ti_key=ending.key)
        if ending.key not in self._ledger:
            self.running.discard(ending.key)

    def _go_on_watching(self) -> None:
        """What needs no hurry: each step once a second; what does not fit into this turn comes first in the next."""
        if not self._due and time.monotonic() >= self._next_watch:
            self._next_watch = time.monotonic() + 1
            self._due.extend(self._watches)
        while self._due:
            step = self._due.popleft()
            with self._reaching_store(step) as reachable:
                if reachable:
                    self._watches[step]()
            if not self._time_is_left():
                return

    def _time_is_left(self) -> bool:
        return time.monotonic() < self._turn_ends

    def _revoke(self) -> None:
        if self._to_revoke:
            self._store.revoke(list(self._to_revoke), reason="Airflow gave it up")
            self._to_revoke.clear()

    def _watch_held(self) -> None:
        before, self._held = self._held, self._store.held(dispatcher=self.dispatcher)
        keys = self._ledger.keys_of(self._held)
        for key in keys - self.running:
            if isinstance(key, CallbackKey):
                self.event_buffer.setdefault(key, (CallbackState.RUNNING, None))
        self.running = keys
        for job_id in before - self._held:
            # Released: its token may have grown old at the worker.
            self._ledger.renew(job_id, at=time.monotonic())

    def _check_open_jobs(self) -> None:
        """Compare a slice of what is believed open with the table, which is right."""
        ids = self._ledger.next_to_check(seconds_per_round=CHECK_ROUND_SECONDS, limit=CHECK_LIMIT)
        if not ids:
            return
        standings = {standing.id: standing for standing in self._store.standing(ids)}
        for job_id in ids:
            job, standing = self._ledger.get(job_id), standings.get(job_id)
            if job and standing is None:
                self._endings.add(
                    job_id=job_id, airflow_id=job.airflow_id, state=JobState.LOST, reason="its job was deleted"
                )
                self._ledger.forget(job_id)
            elif standing and standing.dispatcher != self.dispatcher:
                self._ledger.forget(job_id)  # adopted by another scheduler, which took us for dead
        limit = self.config.queue_wait_limit
        if late := [s.id for s in standings.values() if s.state == JobState.QUEUED and s.age > limit]:
            self._store.expire(late, limit_seconds=limit)

    def _renew_tokens(self) -> None:
        """Mint tokens of waiting jobs anew: Airflow's own last for [scheduler] task_queued_timeout only.

        As many as need it: after an outage that is all of them.
        """
        ends = min(time.monotonic() + RENEW_SECONDS, self._turn_ends)
        while due := self._ledger.due_for_renewal(now=time.monotonic(), limit=RENEW_LIMIT):
            waiting = [job for job in due if job.id not in self._held]
            again_in = 0.0
            try:
                if waiting:
                    mint = functools.partial(BaseWorkloadSchema.generate_token, generator=self.jwt_generator)
                    tokens = {job.id: mint(str(job.airflow_id)) for job in waiting}
                    self._store.renew_tokens(tokens, seconds=self._token_seconds * TOKEN_SHARE)
                again_in = self._token_seconds / 3
            finally:
                for job in due:
                    self._ledger.renew(job.id, at=time.monotonic() + again_in)
            if time.monotonic() >= ends:
                return

    # Adoption.

    def _take_over(self, *, ends: float) -> Iterator[tuple[UUID, UUID]]:
        """Make ours what is noted for it, slice by slice until that moment; yield what nobody can go on with.

        Each slice is done with when its statement is, so that any number of jobs gets there in the end. What
        somebody has locked at the moment comes up again.
        """
        locked: dict[UUID, UUID] = {}
        try:
            while self._hand_over:
                jobs = dict(itertools.islice(self._hand_over.items(), HAND_OVER_LIMIT))
                found = self._adopt(list(jobs))
                missing = {job_id: jobs[job_id] for job_id in jobs.keys() - found}
                if missing:
                    there = {standing.id for standing in self._store.standing(list(missing))}
                    locked.update({job_id: missing.pop(job_id) for job_id in there})
                nobodys = missing.keys() - self._queue_again(missing)
                for job_id in jobs:
                    del self._hand_over[job_id]
                yield from ((job_id, missing[job_id]) for job_id in nobodys)
                if time.monotonic() >= ends:
                    return
        finally:
            self._hand_over.update(locked)

    def _adopt(self, job_ids: Sequence[UUID]) -> set[UUID]:
        rows = self._store.adopt(job_ids, dispatcher=self.dispatcher)
        for row in rows:
            if row.state not in FINAL:
                self._open(job_id=row.id, key=queueing.key_of(row), airflow_id=row.airflow_id, renew_in=0)
        return {row.id for row in rows}

    def _queue_again(self, jobs: Mapping[UUID, UUID]) -> set[UUID]:
        """Buffer what another scheduler queued and never wrote; return which that were.

        Should that one live after all and write it too: the same id is stored once.
        """
        if not jobs:
            return set()
        options = {"generator": self.jwt_generator, "sentry_integration": self.sentry_integration}
        again = set()
        for workload in workloads_of(list(jobs.values()), **options):
            job_id = queueing.assigned_id(workload)
            if job_id and job_id in jobs:
                self.queue_workload(workload, session=None)
                self._tried.add(job_id)
                self._inherited.add(job_id)
                again.add(job_id)
        return again

    def _take_over_late(self) -> None:
        """Go on with what did not fit into the adoption, or failed while the database was away."""
        for job_id, airflow_id in self._take_over(ends=self._turn_ends):
            self._fail_late(job_id, airflow_id)

    def _fail_late(self, job_id: UUID, airflow_id: UUID) -> None:
        """Fail what nobody can go on with, since Airflow counts it as ours by now."""
        reason = "the scheduler that queued it died before EdgeControl had it"
        self._endings.add(job_id=job_id, airflow_id=airflow_id, state=JobState.LOST, reason=reason)

    def _take_over_ended(self) -> None:
        """Tell what a dead scheduler left untold and Airflow does not offer, since the task has told Airflow itself."""
        if time.monotonic() >= self._next_overdue:
            self._next_overdue = time.monotonic() + OVERDUE_SECONDS
            self._store.adopt_overdue(dispatcher=self.dispatcher, seconds=self.config.outage_patience + OVERDUE_SECONDS)

    def _open(self, *, job_id: UUID, key: Any, airflow_id: UUID, renew_in: float) -> None:
        self._ledger.add(OpenJob(id=job_id, key=key, airflow_id=airflow_id), renew_at=time.monotonic() + renew_in)

    @functools.cached_property
    def _token_seconds(self) -> float:
        """For how long a token that Airflow mints for a queued workload is accepted."""
        return float(airflow_conf.getfloat("scheduler", "task_queued_timeout"))

    @contextmanager
    def _reaching_store(self, step: str) -> Iterator[bool]:
        """Around each thing that needs the database: False while that is left alone.

        A failure, ours too, makes a pause of this step; of all while there is no connection.
        """
        if not self._outage.may_try(step):
            yield False
            return
        done, away = self._store.done, self._outage.lasts
        kept = len(self._buffered_at)
        try:
            yield True
        except NoConnection as error:
            if self._outage.failed(step, alone=False):
                self.log.error("EdgeControl: the job table cannot be reached (%s workloads are kept): %s", kept, error)
        except StoreError as error:
            if self._outage.failed(step, alone=True):
                self.log.error("EdgeControl: could not %s (%s workloads are kept): %s", step, kept, error)
        except Exception:
            if self._outage.failed(step, alone=True):
                self.log.exception("EdgeControl: could not %s (%s workloads are kept)", step, kept)
        else:
            # A step that had nothing to do proves nothing.
            if self._store.done != done and self._outage.over(step):
                what = "the job table can be reached again" if away else f"can {step} again"
                self.log.info("EdgeControl: %s", what)
