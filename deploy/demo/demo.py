"""The story of the demo: which part starts when, what makes it ready, how the example runs.

One thread starts each part as soon as what it needs is ready, and looks at all of them ten times a second, so
a part that dies is noticed at once.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from .airflow_api import FINISHED, AirflowApi
from .database import addresses
from .environments import ADMIN, Environments, free_port
from .parts import DAG_ID, WORKER, Parts, bring_up
from .processes import PartFailed, Processes, only_one
from .screen import Screen

#: What ends the demo, all in the same orderly way.
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Outcome:
    """What became of the example's run."""

    run_id: str
    worker: str
    seconds: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.run_id} succeeded on {self.worker} in {self.seconds:.1f} s, {self.tasks} tasks"


class Demo:
    """All programs of EdgeControl and Airflow on this machine, as a context manager.

    Entering stops what a killed demo left behind; leaving stops everything this one started.
    """

    def __init__(self, state_dir: Path, *, screen: Screen | None = None, seconds: float = 300) -> None:
        self.state_dir = state_dir.resolve()
        self.screen = screen or Screen()
        self.seconds = seconds

    def __enter__(self) -> Self:
        self.deadline = time.monotonic() + self.seconds
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = only_one(self.state_dir)
        # Only noted, and looked at in `look`: an exception raised anywhere could get lost in the middle of a fork,
        # and an impatient second Ctrl-C could leave half of everything running.
        self.interrupted = False
        self._handlers = {number: signal.signal(number, self._interrupt) for number in INTERRUPTS}
        self.processes = Processes(self.state_dir)
        began = time.monotonic()
        if count := self.processes.stop_leftovers():
            self.screen.done(f"{count} processes of a killed demo ended", time.monotonic() - began)
        addresses(self.state_dir).unlink(missing_ok=True)
        control_plane_port = free_port(8086)
        airflow_port = free_port(8080, not_this=control_plane_port)
        self.programs = Environments(self.state_dir, control_plane_port, airflow_port)
        self.airflow = AirflowApi(self.programs.airflow_url, user=ADMIN, password=self.programs.password)
        self.parts = Parts(self.programs, self.processes, self.airflow)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = time.monotonic()
        self.screen.now("Stopping everything")
        self.processes.stop()
        self._lock.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self.screen.done("everything stopped", time.monotonic() - began)

    def start(self) -> None:
        """Start every part; return when the example can be triggered.

        Raises PartFailed for a part that ends early or is not ready in time.
        """
        bring_up(self.parts.all(), look=self.look, done=self.screen.done)
        self.parts.remember_migration()

    def look(self, what: str) -> None:
        """Show what goes on, then wait a moment.

        Raises PartFailed when a part died or the time is over, KeyboardInterrupt after Ctrl-C.
        """
        self.screen.now(what)
        if time.monotonic() > self.deadline:
            raise PartFailed(what, f"and not done after {self.seconds:.0f} s", self.processes.logs)
        self._watch()

    def stay(self) -> None:
        """Keep everything up until Ctrl-C. Raises PartFailed when a part dies, and KeyboardInterrupt."""
        while True:
            self._watch()

    def _watch(self) -> None:
        self.processes.check()
        if self.interrupted:
            raise KeyboardInterrupt
        time.sleep(0.1)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True

    def run_example(self, watch: Callable[[str], object] = lambda run_id: None) -> Outcome:
        """Trigger the example DAG and follow it to its end; `watch` is called with the run's id all along.

        Raises PartFailed when the run fails.
        """
        for old in self.airflow.unfinished_runs(DAG_ID):
            self.airflow.call("PATCH", f"dags/{DAG_ID}/dagRuns/{old}", json={"state": "failed"})
        run = self.airflow.call("POST", f"dags/{DAG_ID}/dagRuns", json={"logical_date": None})
        run_id: str = run["dag_run_id"]
        began, shown = time.monotonic(), 0
        while run["state"] not in FINISHED:
            watch(run_id)
            tasks = self.airflow.task_instances(DAG_ID, run_id)
            done = sum(task["state"] in FINISHED for task in tasks)
            what = f"Running {DAG_ID}: {done} of {len(tasks)} tasks"
            if not self.screen.is_terminal and done >= shown + 10:
                self.screen.line(f"  {what}")
                shown = done
            next_at = time.monotonic() + 1
            while time.monotonic() < next_at:
                self.look(what)
            run = self.airflow.call("GET", f"dags/{DAG_ID}/dagRuns/{run_id}")
        tasks = self.airflow.task_instances(DAG_ID, run_id)
        if run["state"] == "failed":
            raise self._failure_of(run_id, tasks)
        while self.parts.unfinished_jobs(
            run_id
        ):  # Airflow knows of a task's end a moment before its agent has reported it
            self.look(f"Waiting for the last report of {WORKER}")
        self.screen.done(f"{DAG_ID}: {len(tasks)} tasks", time.monotonic() - began)
        return Outcome(run_id, self._worker_of(run_id), run["duration"], len(tasks))

    def _failure_of(self, run_id: str, tasks: list[dict[str, Any]]) -> PartFailed:
        """Name the tasks that failed, and keep the log of the first: Airflow's UI will not be there to show it."""
        failed = [task for task in tasks if task["state"] == "failed"]
        log = self.processes.logs / f"{DAG_ID}.log"
        with log.open("w") as file:
            for task in failed[:1]:
                one = task["task_id"], task["map_index"], task["try_number"]
                file.writelines(f"{json.dumps(line)}\n" for line in self.airflow.log(DAG_ID, run_id, *one))
        names = ", ".join(sorted({task["task_id"] for task in failed})) or "no task"
        return PartFailed(f"{DAG_ID} ({run_id})", f"failed, at {names}", log)

    def _worker_of(self, run_id: str) -> str:
        names = self.parts.rows(
            "edgecontrol",
            "SELECT DISTINCT w.name FROM edgecontrol.job j JOIN edgecontrol.worker w ON w.id = j.worker_id"
            " WHERE j.dag_id = %s AND j.run_id = %s",
            DAG_ID,
            run_id,
        )
        return ", ".join(sorted(name for (name,) in names))
