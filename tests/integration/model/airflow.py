"""What Airflow does to a task instance, as far as it concerns EdgeControl: the Execution API and the scheduler's loop.

Read off Airflow 3.3.2: `execution_api/routes/task_instances.py` and `jobs/scheduler_job_runner.py`. The executor in
each scheduler is the real one; its database can be away, or keep its answer to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from airflow.executors.executor_utils import ExecutorName
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_bridge.database import Connections, NoConnection, StoreAway
from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.outage import Outage
from airflow_bridge.task_instances import QueuedTask, TaskInstanceNow
from tests.integration.model.clock import Clock, Ids
from tests.unit.airflow_bridge.builders import task as workload_of

#: [core] and [scheduler] of Airflow, as shipped.
HEARTBEAT_TIMEOUT = 300
QUEUED_TIMEOUT = 600
RETRIES = 3
EXECUTOR_NAME = ExecutorName("airflow_bridge.executor.EdgeControlExecutor")
FINAL = frozenset({"success", "failed", "skipped"})
#: What a scheduler may queue: a new run, a retry, a task whose trigger has fired.
SCHEDULABLE = frozenset({None, "scheduled", "up_for_retry"})


@dataclass(eq=False)
class TaskInstance:
    """One row of Airflow's table; a retry of a running task gives it another id."""

    name: str
    id: UUID
    slots: int
    state: str | None = None
    try_number: int = 0
    #: The newest queueing, `external_executor_id`.
    job: UUID | None = None
    queued_by: Scheduler | None = None
    queued_at: float = 0.0
    next_method: bool = False
    heartbeat: float | None = None
    #: Whose start Airflow accepted last.
    process: Any = None

    @property
    def key(self) -> TaskInstanceKey:
        return TaskInstanceKey(self.name, "task", "run", self.try_number, -1)


