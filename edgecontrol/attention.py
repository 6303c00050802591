"""What in the fleet somebody should look after: a line each, with names and the list behind it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from django.db.models import Q
from django.db.models.functions import Now
from django.utils.text import Truncator

from edgecontrol import __version__
from edgecontrol.addresses import to
from edgecontrol.throughput import MINUTES
from jobs_app.models import Queue
from jobs_app.states import JobState
from jobs_app.waiting import unserved_queues
from workers_app.admin_words import span
from workers_app.models import Worker
from workers_app.states import GONE, Requested, Shown
from workers_app.versions import is_refused

#: Names that a line shows; the rest stands in the list behind it.
MOST_NAMED = 5
_MOST_READ = 1000
#: Maintenance that ends within this time is announced.
SOON = timedelta(hours=1)
#: A job that waits longer than this is worth a look.
LONG_WAIT = timedelta(hours=1)

#: As `Worker.hindrance` has it.
HINDERED = Q(state__in=[Shown.IDLE.value, Shown.RUNNING.value], sysinfo__has_key="not_working")
_IN_MAINTENANCE = [
    Shown.MAINTENANCE_REQUEST.value,
    Shown.MAINTENANCE_PENDING.value,
    Shown.MAINTENANCE_MODE.value,
    Shown.OFFLINE_MAINTENANCE.value,
]


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


def of_workers(counts: Mapping[Shown, int], *, outdated: Mapping[str, int], hindered: int) -> list[Notice]:
    """From how many workers are in each state, how many agents have which outdated version, and how many are stuck."""
    silent, in_all = counts[Shown.UNKNOWN], sum(counts.values())
    live = in_all - sum(counts[state] for state in GONE)
    return [
        *([_nobody(in_all)] if in_all and not live else []),
        *([_silent(silent)] if silent else []),
        *([_hindered(hindered)] if hindered else []),
        *([_outdated(outdated)] if outdated else []),
        *(_maintenance() if in_all else []),
    ]


def _nobody(workers: int) -> Notice:
    return Notice(
        about="nobody",
        tone="bad",
        icon="cloud_off",
        text="No worker host is live" if workers > 1 else "The only worker host is not live",
        url=to("workers_app_worker_changelist", state=sorted(state.value for state in GONE)),
        advice="No job is taken until an agent is back.",
    )


def _silent(count: int) -> Notice:
    """Silent without being in maintenance, where machines are switched off for good reason."""
    newest = Worker.objects.filter(state=Shown.UNKNOWN).order_by("-last_heartbeat")[:MOST_NAMED]
    return Notice(
        about="silent",
        tone="bad",
        icon="signal_disconnected",
        text=f"{_number(count, 'worker host')} {'is' if count == 1 else 'are'} silent",
        url=to("workers_app_worker_changelist", state=Shown.UNKNOWN),
        named=[_host(worker, at=worker.last_heartbeat, words="heard") for worker in newest],
        more=count - min(count, MOST_NAMED),
        advice="Is the machine on, and can it reach this address? Its jobs are given up when the patience ends.",
    )


def _hindered(count: int) -> Notice:
    first = Worker.objects.filter(HINDERED).order_by("name")[:MOST_NAMED]
    return Notice(
        about="hindered",
        tone="warn",
        icon="work_alert",
        text=f"{_number(count, 'live worker host')} {'takes' if count == 1 else 'take'} no work",
        url=to("workers_app_worker_changelist", state=[Shown.IDLE, Shown.RUNNING]),
        named=[_host(worker, words=Truncator(worker.hindrance).chars(100)) for worker in first],
        more=count - min(count, MOST_NAMED),
        advice="Its agent says why: mend it on the machine, or what the machine cannot reach.",
    )


def _outdated(versions: Mapping[str, int]) -> Notice:
    count = sum(versions.values())
    refused = sum(n for version, n in versions.items() if is_refused(version, __version__))
    besides = f", {refused:,} of them too old to get jobs" if refused else ""
    return Notice(
        about="outdated",
        tone="bad" if refused else "warn",
        icon="update",
        text=f"{_number(count, 'agent')} {'is' if count == 1 else 'are'} older than this control plane{besides}",
        url=to("workers_app_worker_changelist", outdated="1"),
        named=[
            Named(name=f"version {version}", url=to("workers_app_worker_changelist", version=version), words=f"{n:,}")
            for version, n in sorted(versions.items())[:MOST_NAMED]
        ],
        more=max(0, len(versions) - MOST_NAMED),
        advice=f"The control plane is at {__version__}.",
    )


def _maintenance() -> list[Notice]:
    ending = list(
        Worker.objects.filter(requested=Requested.MAINTENANCE, requested_until__lte=Now() + SOON)
        .only("name", "requested_until")
        .order_by("requested_until")[:_MOST_READ]
    )
    if not ending:
        return []
    notice = Notice(
        about="maintenance",
        tone="rest",
        icon="build",
        text=f"Maintenance of {_number(len(ending), 'worker host')} ends within the hour",
        url=to("workers_app_worker_changelist", state=_IN_MAINTENANCE),
        named=[_host(worker, at=worker.requested_until, words="ends") for worker in ending[:MOST_NAMED]],
        more=max(0, len(ending) - MOST_NAMED),
    )
    return [notice]


def _host(worker: Worker, *, at: datetime | None = None, words: str) -> Named:
    return Named(name=worker.name, url=to("workers_app_worker_change", worker.pk), at=at, words=words)


def of_queues() -> list[Notice]:
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
    paused = list(Queue.objects.filter(paused=True).order_by("-paused_at", "name")[:_MOST_READ])
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


def of_jobs(*, now: datetime, lost: int, oldest: tuple[UUID, datetime] | None) -> list[Notice]:
    """From how many were lost in the last hours, and which one waits longest since when."""
    notices = []
    if lost:
        notices.append(
            Notice(
                about="lost",
                tone="bad",
                icon="heart_broken",
                text=f"{_number(lost, 'job')} {'was' if lost == 1 else 'were'} lost in the last {MINUTES // 60} hours",
                url=to("jobs_app_job_changelist", state=JobState.LOST),
                advice="They ran when their machine rebooted, went silent or forgot them. Each says why.",
            )
        )
    if oldest and now - oldest[1] > LONG_WAIT:
        notices.append(
            Notice(
                about="wait",
                tone="warn",
                icon="hourglass_top",
                text=f"A job has been waiting for {span(now - oldest[1])}",
                url=to("jobs_app_job_change", oldest[0]),
                advice="Its page says why.",
            )
        )
    return notices


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
