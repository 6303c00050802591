"""What can be watched in Airflow's own statsd, Datadog or OpenTelemetry: names, tags, and when something is counted.

Names and tags of `edge_*` are those of Airflow's own edge executor. Nothing here raises, and nothing waits: counters
add up until the end of a turn, and what does not fit into a turn's share goes out in the next.
"""

from __future__ import annotations

import logging
import re
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from airflow.configuration import conf as airflow_conf

from airflow_bridge.airflow_features import EXPANDS_NAMES, stats
from airflow_bridge.ledger import OpenJob
from airflow_bridge.states import JobState, Kind
from airflow_bridge.store import JobRow

log = logging.getLogger(__name__)

#: What one turn may spend on sending.
SEND_SECONDS = 0.02
#: Gauges are sent this often; of a fleet of hundreds as fast as the turns' shares allow.
GAUGE_SECONDS = 10.0
SAY_EVERY = 60.0
#: Endings that are remembered, since an event that Airflow dropped is told again.
REMEMBERED = 10_000
#: Outcomes of a task that are no success although its process ended well.
UNSUCCESSFUL = frozenset({"failed", "up_for_retry", "upstream_failed", "removed"})

#: Our own names: kind, tags beside `team_name`, and what they say. A tag in brackets is left out when it is unknown.
OWN: dict[str, tuple[str, tuple[str, ...], str]] = {
    "edgecontrol.jobs.waiting": ("gauge", ("queue",), "Jobs that wait in a queue; 10,000 means so many or more."),
    "edgecontrol.jobs.waiting_seconds": ("gauge", ("queue",), "For how long the longest waiting of these has waited."),
    "edgecontrol.jobs.held": ("gauge", ("queue",), "Jobs of a queue that workers have, started or about to be."),
    "edgecontrol.jobs.lost": ("counter", ("queue",), "Jobs given up with evidence: rebooted, silent, forgotten."),
    "edgecontrol.jobs.released": ("counter", ("queue",), "Hand-outs that came back without having been started."),
    "edgecontrol.jobs.refused": ("counter", ("queue",), "Starts that Airflow did not want any more."),
    "edgecontrol.jobs.revoked": (
        "counter",
        ("queue",),
        "Jobs withdrawn, by an operator, by Airflow or by a newer job.",
    ),
    "edgecontrol.jobs.expired": ("counter", ("queue",), "Jobs that failed without ever having been started."),
    "edgecontrol.buffered": ("gauge", ("scheduler",), "Workloads that this scheduler has not stored yet."),
    "edgecontrol.table_away": ("gauge", ("scheduler",), "1 while this scheduler cannot reach the job table, else 0."),
}

#: Characters that every one of Airflow's backends takes in a name.
_UNFIT = re.compile(r"[^a-zA-Z0-9_.-]")
#: Airflow refuses names of more than 250 characters, loudly. Tags that go into a name may have this much of it.
_LONGEST, _LONGEST_INFLUX = 215, 160
_SHORTEST_CUT = 20

Tags = Mapping[str, str]
Gauge = tuple[str, float, Tags]