class Airflow:
    """The table of task instances and what may be asked of it over the Execution API."""

    def __init__(self, *, clock: Clock, ids: Ids, cause_of: Callable[[TaskInstance], str]) -> None:
        self.clock = clock
        self.ids = ids
        #: Why a try may be given up; empty when nothing ever happened to it.
        self.cause_of = cause_of
        self.tasks: list[TaskInstance] = []
        self.away = False

    def add(self, *, slots: int) -> None:
        self.tasks.append(TaskInstance(name=f"task-{len(self.tasks)}", id=self.ids.new(), slots=slots))

    def by_id(self, ti_id: UUID) -> TaskInstance | None:
        return next((task for task in self.tasks if task.id == ti_id), None)

    def run(self, ti_id: UUID, process: Any, *, token: str) -> int:
        """`PATCH /run`: the status of the answer."""
        task = self.by_id(ti_id)
        if self.clock.now - float(token) > QUEUED_TIMEOUT:
            return 403
        if task is None:
            return 404
        if task.state == "running" and task.process is process:
            return 200
        if task.state != "queued":
            return 409
        task.state, task.process, task.heartbeat = "running", process, self.clock.now
        return 200

    def set_state(self, ti_id: UUID, process: Any, state: str) -> int:
        """`PATCH /state`. Airflow does not ask which process it comes from."""
        task = self.by_id(ti_id)
        if task is None:
            return 404
        if task.state == state:
            return 200
        if task.state != "running":
            return 409
        assert task.process is process, f"{task.name}: a process ended the run of another process"
        task.state = state
        task.next_method = state == "deferred"
        if state == "up_for_retry":
            task.id = self.ids.new()
        return 204

    def beat(self, ti_id: UUID, process: Any) -> int:
        """`PUT /heartbeat`."""
        task = self.by_id(ti_id)
        if task is None:
            return 410
        if task.process is not process or task.state != "running":
            return 409
        task.heartbeat = self.clock.now
        return 204

    def fire_triggers(self) -> None:
        for task in self.tasks:
            if task.state in ("deferred", "up_for_reschedule"):
                task.state = "scheduled"

    def workloads_of(self, ids: Collection[UUID], **options: Any) -> list[Any]:
        """In place of `airflow_bridge.task_instances.workloads_of`."""
        return [self.workload(task) for task in self.tasks if task.id in ids and task.state == "queued"]

    def queued_by(self, scheduler: int, *, seconds: float, after: Any, limit: int) -> tuple[list[QueuedTask], Any]:
        """In place of `airflow_bridge.task_instances.queued_by`."""
        return [
            QueuedTask(id=task.id, key=task.key, job_id=task.job, executor=None)
            for task in self.tasks
            if task.state == "queued"
            and task.queued_by
            and task.queued_by.number == scheduler
            and self.clock.now - task.queued_at > seconds
        ], None

    def give_back(self, tasks: Mapping[UUID, UUID | None], *, queued_by: int) -> list[QueuedTask]:
        """In place of `airflow_bridge.task_instances.give_back`."""
        found, _ = self.queued_by(queued_by, seconds=0, after=None, limit=0)
        same = [queued for queued in found if queued.id in tasks and tasks[queued.id] == queued.job_id]
        for queued in same:
            task = self.by_id(queued.id)
            assert task
            task.state, task.queued_by = "scheduled", None
        return same

    def workload(self, task: TaskInstance) -> Any:
        """`ExecuteTask.make`."""
        return workload_of(
            id=task.id,
            job_id=task.job,
            token=str(self.clock.now),
            dag_id=task.name,
            task_id="task",
            run_id="run",
            try_number=task.try_number,
            pool_slots=task.slots,
        )

    def look_up(self, ids: Collection[UUID]) -> dict[UUID, TaskInstanceNow]:
        """In place of `airflow_bridge.task_instances.look_up`."""
        return {
            task.id: TaskInstanceNow(
                key=task.key,
                state=task.state,
                job_id=task.job,
                silence=None if task.heartbeat is None else self.clock.now - task.heartbeat,
            )
            for task in self.tasks
            if task.id in ids
        }

    def give_up(self, task: TaskInstance, because: str) -> None:
        """`TaskInstance.handle_failure`: the try is over. Nobody may burn one to which nothing happened."""
        cause = self.cause_of(task)
        assert cause, f"{task.name} try {task.try_number} ({task.state}) was given up without a cause: {because}"
        if task.try_number > RETRIES:
            task.state = "failed"
            return
        if task.state == "running":
            task.id = self.ids.new()
        task.state, task.next_method = "up_for_retry", False


@dataclass(eq=False)
class FaultyConnections:
    """Real connections, which may be away before a statement, or after it."""

    connections: Connections
    fault: str = ""

    @contextmanager
    def borrow(self) -> Iterator[Any]:
        if self.fault == "away":
            raise NoConnection("no connection")
        with self.connections.borrow() as connection:
            yield connection
        if self.fault == "unanswered":
            raise StoreAway("the server closed the connection unexpectedly")


def _loud(*args: Any) -> None:
    raise


