"""How many jobs ended in each of the last minutes, and how a chart of it is drawn. Older history is never read."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Count, Q
from django.db.models.functions import TruncMinute

from jobs_app.models import Job
from jobs_app.states import JobState

MINUTES = 120
MINUTE = timedelta(minutes=1)
#: A chart ends here or above: one failure in a minute is no wall.
LEAST_TOP = 5
#: A minute is read again for this long: a job's `finished_at` is the start of a transaction that may end later.
LATE = timedelta(minutes=2)


class Ended(NamedTuple):
    """Jobs that came to an end of these kinds; what was revoked or refused is no work done."""

    succeeded: int = 0
    failed: int = 0
    lost: int = 0

    @property
    def all(self) -> int:
        return self.succeeded + self.failed + self.lost

    @property
    def went_wrong(self) -> int:
        return self.failed + self.lost


def total(counts: list[Ended]) -> Ended:
    return Ended(*map(sum, zip(*counts, strict=True)))


class Throughput:
    """The last minutes, kept in this process: once they are read, a refresh reads only the newest of them again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[datetime, Ended] = {}
        self._read_at: datetime | None = None

    def until(self, now: datetime) -> list[tuple[datetime, Ended]]:
        """Each of the last MINUTES minutes, oldest first; the last one is not over yet."""
        newest = now.replace(second=0, microsecond=0)
        first = newest - (MINUTES - 1) * MINUTE
        with self._lock:
            since = max(first, self._read_at - LATE) if self._read_at else first
            known = {minute: ended for minute, ended in self._known.items() if first <= minute < since}
            self._known = known | _read(since=since)
            self._read_at = newest
            return [
                (minute, self._known.get(minute, Ended())) for minute in (first + n * MINUTE for n in range(MINUTES))
            ]


def _read(*, since: datetime) -> dict[datetime, Ended]:
    per_minute = (
        # All final states, as the index job_finished has it.
        Job.objects.final()
        .filter(finished_at__gte=since)
        .annotate(minute=TruncMinute("finished_at"))
        .values_list("minute")
        .annotate(
            succeeded=Count("pk", filter=Q(state=JobState.SUCCESS)),
            failed=Count("pk", filter=Q(state=JobState.FAILED)),
            lost=Count("pk", filter=Q(state=JobState.LOST)),
        )
        .order_by()
    )
    return {minute: Ended(*counts) for minute, *counts in per_minute}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A minute as a rectangle, in units of a minute's width and a hundredth of the chart's height."""

    x: int
    y: float
    height: float
    says: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    bars: list[Bar]
    #: What the upper edge stands for.
    top: int
    width: int = MINUTES


def chart(minutes: list[tuple[datetime, Ended]], *, value: str, words: str) -> Chart:
    """Bars of one property of Ended; a minute without any has none."""
    counts = [getattr(ended, value) for _, ended in minutes]
    top = round_up(max(counts, default=0), least=LEAST_TOP)
    bars = [
        Bar(x=x, y=100 - 100 * count / top, height=100 * count / top, says=f"{minute:%H:%M} UTC: {count:,} {words}")
        for x, ((minute, _), count) in enumerate(zip(minutes, counts, strict=True))
        if count
    ]
    return Chart(bars=bars, top=top)


def round_up(number: int, *, least: int = 1) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    step = 1
    while True:
        for factor in (1, 2, 5):
            if step * factor >= max(number, least):
                return step * factor
        step *= 10


def by_ten_minutes(minutes: list[tuple[datetime, Ended]]) -> list[tuple[datetime, Ended]]:
    """For those who read a table rather than a chart."""
    return [(minutes[at][0], total([ended for _, ended in minutes[at : at + 10]])) for at in range(0, len(minutes), 10)]


throughput = Throughput()
