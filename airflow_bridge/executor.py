"""EdgeControlExecutor: what Airflow's scheduler asks of an executor, answered from memory and a few bounded statements.

No SQL stands here, and no exception of ours leaves it: the scheduler's loop has nothing around its executors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID, uuid4

from airflow.executors.base_executor import BaseExecutor
from airflow.executors.workloads.base import BaseWorkloadSchema
from airflow.models.callback import CallbackKey
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import CallbackState, TaskInstanceState

from airflow_bridge import config, queueing
from airflow_bridge.adoption import Adoption
from airflow_bridge.airflow_features import CONNECTION_TESTS
from airflow_bridge.buffer import Buffer
from airflow_bridge.containment import contained, nothing
from airflow_bridge.endings import Ending, Endings
from airflow_bridge.fleet_metrics import FleetMeters
from airflow_bridge.ledger import Ledger, OpenJob
from airflow_bridge.metrics import Meters
from airflow_bridge.reconciliation import Reconciliation
from airflow_bridge.states import FINAL, JobState
from airflow_bridge.store import NewJob, Store
from airflow_bridge.stranded import Stranded
from airflow_bridge.task_instances import workloads_of
from airflow_bridge.tokens import Tokens
from airflow_bridge.turns import Turns
from airflow_bridge.verdict import Verdict

#: Of so many jobs that came back in one second it is said why; of more than that at once the fleet's log tells.
RELEASED_LIMIT = 500
#: What one turn of the scheduler's loop may spend here. No statement is begun beyond, but for one of each kind: jobs
#: that are written, endings that are told, and one step of the watch. The rest has its turn in the next one.
TURN_SECONDS = 3
#: The same for the scheduler's end: the next one queues again what was not written.
END_SECONDS = 10
#: Ends that stand in Airflow's audit log; of the others Airflow's own entries tell.
NOTEWORTHY = frozenset({JobState.LOST, JobState.REFUSED, JobState.REVOKED})

_HAND_OVER = "take over jobs of other schedulers"


class EdgeControlExecutor(BaseExecutor):
    """Hands Airflow's workloads to EdgeControl and tells Airflow how they ended.

    `running` holds what a worker has (claimed or running). Jobs that wait are only in the ledger: they occupy none of
    Airflow's slots, or one dead site would stop all of Airflow at [core] parallelism.
    """

    pre_assigns_external_executor_id: ClassVar[bool] = True
    supports_callbacks = True
    supports_connection_test = CONNECTION_TESTS
    supports_multi_team = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Also made in processes that only read logs or print settings: nothing is opened here.
        self.config = config.read(self.conf)
        self.dispatcher = uuid4()
        self._store = Store(self.config.database_url)
        self._ledger = Ledger()
        self._endings = Endings(self._store, self._ledger, patience=self.config.outage_patience)
        self.running: set[Any] = set()
        self.queued_connection_tests: dict[Any, Any] = {}  # Airflow has it since 3.3
        #: What workers have, with the attempts.
        self._held: dict[UUID, int] = {}
        self._event_logs: list[Any] = []
        self._to_revoke: set[UUID] = set()
        #: Jobs that nobody can go on with, with their task instances.
        self._nobodys: dict[UUID, UUID] = {}
        self._turns = Turns(self._store, log=self.log, kept=lambda: len(self._buffer))
        self._tokens = Tokens(self._store, self._ledger, mint=self._mint)
        self._buffer = Buffer(
            self, self._store, self._turns, self._tokens, stored=self._note_stored, refused=self._note_refused
        )
        self._adoption = Adoption(
            self._store,
            self._ledger,
            workloads_of=self._workloads_of,
            queue_again=self._queue_again,
            patience=self.config.outage_patience,
        )
        self._reconciliation = Reconciliation(
            self._store,
            self._ledger,
            self._endings,
            queue_wait_limit=self.config.queue_wait_limit,
            patience=self.config.outage_patience,
            note=lambda event, job, reason: self._note(event, job.key, reason),
        )
        self._stranded = Stranded(
            self._store,
            self._adoption,
            knowledge=self,
            wait_limit=self.config.queue_wait_limit,
            note=lambda key, reason: self._note("given back", key, reason),
            log=self.log,
        )
        self._meters = Meters(team_name=self.team_name)
        self._fleet_meters = FleetMeters(self._store, self._meters, team_name=self.team_name)
        self._watches: dict[str, Callable[[], None]] = {
            "see what workers hold": self._watch_held,
            _HAND_OVER: self._take_over_late,
            "revoke what Airflow gave up": self._revoke,
            "give back what nobody can go on with": self._give_back,
            "compare open jobs": lambda: self._reconciliation.compare_with_table(dispatcher=self.dispatcher),
            "see what Airflow waits for": lambda: self._reconciliation.compare_with_airflow(held=self._held),
            "renew tokens": lambda: self._tokens.renew(held=self._held, ends=self._turns.ends),
            "tell what others left": lambda: self._adoption.take_over_ended(dispatcher=self.dispatcher),
            "take over what others left waiting": self._take_over_abandoned,
            "look for tasks without a job": self._stranded.look_for_tasks,
            "look for callbacks without a job": self._stranded.look_for_callbacks,
            "read figures for metrics": self._look_at_fleet,
        }

    # What Airflow calls, in the order of a scheduler's life.

    @contained(otherwise=nothing)
    def start(self) -> None:
        """Called once, in a scheduler: from now on this instance is a dispatcher."""
        self.dispatcher = uuid4()
        self.log.info("EdgeControl: this scheduler is dispatcher %s", self.dispatcher)
        for complaint in (config.patience_complaint(self.config), config.token_complaint(self.config)):
            if complaint:
                self.log.error("EdgeControl: %s", complaint)

    def heartbeat(self) -> None:
        """One turn of the scheduler's loop."""
        self._turns.begin(seconds=TURN_SECONDS)
        super().heartbeat()

    def queue_workload(self, workload: Any, session: Any) -> None:
        """Only buffer: this runs inside the scheduler's critical section."""
        super().queue_workload(workload, session)
        self._buffer.add(workload)

    def trigger_tasks(self, open_slots: int) -> None:
        """Write all that is buffered, whatever the slots: jobs that wait for a worker occupy none."""
        super().trigger_tasks(len(self.queued_tasks) + len(self.queued_callbacks))

    def trigger_connection_tests(self) -> None:
        """The same for connection tests."""
        if self.queued_connection_tests:
            self._process_workloads(list(self.queued_connection_tests.values()))

    @contained(otherwise=nothing)
    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        self._buffer.write(workload_items)

    @contained(otherwise=nothing)
    def sync(self) -> None:
        """Tell Airflow of jobs that ended; once a second, compare what is believed with the table."""
        with self._meters.timing_sync():
            with self._turns.reaching_store("note what Airflow knows") as reachable:
                if reachable:
                    self._endings.confirm()
            with self._turns.reaching_store("read which jobs ended") as reachable:
                if reachable:
                    for ending in self._endings.collect(dispatcher=self.dispatcher):
                        self._tell(ending)
            self._turns.go_on_watching(self._watches)
        self._send_metrics()

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
        self._adoption.hand_over.update({job_id: ti.id for job_id, ti in mine.items()})
        with self._turns.reaching_store(_HAND_OVER) as reachable:
            if reachable:
                for job_id, airflow_id in self._adoption.take_over(
                    dispatcher=self.dispatcher, ends=time.monotonic() + TURN_SECONDS
                ):
                    if job_id in mine:
                        nobodys.append(mine[job_id])
                    else:
                        self._nobodys[job_id] = airflow_id
        return [ti for ti in nobodys if ti.state != TaskInstanceState.RUNNING]

    def revoke_task(self, *, ti: Any) -> None:
        """Called for task instances that are queued for long, which is no failure here: a site may be away overnight.

        NotImplementedError makes Airflow leave them alone. What has no job is found by `Stranded`: Airflow 3.3.2 asks
        here only for the first one (scheduler_job_runner.py:3027).
        """
        raise NotImplementedError("EdgeControl keeps jobs until [edgecontrol] queue_wait_limit")

    @contained(otherwise=nothing)
    def end(self) -> None:
        """The scheduler ends: write what is buffered, leave the rest to the next one. Work goes on at the edge."""
        self._turns.begin(seconds=END_SECONDS)
        self._buffer.drop_rolled_back()
        self.trigger_tasks(0)
        self.trigger_connection_tests()
        with self._turns.reaching_store("note what Airflow knows") as reachable:
            if reachable:
                self._endings.confirm()
        self._send_metrics()
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
        if not isinstance(ti_key, TaskInstanceKey):
            return  # a callback; Airflow asks that itself since 3.3
        super().log_task_event(event=event, extra=extra, ti_key=ti_key)
        # Airflow 3.3.2 saves them out of a generator, so that SQLAlchemy finds each one collected already, and its
        # columns empty (scheduler_job_runner.py:1268): somebody has to hold them.
        if len(self._task_event_logs) == 1:
            self._event_logs.clear()
        self._event_logs.append(self._task_event_logs[-1])

    def fail_connection_test(self, key: Any) -> None:
        """Airflow's reaper gave up a connection test, whoever had queued it."""
        super().fail_connection_test(key)
        self._give_up(key)
        if job_id := queueing.parse_id(key):
            self._buffer.drop(key, job_id=job_id)
            self._to_revoke.add(job_id)

    def knows_of(self, key: Any, job_id: UUID | None) -> bool:
        """True while this work is buffered, stored, or ended and not yet told."""
        return (
            key in self._ledger
            or key in self._buffer
            or job_id in self._adoption.hand_over
            or job_id in self._nobodys
            or (job_id is not None and (self._ledger.get(job_id) is not None or self._endings.knows_of(job_id)))
        )

    def _give_up(self, key: Any) -> None:
        """Airflow waits no longer: the job's process, if it lives, has to stop before another try begins."""
        if job_id := self._ledger.newest(key):
            self._to_revoke.add(job_id)
            self._ledger.forget(job_id)

    # Into the table.

    def _note_stored(self, job: NewJob) -> None:
        # What was buffered for long has an old token.
        renew_in = self._tokens.renew_in(left=job.token_seconds or 0)
        open_job = OpenJob(id=job.id, key=queueing.key_of(job), airflow_id=job.airflow_id, queue=job.queue)
        self._ledger.add(open_job, renew_at=time.monotonic() + renew_in)
        self._adoption.note_stored(job)

    def _note_refused(self, job: NewJob, reason: str) -> None:
        self._endings.add(
            job_id=job.id,
            kind=job.kind,
            airflow_id=job.airflow_id,
            state=JobState.FAILED,
            reason=f"EdgeControl could not store it: {reason}",
        )

    # Out of the table.

    def _tell(self, ending: Ending) -> None:
        reason = ending.reason or f"the job {ending.job_id} ended as {ending.state}"
        if ending.is_news and ending.state in NOTEWORTHY:
            self._note(ending.state, ending.key, reason)
        if ending.verdict is Verdict.PATIENCE:
            return
        self._meters.ended(ending.row, key=ending.key, known=self._ledger.get(ending.job_id))
        # First: while `has_task` is true Airflow takes the task for queued again, and drops the event.
        self._ledger.forget(ending.job_id)
        if ending.verdict is Verdict.SUCCESS:
            self.success(ending.key)
        elif ending.verdict is Verdict.FAILURE:
            self.fail(ending.key, reason)
        if ending.key not in self._ledger:
            self.running.discard(ending.key)

    def _note(self, event: str, key: Any, reason: str) -> None:
        """Tell people, in Airflow's audit log of the task, what became of its job."""
        if getattr(key, "dag_id", ""):
            self.log_task_event(event=f"edgecontrol {event}", extra=reason, ti_key=key)

    def _send_metrics(self) -> None:
        self._meters.send(buffered=len(self._buffer), away=self._turns.outage.lasts)

    def _look_at_fleet(self) -> None:
        self._fleet_meters.look(job_id=self.job_id)
        self._meters.forget_all_but(lambda job_id: self._ledger.get(job_id) is not None)

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
        for job_id in self._held.keys() - before.keys():
            if job := self._ledger.get(job_id):
                self._meters.started(job)
        for job_id in before.keys() - self._held.keys():
            # Released: its token may have grown old at the worker.
            self._ledger.renew(job_id, at=time.monotonic())
        self._note_released(before)

    def _note_released(self, before: Mapping[UUID, int]) -> None:
        """Tell people of what workers had and have no more, or in another attempt, and that has not ended."""
        gone = [job_id for job_id, attempt in before.items() if self._held.get(job_id) != attempt]
        open_ones = [job for job_id in gone[:RELEASED_LIMIT] if (job := self._ledger.get(job_id))]
        standings = self._store.standing([job.id for job in open_ones]) if open_ones else []
        released = {s.id: s for s in standings if s.state not in FINAL and s.dispatcher == self.dispatcher}
        for job in open_ones:
            if standing := released.get(job.id):
                again = standing.attempt != before[job.id]
                reason = standing.reason or ("it was not started, and handed out again" if again else "")
                self._note("released", job.key, reason or "it was not started")
                self._meters.event("released", queue=job.queue)

    # Adoption.

    def _take_over_late(self) -> None:
        """Go on with what did not fit into the adoption, or failed while the database was away."""
        self._nobodys.update(self._adoption.take_over(dispatcher=self.dispatcher, ends=self._turns.ends))

    def _give_back(self) -> None:
        """Let Airflow queue anew what nobody can go on with. What it does not have queued here goes its own way."""
        if self._nobodys:
            self._stranded.give_back({airflow_id: job_id for job_id, airflow_id in self._nobodys.items()})
            self._nobodys.clear()

    def _take_over_abandoned(self) -> None:
        """Go on with what a dead scheduler left waiting, unless Airflow waits for it no longer."""
        jobs = self._adoption.take_over_abandoned(dispatcher=self.dispatcher, team_name=self.team_name or "")
        if jobs:
            self._reconciliation.withdraw(jobs, held=self._held)

    def _workloads_of(self, ids: Sequence[UUID]) -> list[Any]:
        return workloads_of(ids, generator=self.jwt_generator, sentry_integration=self.sentry_integration)

    def _queue_again(self, workload: Any, job_id: UUID) -> None:
        self.queue_workload(workload, session=None)
        self._buffer.tried.add(job_id)

    def _mint(self, airflow_id: UUID) -> str:
        return BaseWorkloadSchema.generate_token(str(airflow_id), generator=self.jwt_generator)