@dataclass(eq=False)
class Scheduler:
    """One scheduler process: the real executor in a loop like Airflow's."""

    airflow: Airflow
    connections: Connections
    number: int
    alive: bool = True
    frozen: bool = False
    #: Its row in Airflow's table `job`: others take over what it queued once this is not "running".
    counts_as_running: bool = True
    executor: EdgeControlExecutor = field(init=False)
    faults: FaultyConnections = field(init=False)

    def __post_init__(self) -> None:
        clock = self.airflow.clock
        executor = self.executor = EdgeControlExecutor(parallelism=32)
        executor._log = SimpleNamespace(  # type: ignore[assignment]
            debug=_quiet, info=_quiet, warning=_quiet, error=_quiet, exception=_loud
        )
        executor.log_task_event = _quiet  # type: ignore[method-assign]
        executor.start()
        self.faults = FaultyConnections(self.connections)
        executor._store._connections = self.faults  # type: ignore[assignment]
        executor._turns.outage = Outage(clock=clock.monotonic)
        executor._turns._log = executor._log
        executor._endings._look_up = self.airflow.look_up
        executor._endings._look_up_cleared = lambda keys: {}
        executor._endings._clock = clock.monotonic
        executor._reconciliation._look_up = self.airflow.look_up
        executor.job_id, executor.name = self.number, EXECUTOR_NAME
        executor.jwt_generator = SimpleNamespace(generate=lambda **said: str(clock.now))  # type: ignore[assignment]

    @property
    def acts(self) -> bool:
        return self.alive and not self.frozen

    @property
    def buffered(self) -> list[UUID]:
        """Queueings that it may not have written yet."""
        return [UUID(workload.ti.external_executor_id) for workload in self.executor.queued_tasks.values()]

    def queue(self, task: TaskInstance) -> None:
        """The critical section: QUEUED and the id of the queueing in one commit, then into the executor's buffer."""
        task.try_number += task.state in (None, "up_for_retry")  # what resumes stays the same try
        task.state, task.job, task.queued_by = "queued", self.airflow.ids.new(), self
        task.queued_at = self.airflow.clock.now
        self.executor.queue_workload(self.airflow.workload(task), session=None)

    def turn(self, *, fault: str = "", events_lost: bool = False) -> None:
        """The executor's heartbeat, then its events, then what Airflow looks at by itself."""
        self.counts_as_running = True
        self.faults.fault = fault
        self.executor._turns.next_watch = float("-inf")
        self.executor.heartbeat()
        events = self.executor.get_event_buffer()
        if not events_lost:  # rows that another scheduler has locked are skipped, and their events are gone
            for key, (state, info) in events.items():
                self._process(key, state, info)
        self._fail_silent()
        self._requeue_stuck()

    def adopt(self, others: Sequence[Scheduler], *, fault: str = "") -> None:
        """Take over or reset what schedulers queued that are not heard any more."""
        for other in others:
            if not other.acts:
                other.counts_as_running = False
        orphans = [
            task
            for task in self.airflow.tasks
            if task.state in ("queued", "running") and task.queued_by and not task.queued_by.counts_as_running
        ]
        self.faults.fault = fault
        views = [
            SimpleNamespace(id=task.id, key=task.key, external_executor_id=str(task.job), state=task.state)
            for task in orphans
        ]
        by_view = {id(view): task for view, task in zip(views, orphans, strict=True)}
        reset = [by_view[id(view)] for view in self.executor.try_adopt_task_instances(views)]
        for task in orphans:
            if task in reset:
                assert task.state == "queued", f"{task.name} runs, and was reset"
                task.id, task.state, task.job, task.queued_by = self.airflow.ids.new(), None, None, None
                task.next_method = False
            else:
                task.queued_by = self

    def _process(self, key: TaskInstanceKey, state: Any, info: Any) -> None:
        """`process_executor_events`, for one event of a task."""
        task = next(task for task in self.airflow.tasks if task.name == key.dag_id)
        open_here = task.try_number == key.try_number and task.state in ("scheduled", "queued", "running")
        requeued = (
            task.queued_by is not self
            or self.executor.has_task(SimpleNamespace(id=task.id, key=task.key))
            or (task.state == "scheduled" and state == "success" and task.next_method)
        )
        if open_here and not requeued:
            self.airflow.give_up(task, f"event {state}: {info}")

    def _fail_silent(self) -> None:
        now = self.airflow.clock.now
        for task in self.airflow.tasks:
            silent = task.state == "running" and now - (task.heartbeat or 0) > HEARTBEAT_TIMEOUT
            if silent and task.queued_by is self:
                self.executor.change_state(task.key, "failed", "heartbeat timeout", remove_running=True)

    def _requeue_stuck(self) -> None:
        now = self.airflow.clock.now
        for task in self.airflow.tasks:
            if task.state != "queued" or task.queued_by is not self or now - task.queued_at <= QUEUED_TIMEOUT:
                continue
            try:
                self.executor.revoke_task(ti=SimpleNamespace(id=task.id, key=task.key))
            except NotImplementedError:
                return
            task.state, task.queued_by = "scheduled", None


def _quiet(*args: Any, **kwargs: Any) -> None:
    """Nobody reads the log of an example."""
