"""What the admin's home page says about the fleet, each figure with the list behind it. Nothing is changed here.

Its cost is bounded: groups of workers, the ends of a partial index, the last minutes. It never counts
what has ended, nor a backlog beyond `MOST_COUNTED`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Count, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from edgecontrol import __version__, attention
from edgecontrol.addresses import to
from edgecontrol.attention import Notice
from edgecontrol.throughput import MINUTES, Chart, Ended, by_ten_minutes, chart, throughput, total
from jobs_app.states import HELD, JobState
from workers_app.admin_words import MEANINGS, span
from workers_app.models import Worker
from workers_app.states import GONE, Shown
from workers_app.versions import is_outdated

SEE_WORKERS, SEE_JOBS, SEE_QUEUES = "workers_app.view_worker", "jobs_app.view_job", "jobs_app.view_queue"
CONNECT = "workers_app.add_enrolmenttoken"
PERMISSIONS = (SEE_WORKERS, SEE_JOBS, SEE_QUEUES, CONNECT)

#: How old a refresh may be, so that many screens cost what one does.
SHARED_SECONDS = 2.0
#: Waiting jobs are counted up to here; beyond it the page says "10,000+".
MOST_COUNTED = 10_000

#: What somebody may have to look after comes first.
ORDER = (
    Shown.UNKNOWN,
    Shown.OFFLINE,
    Shown.OFFLINE_MAINTENANCE,
    Shown.SHUTDOWN_REQUEST,
    Shown.TERMINATING,
    Shown.MAINTENANCE_REQUEST,
    Shown.MAINTENANCE_PENDING,
    Shown.MAINTENANCE_MODE,
    Shown.MAINTENANCE_EXIT,
    Shown.STARTING,
    Shown.RUNNING,
    Shown.IDLE,
)
#: Workers in these states are offered jobs.
TAKING = frozenset({Shown.STARTING, Shown.IDLE, Shown.RUNNING})


@dataclass(frozen=True, kw_only=True)
class StateCount:
    state: Shown
    count: int
    url: str
    meaning: str

    @property
    def css(self) -> str:
        return self.state.value.replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Workers in groups; the names of those that need somebody."""

    states: list[StateCount]
    total: int
    live: int
    #: Slots of the workers that are offered jobs.
    capacity: int
    notices: list[Notice]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What waits and what is held."""

    now: datetime
    #: At most MOST_COUNTED + 1, which means "more".
    waiting: int
    oldest: tuple[UUID, datetime] | None
    held_slots: int
    #: Of the held ones, those on workers that are offered jobs.
    taken: int

    @property
    def waiting_in_words(self) -> str:
        return _up_to(self.waiting, MOST_COUNTED)

    @property
    def oldest_wait(self) -> str:
        return span(self.now - self.oldest[1]) if self.oldest else ""

    @property
    def oldest_url(self) -> str:
        return to("jobs_app_job_change", self.oldest[0]) if self.oldest else ""


@dataclass(frozen=True, kw_only=True)
class History:
    ended: Ended
    finished: Chart
    failed: Chart
    summary: str
    table: list[tuple[datetime, Ended]]
    #: Moments that stand under the charts.
    marks: list[datetime]
    hours: int = MINUTES // 60


@dataclass(kw_only=True)
class Home:
    """The page. What its reader may not see is None."""

    as_of: datetime
    fleet: Fleet | None = None
    work: Work | None = None
    history: History | None = None
    notices: list[Notice] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)

    @property
    def sees_nothing(self) -> bool:
        return not self.links

    @property
    def empty(self) -> bool:
        """No machine has been connected yet."""
        return self.fleet is not None and not self.fleet.total

    @property
    def urgent(self) -> list[Notice]:
        return [notice for notice in self.notices if notice.tone != "rest"]

    @property
    def slots(self) -> dict[str, int] | None:
        if self.fleet is None or self.work is None:
            return None
        free = max(0, self.fleet.capacity - self.work.taken)
        slots = self.work.held_slots + free
        return {
            "used": self.work.held_slots,
            "free": free,
            "all": slots,
            "percent": round(100 * self.work.held_slots / slots) if slots else 0,
        }


class Recent:
    """The page for all who look at it again and again: read at most every `SHARED_SECONDS` in each process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pages: dict[frozenset[str], tuple[float, Home]] = {}

    def home(self, user: Any) -> Home:
        may = permissions(user)
        # Whoever comes meanwhile waits for what is being read.
        with self._lock:
            read_at, page = self._pages.get(may, (float("-inf"), None))
            if page is None or time.monotonic() - read_at >= SHARED_SECONDS:
                page = home(may)
                self._pages[may] = time.monotonic(), page
            return page


recent = Recent()


def permissions(user: Any) -> frozenset[str]:
    """What of the page this reader may see."""
    return frozenset(permission for permission in PERMISSIONS if user.has_perm(permission))


