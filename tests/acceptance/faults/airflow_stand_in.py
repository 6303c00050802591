"""Airflow as the fault cases need it: the Execution API's rules for starts, heartbeats and ends, and a scheduler.

The rules are those of Airflow 3.3.2 (`execution_api/routes/task_instances.py`); the scheduler's half goes to the job
table by the bridge's own statements and reaches its verdicts by the bridge's own rules.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_bridge.database import StoreError
from airflow_bridge.store import JobRow, NewJob, Store
from airflow_bridge.task_instances import TaskInstanceNow
from airflow_bridge.verdict import GONE_SILENCE_SECONDS, Verdict, needs_airflow, reach, settled
from tests.acceptance.faults.pace import seconds

SYNC_SECONDS = 0.2
#: States in which a try ends.
ENDED = frozenset({"success", "failed", "skipped", "up_for_retry"})


@dataclass
class Try:
    """One task instance: a try of a task, as Airflow's table has it."""

    task: Task
    id: UUID
    number: int
    state: str = "queued"
    #: The queueing that is in force.
    job_id: UUID | None = None
    #: Who runs it: (host name, process).
    runner: tuple[str, int] | None = None
    heard_at: float = 0.0
    #: Starts that were agreed to, repeats of the same one not counted.
    starts: int = 0
    #: Queueings that have ended in a deferral.
    deferred: list[UUID] = field(default_factory=list)


@dataclass
class Task:
    """What somebody wants done, whatever number of tries it takes."""

    spec: dict[str, Any]
    queue: str
    slots: int
    #: What it must come to.
    expected: str
    retries: int
    tries: list[Try] = field(default_factory=list)
    queued_at: float = 0.0
    ended_at: float = 0.0
    #: False: no table takes it, so it has no job.
    storable: bool = True

    @property
    def state(self) -> str:
        return self.tries[-1].state

    @property
    def name(self) -> str:
        return str(self.tries[0].id)


