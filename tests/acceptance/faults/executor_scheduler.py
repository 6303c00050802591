"""A scheduler's loop around the real executor, with the stand-in's tasks: what the bridge remembers is the product's.

What it does about events is what Airflow 3.3.2 does (`SchedulerJobRunner.process_executor_events`).
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Collection, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import tests.airflow_home  # noqa: F401  (before anything of Airflow)
from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.store import NewJob
from airflow_bridge.task_instances import TaskInstanceNow
from tests.acceptance.faults.airflow_stand_in import Airflow
from tests.acceptance.faults.pace import PACE
from tests.unit.airflow_bridge import builders

TURN_SECONDS = 0.2
OPEN = ("scheduled", "queued", "running", "restarting")


class ExecutorScheduler:
    """Queues, tells endings and resumes deferrals for `airflow` through an executor of its own.

    `airflow.queue(scheduler, ...)` takes it in place of a store.
    """

    def __init__(self, airflow: Airflow, *, database_url: str) -> None:
        self.airflow = airflow
        settings = {
            "AIRFLOW__EDGECONTROL__DATABASE_URL": database_url,
            "AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE": str(PACE.patience),
        }
        with patch.dict(os.environ, settings):
            self.executor = EdgeControlExecutor(parallelism=1000)
        self.executor._endings._look_up = self._look_up
        self.executor._endings._look_up_cleared = lambda keys: {}  # nobody clears tasks here
        self.executor._reconciliation._look_up = self._look_up
        self.executor.start()
        #: What a real scheduler would have died of.
        self.errors: list[str] = []
        #: Events of failure: (task id, try, reason).
        self.failures: list[tuple[str, int, str]] = []
        self.slowest_turn = 0.0
        self._inbox: list[Any] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        airflow.leave_scheduling()

    def enqueue(self, jobs: Sequence[NewJob]) -> None:
        """Queue these tasks with the next turn."""
        self._inbox += [self.workload(job) for job in jobs]

    @staticmethod
    def workload(job: NewJob) -> Any:
        """What Airflow would have made of this queueing."""
        return builders.task(
            id=job.airflow_id,
            job_id=job.id,
            token=job.token,
            dag_id=job.dag_id,
            task_id=job.task_id,
            run_id=job.run_id,
            try_number=job.try_number,
            queue=job.queue,
            pool_slots=job.slots,
            context_carrier=job.workload["ti"]["task"],
        )

    def add(self, *workloads: Any) -> None:
        """Queue workloads that stand for no task of the stand-in's."""
        self._inbox += workloads

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(30)
        self.executor.end()

    def turn(self) -> None:
        """One loop of the scheduler. Whatever it raises is noted, since a scheduler has nothing around it."""
        began = time.monotonic()
        try:
            self.enqueue([self.airflow._job(one) for one in self.airflow.resume()])
            inbox, self._inbox = self._inbox, []
            for workload in inbox:
                self.executor.queue_workload(workload, session=None)
            self.executor.heartbeat()
            for key, (state, info) in self.executor.get_event_buffer().items():
                self._act(key, str(state), info)
        except Exception:
            self.errors.append(traceback.format_exc())
        self.slowest_turn = max(self.slowest_turn, time.monotonic() - began)

    def _run(self) -> None:
        while not self._ended.wait(TURN_SECONDS):
            self.turn()

    def _act(self, key: Any, state: str, info: Any) -> None:
        with self.airflow._lock:
            tries = [one for task in self.airflow.tasks for one in task.tries]
            one = next((one for one in tries if (one.task.name, one.number) == (key.task_id, key.try_number)), None)
            if state == "failed":
                self.failures.append((key.task_id, key.try_number, str(info)))
            if one is None:
                return
            if state in ("queued", "running"):
                one.job_id = UUID(info)
            elif one.state in OPEN and not self.executor.has_task(SimpleNamespace(key=key, id=one.id)):
                if one.state == "scheduled" and state == "success":
                    return  # resumed before its first half was told
                one.state, one.task.ended_at = "failed", time.monotonic()
                self.airflow.failures.append((one.task, f"event {state}: {info}"))

    def _look_up(self, ids: Collection[UUID]) -> dict[UUID, TaskInstanceNow]:
        found = {task_id: self.airflow.now(task_id) for task_id in ids}
        return {task_id: now for task_id, now in found.items() if now is not None}