def home(may: Collection[str]) -> Home:
    """All that these permissions let see, in at most ten statements."""
    page = Home(as_of=timezone.now())
    if SEE_JOBS in may:
        page.work = work()
        page.as_of = page.work.now
        page.history = history(page.as_of)
        page.links |= {state.value: to("jobs_app_job_changelist", state=state) for state in JobState}
        page.links["held"] = to("jobs_app_job_changelist", state=sorted(HELD))
    if SEE_WORKERS in may:
        page.fleet = fleet()
        live = [state.value for state in ORDER if state not in GONE]
        page.links["workers"] = to("workers_app_worker_changelist", state=live)
        page.notices += page.fleet.notices
    if SEE_QUEUES in may:
        page.links["queues"] = to("jobs_app_queue_changelist")
        page.notices += attention.of_queues()
    if CONNECT in may:
        page.links["connect"] = to("connect_machine")
    if page.work and page.history:
        page.notices += attention.of_jobs(now=page.as_of, lost=page.history.ended.lost, oldest=page.work.oldest)
    page.notices.sort(key=lambda notice: ("bad", "warn", "rest").index(notice.tone))
    return page


def fleet() -> Fleet:
    groups = (
        Worker.objects.values_list("state", "agent_version")
        .annotate(
            count=Count("pk"),
            slots=Sum(Coalesce("concurrency_override", "concurrency")),
            hindered=Count("pk", filter=attention.HINDERED),
        )
        .order_by()
    )
    counts, capacity, hindered = dict.fromkeys(ORDER, 0), 0, 0
    outdated: dict[str, int] = {}
    for state, version, count, slots, stuck in groups:
        counts[Shown(state)] += count
        hindered += stuck
        capacity += slots if state in TAKING else 0
        if is_outdated(version, __version__):
            outdated[version] = outdated.get(version, 0) + count
    live = sum(count for state, count in counts.items() if state not in GONE)
    in_all = sum(counts.values())
    return Fleet(
        states=[
            StateCount(
                state=state,
                count=counts[state],
                url=to("workers_app_worker_changelist", state=state),
                meaning=MEANINGS[state],
            )
            for state in ORDER
        ],
        total=in_all,
        live=live,
        capacity=capacity,
        notices=attention.of_workers(counts, outdated=outdated, hindered=hindered),
    )


def history(now: datetime) -> History:
    minutes = throughput.until(now)
    ended = total([counts for _, counts in minutes])
    most_at, most = max(minutes, key=lambda minute: minute[1].all)
    summary = f"{ended.all:,} jobs finished in the last {MINUTES // 60} hours, {ended.went_wrong:,} of them not well."
    if most.all:
        summary += f" The busiest minute was {most_at:%H:%M} UTC, with {most.all:,}."
    return History(
        ended=ended,
        finished=chart(minutes, value="all", words="finished"),
        failed=chart(minutes, value="went_wrong", words="failed or lost"),
        summary=summary,
        table=by_ten_minutes(minutes),
        marks=[minutes[at][0] for at in range(0, MINUTES, MINUTES // 4)] + [minutes[-1][0]],
    )


# Both orders are those of the index job_waiting_newest: without one, the planner looks for waiting jobs through the
# whole table, or sorts the backlog.
_COUNTED = """
SELECT count(*) FROM (
    SELECT FROM job WHERE state = 'queued' ORDER BY queued_at DESC LIMIT %(most)s + 1
) AS counted
"""
_WORK = f"""
SELECT now(), ({_COUNTED}), oldest.id, oldest.queued_at, held.slots, held.taken
  FROM (SELECT coalesce(sum(job.slots), 0) AS slots,
               coalesce(sum(job.slots) FILTER (WHERE worker.state = ANY (%(taking)s)), 0) AS taken
          FROM job JOIN worker ON worker.id = job.worker_id WHERE job.state IN ('claimed', 'running')) AS held
  LEFT JOIN (SELECT id, queued_at FROM job WHERE state = 'queued' ORDER BY queued_at LIMIT 1) AS oldest ON true
"""  # noqa: S608 - put together from constants


def work() -> Work:
    with connection.cursor() as cursor:
        cursor.execute(_WORK, {"most": MOST_COUNTED, "taking": [state.value for state in TAKING]})
        now, waiting, job, since, held_slots, taken = cursor.fetchone()
    return Work(
        now=now, waiting=waiting, oldest=(job, since) if job else None, held_slots=int(held_slots), taken=int(taken)
    )


@dataclass(frozen=True, kw_only=True)
class Glance:
    """The figures beside the navigation; empty where there is nothing to say."""

    silent: str = ""
    waiting: str = ""


#: Beside the navigation, waiting jobs are counted up to here.
MOST_AT_A_GLANCE = 999


def glance(may: Collection[str]) -> Glance:
    """Two small statements, on every page."""
    silent = Worker.objects.filter(state=Shown.UNKNOWN).count() if SEE_WORKERS in may else 0
    waiting = 0
    if SEE_JOBS in may:
        with connection.cursor() as cursor:
            cursor.execute(_COUNTED, {"most": MOST_AT_A_GLANCE})
            (waiting,) = cursor.fetchone()
    return Glance(silent=str(silent or ""), waiting=_up_to(waiting, MOST_AT_A_GLANCE) if waiting else "")


def _up_to(count: int, most: int) -> str:
    return f"{most:,}+" if count > most else f"{count:,}"
