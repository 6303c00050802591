"""Whether this machine may take work now, and if not, why; it asks Airflow's Execution API, and stops nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.retry import Backoff

#: How long an answer of Airflow's health address holds while jobs come in, and while none do: a parked poll is longer
#: than any answer is fresh, and a start that fails later is given back.
FRESH_SECONDS = 10.0
IDLE_FRESH_SECONDS = 150.0
#: A reason goes into every heartbeat; what a job has to do with it may be of any length.
REASON_CHARACTERS = 500


class Gate:
    """Collects the reasons against taking work: no runner, Airflow away, starts that did not work, a full disk."""

    def __init__(
        self,
        *,
        runner_ready: Callable[[], bool],
        execution_api: Callable[[], str],
        disk: Callable[[], str] = lambda: "",
    ) -> None:
        self._runner_ready = runner_ready
        self._disk = disk
        self._disk_in_doubt = False
        self._execution_api = execution_api
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._unhealthy = ""
        self._last_job_at = float("-inf")
        self._braked_until = float("-inf")
        self._brake_reason = ""
        self._brake = Backoff(first_seconds=1.0, most_seconds=60.0)

    def closed_because(self) -> str:
        """Empty when work may be taken. May ask Airflow, for seconds: never called with a lock held."""
        if not self._runner_ready():
            return "the task runner is not ready"
        now = time.monotonic()
        with self._lock:
            if now < self._braked_until:
                return self._brake_reason
            in_doubt = self._disk_in_doubt
        # Tried out with a file of our own: trying with jobs would take them from machines that have room.
        if in_doubt and (trouble := self._disk()):
            return f"the state directory takes no job: {trouble}"
        with self._lock:
            self._disk_in_doubt = self._disk_in_doubt and not in_doubt
            busy = now - self._last_job_at < IDLE_FRESH_SECONDS
            fresh = FRESH_SECONDS if busy or self._unhealthy else IDLE_FRESH_SECONDS
            if now - self._checked_at < fresh:
                return self._unhealthy
        unhealthy = self._execution_api()
        with self._lock:
            self._checked_at, self._unhealthy = time.monotonic(), unhealthy and f"Airflow's API: {unhealthy}"
            return self._unhealthy

    def job_came(self) -> None:
        with self._lock:
            self._last_job_at = time.monotonic()

    def start_failed(self, reason: str) -> None:
        """A start did not work here: pause before the next, longer each time, and ask Airflow and the disk anew."""
        with self._lock:
            self._braked_until = time.monotonic() + self._brake.next_seconds()
            self._brake_reason = reason[:REASON_CHARACTERS]
            self._checked_at = float("-inf")
            self._disk_in_doubt = True

    def start_worked(self) -> None:
        with self._lock:
            self._brake.reset()
