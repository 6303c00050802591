"""How a batch of new jobs gets into the table: rows that cannot be stored are set apart, the others go on.

Whose fault a failure is, is asked and never guessed: while a plain job goes in, it is the rows'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

from airflow_bridge.database import NoConnection, RowRefused, StatementFailed, StoreNotReady
from airflow_bridge.states import FINAL, Kind
from airflow_bridge.store import NewJob, Standing, Store
from airflow_bridge.verdict import ENDINGS

_Item = TypeVar("_Item")


@dataclass(kw_only=True, slots=True)
class Result:
    """What became of a batch; a job in none of the lists is as it was."""

    stored: list[NewJob] = field(default_factory=list)
    #: With PostgreSQL's words. It will never take these.
    refused: list[tuple[NewJob, str]] = field(default_factory=list)
    #: They fail alone and for a reason that may pass, such as a lock that somebody keeps.
    stuck: list[tuple[NewJob, str]] = field(default_factory=list)
    #: Their id belongs to an earlier queueing; they need another one.
    id_taken: list[NewJob] = field(default_factory=list)
    #: The time was up: a smaller batch is better.
    unfinished: bool = False


def write(
    store: Store, jobs: Sequence[NewJob], *, tried: set[UUID], time_is_left: Callable[[], bool], result: Result
) -> None:
    """Insert the batch, adding to `result` as it goes.

    `tried` are ids whose INSERT may have had its effect without an answer; this call keeps them up to date. Raises a
    StoreError when nothing can be stored now, whatever it is; what is in `result` by then is settled.
    """
    parts, theirs = [jobs], False
    while parts:
        part = parts.pop()
        untried = {job.id for job in part} - tried
        tried |= untried
        try:
            inserted = store.enqueue(part)
        except NoConnection:
            tried -= untried
            raise
        except (RowRefused, StatementFailed, StoreNotReady) as error:
            tried -= untried
            if not theirs:
                store.rehearse()
                theirs = True
            if len(part) == 1:
                (result.refused if isinstance(error, RowRefused) else result.stuck).append((part[0], str(error)))
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
            if parts and not time_is_left():
                result.unfinished = True
                return
        else:
            tried -= untried
            result.stored += [job for job in part if job.id in inserted]
            if repeated := [job for job in part if job.id not in inserted]:
                _settle_repeated(store, repeated, ours=tried, result=result)


def _settle_repeated(store: Store, jobs: Sequence[NewJob], *, ours: set[UUID], result: Result) -> None:
    """Sort out ids that were there before: our own rows, whose COMMIT went unanswered, or ids used twice."""
    there = {standing.id: standing for standing in store.standing([job.id for job in jobs])}
    for job in jobs:
        row = there.get(job.id)
        if job.kind != Kind.TASK or row is None:
            result.stored.append(job)
        elif job.id in ours:
            (result.id_taken if _is_over(row, job) else result.stored).append(job)
        elif _is_of_an_earlier_queueing(row, job):
            result.id_taken.append(job)
        elif row.state in FINAL:
            result.stored.append(job)
        # Another scheduler's row may be this queueing, which it took over from us, or an earlier one whose end has not
        # been reported yet. In either case its end will tell, so it is looked at again.


def _is_over(row: Standing, job: NewJob) -> bool:
    """True for a row with which this queueing cannot go on, whoever's it is.

    Should it be our own after all, Airflow refuses the start of the other job that is made then.
    """
    return (row.airflow_id, row.try_number) != (job.airflow_id, job.try_number) or (
        row.state in FINAL and (row.told or (bool(row.airflow_outcome) and row.airflow_outcome not in ENDINGS))
    )


def _is_of_an_earlier_queueing(row: Standing, job: NewJob) -> bool:
    """Airflow 3.3.2 leaves the id on a task that chose its executor by class name and is retried or resumes."""
    return (
        row.dispatcher == job.dispatcher
        or (row.airflow_id, row.try_number) != (job.airflow_id, job.try_number)
        or bool(row.airflow_outcome)
    )


def batches(items: Sequence[_Item], *, size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