class Meters:
    """Counts and sends for one executor; silent while Airflow has no metrics configured."""

    def __init__(
        self, *, team_name: str | None, scheduler: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._team: dict[str, str] = {"team_name": team_name} if team_name else {}
        self._scheduler = scheduler or socket.gethostname()
        self._clock = clock
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._gauges: deque[Iterator[Gauge]] = deque()
        self._next_own = float("-inf")
        self._next_word = float("-inf")
        #: Open jobs whose start is counted.
        self._started: set[UUID] = set()
        #: Jobs whose end is counted, oldest first.
        self._ended: dict[UUID, None] = {}
        options = ("statsd_on", "statsd_datadog_enabled", "otel_on")
        self.on = any(airflow_conf.getboolean("metrics", option, fallback=False) for option in options)
        self._by_name_too = airflow_conf.getboolean("metrics", "legacy_names_on", fallback=True)
        self._influx = airflow_conf.getboolean("metrics", "statsd_influxdb_enabled", fallback=False)

    # What is counted.

    def started(self, job: OpenJob) -> None:
        """A worker has it. Once for each job, however often it is handed out."""
        with self._harmless():
            self._started_once(job)

    def ended(self, row: JobRow, *, key: Any, known: OpenJob | None) -> None:
        """It has come to its end. Once for each job; `known` is what was believed of it until now, if anything.

        What started has one end, so that the difference of the two counters is what runs.
        """
        with self._harmless():
            if self.on and row.id not in self._ended:
                self._ended[row.id] = None
                if len(self._ended) > REMEMBERED:
                    del self._ended[next(iter(self._ended))]
                if row.attempt and known:
                    self._started_once(known)  # it may have come and gone between two looks
                self._started.discard(row.id)
                self._count_end(row, key)

    def _started_once(self, job: OpenJob) -> None:
        if self.on and job.id not in self._started:
            self._started.add(job.id)
            if not job.handed_out:
                self._count_task("edge_worker.ti.start", job.key, queue=job.queue)

    def _count_end(self, row: JobRow, key: Any) -> None:
        well = row.state == JobState.SUCCESS and row.airflow_outcome not in UNSUCCESSFUL
        if row.attempt and row.kind == Kind.TASK:
            self._count_task("edge_worker.ti.finish", key, queue=row.queue, state="success" if well else "failed")
        if row.state in (JobState.LOST, JobState.REFUSED, JobState.REVOKED):
            self.event(row.state, queue=row.queue)
        elif row.state == JobState.FAILED and not row.attempt:
            self.event("expired", queue=row.queue)

    def event(self, what: str, *, queue: str) -> None:
        """Count what became of a job, in the words of `edgecontrol.jobs.*`."""
        self._count(f"edgecontrol.jobs.{what}", {"queue": queue})

    def heartbeat(self, worker: str) -> None:
        """A worker has been heard since the last look; several heartbeats between two looks are one."""
        self._count("edge_worker.heartbeat_count", {"worker_name": worker})

    def _count_task(self, name: str, key: Any, **tags: str) -> None:
        if hasattr(key, "dag_id"):
            self._count(name, {"dag_id": key.dag_id, "task_id": key.task_id, **tags})

    def _count(self, name: str, tags: Tags) -> None:
        if self.on:
            self._counts[name, tuple({**tags, **self._team}.items())] += 1

    # What is sent.

    @contextmanager
    def timing_sync(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if self.on:
                with self._harmless():
                    stats.timing("edge_executor.sync.duration", (time.perf_counter() - began) * 1000, tags=self._team)

    def gauges(self, gauges: Iterable[Gauge]) -> None:
        """Let these go out, turn by turn, after those that have not yet."""
        self._gauges.append(iter(gauges))

    @property
    def gauges_left(self) -> bool:
        """Some are still on their way."""
        return bool(self._gauges)

    def forget_all_but(self, is_open: Callable[[UUID], bool]) -> None:
        """Of the jobs whose start was counted, keep those that are still open."""
        self._started = {job_id for job_id in self._started if is_open(job_id)}

    def send(self, *, buffered: int, away: bool, seconds: float = SEND_SECONDS) -> None:
        """Send what has come together, as far as it goes in that time."""
        if not self.on:
            return
        with self._harmless():
            if self._clock() >= self._next_own:
                self._next_own = self._clock() + GAUGE_SECONDS
                own: list[Gauge] = [
                    ("edgecontrol.buffered", buffered, {"scheduler": self._scheduler}),
                    ("edgecontrol.table_away", int(away), {"scheduler": self._scheduler}),
                ]
                # First, as what has piled up behind a fleet's figures must not hide that something is wrong.
                self._gauges.appendleft(iter(own))
            ends = time.perf_counter() + seconds
            for send, name, value, tags in self._messages():
                self._send(send, name, value, tags)
                if time.perf_counter() >= ends:
                    return

    def _messages(self) -> Iterator[tuple[Callable[..., None], str, float, dict[str, str]]]:
        """Counters first: each is told once, and a gauge again and again."""
        while self._counts:
            (name, labels), count = self._counts.popitem()
            yield stats.incr, name, count, dict(labels)
        while self._gauges:
            for name, value, tags in self._gauges[0]:
                yield stats.gauge, name, value, {**tags, **self._team}
            self._gauges.popleft()

    def _send(self, send: Callable[..., None], name: str, value: float, tags: dict[str, str]) -> None:
        fit = self._fit(tags)
        send(name, value, tags=fit)
        # Plain statsd knows no tags. Airflow itself puts them into a second name, for names that it knows.
        if self._by_name_too and (place := _place(name, fit)):
            send(f"{name}.{place}", value, tags={key: fit[key] for key in self._team})

    def _fit(self, tags: dict[str, str]) -> dict[str, str]:
        """Tags that can be part of a name, where they may become one: else Airflow logs an error for each."""
        if not self._by_name_too and not self._influx:
            return tags
        fit = {key: value if key == "queues" else _UNFIT.sub("_", value) for key, value in tags.items()}
        if self._influx:
            fit = {key: value for key, value in fit.items() if value and not _UNFIT.search(value)}
        short = {key: value for key, value in fit.items() if key != "queues" or self._influx}
        while (over := sum(map(len, short.values())) - (_LONGEST_INFLUX if self._influx else _LONGEST)) > 0:
            longest = max(short, key=lambda key: len(short[key]))
            if len(short[longest]) <= _SHORTEST_CUT:
                break
            short[longest] = short[longest][: max(_SHORTEST_CUT, len(short[longest]) - over)]
        return {**fit, **short}

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._clock() >= self._next_word:
                self._next_word = self._clock() + SAY_EVERY
                log.warning("EdgeControl: metrics cannot be sent: %s: %s", type(error).__name__, error)


#: What tells series apart that Airflow's own list of metrics does not name.
_PLACES = ("queue", "scheduler", "worker_name")
#: The same of those that it names, in its order.
_NAMED_PLACES = ("worker_name", "queue", "state", "dag_id", "task_id")


def _place(name: str, tags: Tags) -> str | None:
    """What belongs behind this name where there are no tags; None for names that Airflow itself expands."""
    if name in EDGE3 and EXPANDS_NAMES:
        return None
    told = [tags[tag].replace(".", "__") for tag in (_NAMED_PLACES if name in EDGE3 else _PLACES) if tags.get(tag)]
    return ".".join(told if name in EDGE3 else told[:1]) or None


#: Names of Airflow's own edge executor that Airflow's list of metrics knows.
EDGE3 = frozenset(
    {
        "edge_executor.sync.duration",
        "edge_worker.concurrency",
        "edge_worker.connected",
        "edge_worker.free_concurrency",
        "edge_worker.heartbeat_count",
        "edge_worker.jobs_active",
        "edge_worker.maintenance",
        "edge_worker.num_queues",
        "edge_worker.status",
        "edge_worker.ti.finish",
        "edge_worker.ti.start",
    }
)
