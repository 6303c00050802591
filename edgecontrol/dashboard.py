"""What the admin's home page says about the fleet, each figure with the list behind it. Nothing is changed here.

Its cost is bounded: groups of workers, the ends of a partial index, the last minutes. It never counts
what has ended, nor a backlog beyond `MOST_COUNTED`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin.utils import quote
from django.db import connection
from django.db.models import Count, Sum
from django.db.models.functions import Coalesce, Now
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.http import urlencode

from edgecontrol import __version__
from edgecontrol.throughput import MINUTES, Chart, Ended, by_ten_minutes, chart, throughput, total
from jobs_app.models import Queue
from jobs_app.states import HELD, JobState
from jobs_app.waiting import unserved_queues
from workers_app.admin_words import MEANINGS, span
from workers_app.models import Worker
from workers_app.states import GONE, Requested, Shown
from workers_app.versions import is_outdated

SEE_WORKERS, SEE_JOBS, SEE_QUEUES = "workers_app.view_worker", "jobs_app.view_job", "jobs_app.view_queue"
CONNECT = "workers_app.add_enrolmenttoken"
PERMISSIONS = (SEE_WORKERS, SEE_JOBS, SEE_QUEUES, CONNECT)

#: How old a refresh may be, so that many screens cost what one does.
SHARED_SECONDS = 2.0
#: Waiting jobs are counted up to here; beyond it the page says "10,000+".
MOST_COUNTED = 10_000
#: Names that a line of the page shows; the rest stands in the list behind it.
MOST_NAMED = 5
#: Maintenance that ends within this time is announced.
SOON = timedelta(hours=1)
#: A job that waits longer than this is worth a look.
LONG_WAIT = timedelta(hours=1)

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
class Named:
    """One of those that a line is about."""

    name: str
    url: str
    at: datetime | None = None
    #: Goes before the moment, or stands alone.
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that somebody may want to look after."""

    #: The part of its id in the page, by which a refresh finds it again.
    about: str
    #: bad, warn or rest; the last one is for knowledge only.
    tone: str
    icon: str
    text: str
    url: str
    named: Sequence[Named] = ()
    #: How many more there are than are named.
    more: int = 0
    advice: str = ""


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
    """All that these permissions let see, in at most nine statements."""
    page = Home(as_of=timezone.now())
    if SEE_JOBS in may:
        page.work = work()
        page.as_of = page.work.now
        page.history = history(page.as_of)
        page.links |= {state.value: to("jobs_app_job_changelist", state=state) for state in JobState}
        page.links["held"] = to("jobs_app_job_changelist", state=sorted(HELD))
    if SEE_WORKERS in may:
        page.fleet = fleet(page.as_of)
        live = [state.value for state in ORDER if state not in GONE]
        page.links["workers"] = to("workers_app_worker_changelist", state=live)
    if SEE_QUEUES in may:
        page.notices = queue_notices()
        page.links["queues"] = to("jobs_app_queue_changelist")
    if CONNECT in may:
        page.links["connect"] = to("connect_machine")
    page.notices += [*(page.fleet.notices if page.fleet else ()), *_job_notices(page)]
    page.notices.sort(key=lambda notice: ("bad", "warn", "rest").index(notice.tone))
    return page


def to(name: str, *key: object, **chosen: str | list[str]) -> str:
    """The address of one of the admin's pages; empty while there is no such page."""
    try:
        address = reverse(f"admin:{name}", args=[quote(str(part)) for part in key])
    except NoReverseMatch:
        return ""
    return f"{address}?{urlencode(chosen, doseq=True)}" if chosen else address


def fleet(now: datetime) -> Fleet:
    groups = (
        Worker.objects.values_list("state", "agent_version")
        .annotate(count=Count("pk"), slots=Sum(Coalesce("concurrency_override", "concurrency")))
        .order_by()
    )
    counts, capacity = dict.fromkeys(ORDER, 0), 0
    outdated: dict[str, int] = {}
    for state, version, count, slots in groups:
        counts[Shown(state)] += count
        capacity += slots if state in TAKING else 0
        if is_outdated(version, __version__):
            outdated[version] = outdated.get(version, 0) + count
    live = sum(count for state, count in counts.items() if state not in GONE)
    in_all = sum(counts.values())
    notices = _silent(counts[Shown.UNKNOWN]) if counts[Shown.UNKNOWN] else []
    if in_all and not live:
        notices.insert(0, _nobody(in_all))
    if outdated:
        notices.append(_outdated(outdated))
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
        notices=notices + (_maintenance(now) if counts[Shown.MAINTENANCE_MODE] or live else []),
    )


def _nobody(workers: int) -> Notice:
    return Notice(
        about="nobody",
        tone="bad",
        icon="cloud_off",
        text="No worker host is live" if workers > 1 else "The only worker host is not live",
        url=to("workers_app_worker_changelist", state=[state.value for state in ORDER if state in GONE]),
        advice="No job is taken until an agent is back.",
    )


