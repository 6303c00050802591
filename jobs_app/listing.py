"""Which jobs a list shows, newest first; a page costs the same whatever lies in the table. Nothing is changed here.

Open and final jobs are looked up apart, and so is each column that a text may match: each of these branches is a
short walk along one index, where the natural query would read the table for whatever is rare. The indexes for it
hold final jobs only, so that a claim neither meets nor maintains them. A page is named by the place where it
begins, never by a number: counting to a distant page would read all before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, reduce
from operator import or_
from typing import NamedTuple
from uuid import UUID

from django.db.models import F, Q, QuerySet, Value

from jobs_app.models import Job
from jobs_app.states import FINAL, HELD, JobState

#: How far a list counts.
MOST_COUNTED = 10_000
#: What a text is compared with, from its first character on.
SEARCHED = ("dag_id", "run_id", "task_id")
#: What no list needs: the largest column, and a secret.
_LEFT_OUT = ("workload", "token")
#: An order that indexes have: right for what is common, of which the newest are soon found.
_WALKED = F("queued_at")
#: The same order in a form that no index has: right for what is rare. To find it along the newest jobs may take to
#: read them all (seen: 1 s beside a million), and the planner cannot know that it is only among the old ones. So all
#: of it is read and sorted.
_SORTED = F("queued_at") + timedelta(0)
#: With more matches than this a text is common: these many can still be read and sorted.
_COMMON = 10_000


class Place(NamedTuple):
    """A job's place in the list."""

    queued_at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{self.queued_at.isoformat()}_{self.id}"

    @classmethod
    def read(cls, text: str) -> Place | None:
        """What `str` wrote; None when it is anything else."""
        moment, _, key = text.rpartition("_")
        try:
            place = cls(datetime.fromisoformat(moment), UUID(key))
        except ValueError:
            return None
        return place if place.queued_at.tzinfo else None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which jobs; what is left empty does not matter. `queued_from` is part of the span, `queued_to` is not."""

    states: frozenset[JobState] = frozenset()
    queue: str = ""
    worker_id: int | None = None
    team: str = ""
    dag: str = ""
    outcome: str = ""
    queued_from: datetime | None = None
    queued_to: datetime | None = None
    #: A job's id, or how the id of its DAG, run or task begins.
    text: str = ""

    def jobs(self) -> QuerySet[Job]:
        """All of them as one query, for doing something to all; a list is made by `look`."""
        query = Job.objects.filter(self._columns(), any_of(self.texts().values()))
        return query.filter(_in(self.states)) if self.states else query

    def branches(self) -> list[QuerySet[Job]]:
        """The same apart, each with its `moment` to order by: what one index serves."""
        states = self.states or frozenset(JobState)
        texts = self.texts()
        branches = []
        # Nobody has what waits; only a report brings an outcome.
        if JobState.QUEUED in states and self.worker_id is None and not self.outcome:
            waiting = Job.objects.filter(any_of(texts.values()), state=JobState.QUEUED)
            branches.append(waiting.alias(moment=_WALKED))
        if (held := states & HELD) and not self.outcome:
            # Bounded by the slots of the fleet.
            branches.append(Job.objects.filter(_in(held), any_of(texts.values())).alias(moment=_SORTED))
        if final := states & FINAL:
            branches += [
                Job.objects.filter(_in(final), text).alias(moment=_WALKED if name in self.common else _SORTED)
                for name, text in texts.items()
            ]
        return [branch.filter(self._columns()) for branch in branches]

    def _columns(self) -> Q:
        pairs = {
            "queue": self.queue,
            "worker": self.worker_id,
            "team_name": self.team,
            "dag_id": self.dag,
            "airflow_outcome": self.outcome,
            "queued_at__gte": self.queued_from,
            "queued_at__lt": self.queued_to,
        }
        return Q(**{name: value for name, value in pairs.items() if value not in ("", None)})

    def texts(self) -> dict[str, Q]:
        """The ways in which a text may match, by the column that it is compared with."""
        if not self.text:
            return {"": Q()}
        try:
            return {"id": Q(pk=UUID(self.text))}
        except ValueError:
            return {name: Q(**{f"{name}__startswith": self.text}) for name in SEARCHED}

    @cached_property
    def common(self) -> frozenset[str]:
        """Those of the ways that many jobs match; without a text, that is all of them."""
        if not self.text:
            return frozenset([""])
        matches = {name: Job.objects.final().filter(text)[: _COMMON + 1] for name, text in self.texts().items()}
        return frozenset(name for name, jobs in matches.items() if name != "id" and jobs.count() > _COMMON)


@dataclass(frozen=True, kw_only=True)
class Page:
    jobs: list[Job]
    #: Where the pages on both sides begin; None where there is none.
    newer: Place | None = None
    older: Place | None = None


def look(
    wanted: Wanted, *, size: int, before: Place | None = None, after: Place | None = None, oldest: bool = False
) -> Page:
    """The newest jobs; or those next to a place in the list, older (`before`) or newer (`after`); or the oldest."""
    upwards = oldest or after is not None
    places = _places(wanted, size=size + 1, upwards=upwards, bound=after if after is not None else before)
    further, places = len(places) > size, places[:size]
    if upwards:
        places.reverse()
    found = Job.objects.filter(pk__in=[place.id for place in places]).select_related("worker").defer(*_LEFT_OUT)
    jobs = {job.pk: job for job in found}
    # A job that was deleted in between is left out.
    page = [jobs[place.id] for place in places if place.id in jobs]
    if not places:
        return Page(jobs=[], newer=None, older=None)
    is_newer = further if upwards else before is not None
    is_older = (after is not None) if upwards else further
    return Page(jobs=page, newer=places[0] if is_newer else None, older=places[-1] if is_older else None)


def count(wanted: Wanted, *, at_most: int = MOST_COUNTED) -> int:
    """How many there are; one more than `at_most` when there are more."""
    if wanted.text and wanted.common and wanted == Wanted(text=wanted.text) and at_most <= _COMMON:
        return at_most + 1
    if not (branches := wanted.branches()):
        return 0
    # A text may match a job in several ways. Else nothing but their number is asked for, which the indexes alone know.
    of_each = F("id") if wanted.text else Value(1)
    first, *others = (branch.annotate(one=of_each).values_list("one")[: at_most + 1] for branch in branches)
    return (first.union(*others, all=not wanted.text)[: at_most + 1] if others else first).count()


def _places(wanted: Wanted, *, size: int, upwards: bool, bound: Place | None) -> list[Place]:
    branches = wanted.branches()
    if not branches:
        return []
    if bound is not None:
        # The first comparison is the index's, the second one decides among those of the same moment.
        way = "gt" if upwards else "lt"
        beyond = Q(**{f"queued_at__{way}": bound.queued_at}) | Q(**{f"pk__{way}": bound.id})
        branches = [branch.filter(beyond, **{f"queued_at__{way}e": bound.queued_at}) for branch in branches]
    return [Place(*row) for row in _union(branches, size=size, upwards=upwards)]


def _union(branches: Iterable[QuerySet[Job]], *, size: int, upwards: bool) -> QuerySet[Job, tuple[datetime, UUID]]:
    sign = "" if upwards else "-"
    first, *others = (
        branch.order_by(f"{sign}moment", f"{sign}id").values_list("queued_at", "id")[:size] for branch in branches
    )
    return first.union(*others).order_by(f"{sign}queued_at", f"{sign}id")[:size] if others else first


def _in(states: Iterable[JobState]) -> Q:
    return Q(state__in=sorted(state.value for state in states))


def any_of(conditions: Iterable[Q]) -> Q:
    return reduce(or_, conditions)