class Airflow:
    """One scheduler's tasks, and the API that their supervisors speak to."""

    def __init__(self, *, patience: int) -> None:
        self.patience = patience
        self.dispatcher = uuid4()
        self.tasks: list[Task] = []
        self.requests = 0
        #: (task, why): tries that a verdict of failure ended.
        self.failures: list[tuple[Task, str]] = []
        #: Deferred tries whose trigger has fired; whoever schedules queues them again.
        self.resuming: list[Try] = []
        self._tries: dict[UUID, Try] = {}
        self._lock = threading.RLock()
        self._store: Store | None = None
        self._telling: list[JobRow] = []
        #: Next tries of tasks that said themselves that they failed.
        self._retrying: list[NewJob] = []
        self._ended = threading.Event()
        self._server: ThreadingHTTPServer | None = self._listen(0)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    # --- people and the scheduler

    def queue(
        self,
        store: Store,
        *specs: dict[str, Any],
        queue: str = "floor",
        slots: int = 1,
        expected: str = "success",
        retries: int = 0,
    ) -> list[Task]:
        """Queue one task for each of the stand-in's specs, in one batch."""
        with self._lock:
            tasks = [Task(spec, queue, slots, expected, retries) for spec in specs]
            jobs = [self._next_try(task) for task in tasks]
            self.tasks += tasks
        store.enqueue(jobs)
        return tasks

    def start_scheduler(self, store: Store) -> None:
        """Tell endings, and queue what is tried again or resumes, until closed; a database that is away is retried."""
        self._store = store
        threading.Thread(target=self._schedule, daemon=True).start()

    def leave_scheduling(self) -> None:
        """Somebody else tells endings and queues what resumes from now on; see `ExecutorScheduler`."""
        self._ended.set()

    def unfinished(self) -> list[Task]:
        with self._lock:
            return [task for task in self.tasks if task.state not in ENDED]

    def refuse_connections(self) -> None:
        """As an api-server that is down."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()

    def reopen(self) -> None:
        if self._server is None:
            self._server = self._listen(self.port)

    def close(self) -> None:
        self._ended.set()
        self.refuse_connections()

    def _next_try(self, task: Task) -> NewJob:
        one = Try(task=task, id=uuid4(), number=len(task.tries) + 1, job_id=uuid4())
        task.tries.append(one)
        task.queued_at = task.queued_at or time.monotonic()
        self._tries[one.id] = one
        return self._job(one)

    def resume(self) -> list[Try]:
        """Queue the deferred tries again whose trigger has fired: the same tries, under new ids of the queueing."""
        with self._lock:
            resumed, self.resuming = self.resuming, []
            for one in resumed:
                one.state, one.job_id, one.runner = "queued", uuid4(), None
            return resumed

    def spec(self, one: Try) -> dict[str, Any]:
        """What the stand-in's supervisor has to do for this queueing: after a deferral, what stands under `then`."""
        spec: dict[str, Any] = one.task.spec
        for _ in one.deferred:
            spec = spec["then"]
        halves = f"/{len(one.deferred) + 1}" if one.deferred else ""
        return {**{key: value for key, value in spec.items() if key != "then"}, "name": one.task.name + halves}

    def _job(self, one: Try) -> NewJob:
        name = one.task.name
        path = f"dag_id=d/run_id=r/task_id={name}/attempt={one.number}.log"
        assert one.job_id is not None
        return NewJob(
            id=one.job_id,
            kind="ExecuteTask",
            airflow_id=one.id,
            workload={
                "type": "ExecuteTask",
                "ti": {"id": str(one.id), "task": self.spec(one)},
                "log_path": path,
            },
            token=f"token-of-{one.id}",
            queue=one.task.queue,
            slots=one.task.slots,
            priority=1,
            team_name="",
            dispatcher=self.dispatcher,
            dag_id="d",
            task_id=name,
            run_id="r",
            try_number=one.number,
            log_path=path,
        )

    def _schedule(self) -> None:
        while not self._ended.wait(SYNC_SECONDS):
            assert self._store is not None
            try:
                self.sync(self._store)
            except StoreError:
                self._ended.wait(1.0)

    def sync(self, store: Store) -> None:
        """One turn of the bridge's `sync`: confirm what was told, tell what has ended, queue what is tried again."""
        told = [row.id for row in self._telling if settled(row, now=self._now(row))]
        if told:
            store.mark_told(told)
        self._telling = []
        retries = [self._job(one) for one in self.resume()]
        with self._lock:
            retries += self._retrying
            self._retrying = []
        for row in store.untold(dispatcher=self.dispatcher, besides=[], limit=1000):
            with self._lock:
                now = self._now(row) if needs_airflow(row) else None
                verdict = reach(row, now=now, patience=self.patience, gone_silence=seconds(GONE_SILENCE_SECONDS))
                if verdict is Verdict.PATIENCE:
                    continue
                self._telling.append(row)
                if retry := self._act(row, verdict):
                    retries.append(retry)
        if retries:
            store.enqueue(retries)

    def _act(self, row: JobRow, verdict: Verdict) -> NewJob | None:
        """What Airflow does about an event: end an open try, and queue the next one if there is one."""
        one = self._tries.get(row.airflow_id)
        if one is None or one.job_id != row.id:
            return None
        if one.state in ("queued", "running") and verdict in (Verdict.SUCCESS, Verdict.FAILURE):
            one.state = "failed"  # a state mismatch is a failure too
            self.failures.append((one.task, row.reason))
            if len(one.task.tries) <= one.task.retries:
                return self._next_try(one.task)
            one.task.ended_at = time.monotonic()
        return None

    def _now(self, row: JobRow) -> TaskInstanceNow | None:
        return self.now(row.airflow_id)

    def now(self, airflow_id: UUID) -> TaskInstanceNow | None:
        """A task instance as Airflow's table has it; None when there is none."""
        with self._lock:
            one = self._tries.get(airflow_id)
            if one is None:
                return None
            return TaskInstanceNow(
                key=TaskInstanceKey("d", one.task.name, "r", one.number, -1),
                state=one.state,
                job_id=one.job_id,
                silence=time.monotonic() - one.heard_at if one.heard_at else None,
            )

    # --- the Execution API

    def call(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one request, as (status, body)."""
        with self._lock:
            self.requests += 1
            if path == "/execution/health":
                return 200, {"status": "healthy"}
            _, _, _, task, verb = path.split("/")
            one = self._tries.get(UUID(task))
            if one is None:
                return 404, {"detail": {"reason": "not_found"}}
            act: Callable[[Try, dict[str, Any]], tuple[int, dict[str, Any]]]
            act = {"run": self._run, "heartbeat": self._heartbeat, "state": self._state}[verb]
            return act(one, body)

    def _run(self, one: Try, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        runner = (body["hostname"], body["pid"])
        if one.state == "running" and one.runner == runner:
            return 200, {}
        if one.state != "queued":
            return conflict("invalid_state", one)
        one.state, one.runner, one.heard_at = "running", runner, time.monotonic()
        one.starts += 1
        return 200, {}

    def _heartbeat(self, one: Try, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if one.runner != (body["hostname"], body["pid"]):
            return conflict("running_elsewhere", one)
        if one.state != "running":
            return conflict("not_running", one)
        one.heard_at = time.monotonic()
        return 200, {}

    def _state(self, one: Try, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body["state"] == one.state:
            return 200, {}
        if one.state != "running":
            return conflict("invalid_state", one)
        one.state, one.heard_at = body["state"], time.monotonic()
        one.task.ended_at = time.monotonic()
        if one.state == "failed" and len(one.task.tries) <= one.task.retries:
            self._retrying.append(self._next_try(one.task))
        if one.state == "deferred":
            assert one.job_id is not None
            one.deferred.append(one.job_id)
            self.resuming.append(one)  # as a trigger does that fires at once
        return 200, {}

    def _listen(self, port: int) -> ThreadingHTTPServer:
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if airflow._server is None:
                    self.close_connection = True
                    return
                status, body = airflow.call(self.command, self.path, json.loads(raw or b"{}"))
                content = json.dumps(body).encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = answer

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # killed tasks reset their connections
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


def conflict(reason: str, one: Try) -> tuple[int, dict[str, Any]]:
    return 409, {"detail": {"reason": reason, "previous_state": one.state}}


def tries_of(tasks: Iterable[Task]) -> dict[UUID, Try]:
    """Every try by the id of its queueing."""
    return {one.job_id: one for task in tasks for one in task.tries if one.job_id is not None}
