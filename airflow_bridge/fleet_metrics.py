"""Gauges of the whole fleet and its queues, which one scheduler sends for all: the eldest that is alive.

Of several that sent them, each would overwrite the others' figures, and heartbeats would count several times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from airflow_bridge import fleet
from airflow_bridge.fleet import QueueNow, WorkerNow
from airflow_bridge.metrics import EDGE3, GAUGE_SECONDS, Gauge, Meters
from airflow_bridge.schedulers import eldest
from airflow_bridge.store import Store

#: A figure of this name can be part of a metric's.
_FIT_FOR_A_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_LONGEST_FIGURE = 100


class FleetMeters:
    """The workers and queues of one team, or of none."""

    def __init__(
        self,
        store: Store,
        meters: Meters,
        *,
        team_name: str | None,
        eldest: Callable[[], int | None] = eldest,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._meters = meters
        self._team_name = team_name or ""
        self._eldest = eldest
        self._clock = clock
        self._next = float("-inf")
        #: When each worker was heard, as of the last look.
        self._heard: dict[str, float | None] = {}
        #: Queues that have been shown, so that what is empty by now is shown as empty.
        self._queues: set[str] = set()

    def look(self, *, job_id: object) -> None:
        """Every GAUGE_SECONDS, if the scheduler with this id is the one to do so: read the figures and let them go out.

        Nothing is read while the figures of the last look are still on their way.
        """
        if not self._meters.on or self._clock() < self._next or self._meters.gauges_left:
            return
        self._next = self._clock() + GAUGE_SECONDS
        if job_id is None or self._eldest() != job_id:
            # Whoever sends them next time has missed heartbeats in between.
            self._heard.clear()
            return
        workers = self._store.workers_now(team_name=self._team_name)
        self._count_heartbeats(workers)
        # Of one that never came there is nothing to say; while edge3 is migrated from, that one still speaks for it.
        came = [worker for worker in workers if worker.heard_at is not None]
        self._meters.gauges(gauge for worker in came for gauge in of_worker(worker))
        self._meters.gauges(self._of_queues(workers, self._store.queues_now(team_name=self._team_name)))

    def _count_heartbeats(self, workers: Iterable[WorkerNow]) -> None:
        before, self._heard = self._heard, {worker.name: worker.heard_at for worker in workers}
        for name, heard_at in self._heard.items():
            if name in before and heard_at != before[name]:
                self._meters.heartbeat(name)

    def _of_queues(self, workers: Iterable[WorkerNow], queues: Iterable[QueueNow]) -> Iterator[Gauge]:
        now = {queue.name: queue for queue in queues}
        served = {name for worker in workers for name in worker.queues or ()}
        self._queues |= now.keys() | served
        for name in sorted(self._queues):
            queue = now.get(name, QueueNow(name=name, waiting=0, waiting_seconds=0.0, held=0))
            yield "edgecontrol.jobs.waiting", queue.waiting, {"queue": name}
            yield "edgecontrol.jobs.waiting_seconds", round(queue.waiting_seconds), {"queue": name}
            yield "edgecontrol.jobs.held", queue.held, {"queue": name}


def of_worker(worker: WorkerNow) -> Iterator[Gauge]:
    """Names, tags and meanings of Airflow's own edge executor, for one worker."""
    tags = {"worker_name": worker.name}
    connected = worker.state not in fleet.GONE
    queues = list(worker.queues or ()) if connected else []
    yield "edge_worker.status", status(worker), tags
    yield "edge_worker.connected", int(connected), tags
    yield "edge_worker.maintenance", int(worker.state in fleet.MAINTENANCE), tags
    yield "edge_worker.jobs_active", worker.jobs, tags
    yield "edge_worker.concurrency", worker.concurrency if connected else 0, tags
    yield "edge_worker.free_concurrency", max(0, worker.concurrency - worker.slots) if connected else 0, tags
    yield "edge_worker.num_queues", len(queues), {**tags, "queues": ",".join(queues)}
    for figure, value in worker.sysinfo.items() if connected else ():
        name = f"edge_worker.{figure}"
        if isinstance(value, int | float) and is_fit(figure) and name not in EDGE3:
            yield name, float(value) if isinstance(value, float) else int(value), tags


def status(worker: WorkerNow) -> int:
    """How it is, as a level of Python's logging; what its own function says comes first."""
    if worker.state in fleet.GONE:
        return logging.NOTSET
    own = worker.sysinfo.get("status")
    if isinstance(own, int) and not isinstance(own, bool):
        return own
    return logging.WARNING if worker.hindered else logging.INFO


def is_fit(figure: str) -> bool:
    return 0 < len(figure) <= _LONGEST_FIGURE and _FIT_FOR_A_NAME.issuperset(figure)