def _silent(count: int) -> list[Notice]:
    """Silent without being in maintenance, where machines are switched off for good reason."""
    newest = Worker.objects.filter(state=Shown.UNKNOWN).order_by("-last_heartbeat")[:MOST_NAMED]
    notice = Notice(
        about="silent",
        tone="bad",
        icon="signal_disconnected",
        text=f"{_number(count, 'worker host')} {'is' if count == 1 else 'are'} silent",
        url=to("workers_app_worker_changelist", state=Shown.UNKNOWN),
        named=[_host(worker, at=worker.last_heartbeat, words="heard") for worker in newest],
        more=count - min(count, MOST_NAMED),
        advice="Is the machine on, and can it reach this address? Its jobs are given up when the patience ends.",
    )
    return [notice]


def _outdated(versions: dict[str, int]) -> Notice:
    count = sum(versions.values())
    return Notice(
        about="outdated",
        tone="warn",
        icon="update",
        text=f"{_number(count, 'agent')} {'is' if count == 1 else 'are'} older than this control plane",
        url=to("workers_app_worker_changelist", outdated="1"),
        named=[
            Named(name=f"version {version}", url=to("workers_app_worker_changelist", version=version), words=f"{n:,}")
            for version, n in sorted(versions.items())[:MOST_NAMED]
        ],
        more=max(0, len(versions) - MOST_NAMED),
        advice=f"The control plane is at {__version__}.",
    )


def _maintenance(now: datetime) -> list[Notice]:
    ending = list(
        Worker.objects.filter(requested=Requested.MAINTENANCE, requested_until__lte=Now() + SOON).order_by(
            "requested_until"
        )[: MOST_NAMED + 1]
    )
    if not ending:
        return []
    several = "Maintenance of several worker hosts ends within the hour"
    notice = Notice(
        about="maintenance",
        tone="rest",
        icon="build",
        text="Maintenance of a worker host ends within the hour" if len(ending) == 1 else several,
        url=to("workers_app_worker_changelist", state=Shown.MAINTENANCE_MODE),
        named=[_host(worker, at=worker.requested_until, words="ends") for worker in ending[:MOST_NAMED]],
        more=len(ending) - MOST_NAMED if len(ending) > MOST_NAMED else 0,
    )
    return [notice]


def _host(worker: Worker, *, at: datetime | None, words: str) -> Named:
    return Named(name=worker.name, url=to("workers_app_worker_change", worker.pk), at=at, words=words)


def queue_notices() -> list[Notice]:
    notices = []
    if unserved := unserved_queues():
        notices.append(
            Notice(
                about="unserved",
                tone="bad",
                icon="person_off",
                text=f"{_number(len(unserved), 'queue')} with waiting jobs and no live worker host",
                url=to("jobs_app_queue_changelist", unserved="1"),
                named=[
                    Named(
                        name=each.queue,
                        url=to("jobs_app_queue_change", each.queue),
                        at=each.oldest,
                        words=f"{each.waiting:,} waiting, since",
                    )
                    for each in unserved[:MOST_NAMED]
                ],
                more=max(0, len(unserved) - MOST_NAMED),
                advice="Let a worker host serve them: “Add queues” on its page.",
            )
        )
    paused = list(Queue.objects.filter(paused=True).order_by("-paused_at", "name")[:100])
    if paused:
        notices.append(
            Notice(
                about="paused",
                tone="warn",
                icon="pause_circle",
                text=f"{_number(len(paused), 'queue')} {'is' if len(paused) == 1 else 'are'} paused",
                url=to("jobs_app_queue_changelist", paused="1"),
                named=[
                    Named(
                        name=queue.name,
                        url=to("jobs_app_queue_change", queue.pk),
                        at=queue.paused_at,
                        words=f"{f'“{queue.pause_comment}” ' if queue.pause_comment else ''}by {queue.paused_by},",
                    )
                    for queue in paused[:MOST_NAMED]
                ],
                more=max(0, len(paused) - MOST_NAMED),
            )
        )
    return notices


def _job_notices(page: Home) -> Iterable[Notice]:
    if page.history and (lost := page.history.ended.lost):
        yield Notice(
            about="lost",
            tone="bad",
            icon="heart_broken",
            text=f"{_number(lost, 'job')} {'was' if lost == 1 else 'were'} lost in the last {MINUTES // 60} hours",
            url=page.links["lost"],
            advice="They ran when their machine rebooted, went silent or forgot them. Each says why.",
        )
    if page.work and page.work.oldest and page.work.now - page.work.oldest[1] > LONG_WAIT:
        yield Notice(
            about="wait",
            tone="warn",
            icon="hourglass_top",
            text=f"A job has been waiting for {page.work.oldest_wait}",
            url=page.work.oldest_url,
            advice="Its page says why.",
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


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
