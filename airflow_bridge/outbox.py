"""How a batch of new jobs gets into the table: a row that cannot be stored is set apart, the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_bridge.database import RowRefused
from airflow_bridge.states import Kind
from airflow_bridge.store import NewJob, Store


@dataclass(kw_only=True, slots=True)
class Result:
    """What became of a batch; a job in none of the lists was not tried."""

    stored: list[NewJob] = field(default_factory=list)
    #: With PostgreSQL's words. It will never take these.
    refused: list[tuple[NewJob, str]] = field(default_factory=list)
    #: Their id belongs to an earlier queueing; they need another one.
    id_taken: list[NewJob] = field(default_factory=list)


def write(store: Store, jobs: Sequence[NewJob], *, waited: Callable[[NewJob], float], result: Result) -> None:
    """Insert the batch, adding to `result` as it goes; `waited` says for how many seconds a job has been buffered.

    Raises StoreAway or StoreNotReady; what is in `result` by then is settled.
    """
    try:
        inserted = store.enqueue(jobs)
    except RowRefused as refusal:
        if len(jobs) == 1:
            result.refused.append((jobs[0], str(refusal)))
            return
        middle = len(jobs) // 2
        write(store, jobs[:middle], waited=waited, result=result)
        write(store, jobs[middle:], waited=waited, result=result)
        return
    result.stored += [job for job in jobs if job.id in inserted]
    if repeated := [job for job in jobs if job.id not in inserted]:
        _settle_repeated(store, repeated, waited=waited, result=result)


def _settle_repeated(
    store: Store, jobs: Sequence[NewJob], *, waited: Callable[[NewJob], float], result: Result
) -> None:
    """Sort out ids that were there before: our own rows, whose COMMIT went unanswered, or an id used twice.

    Airflow 3.3.2 leaves the earlier id on a task that chose its executor by class name and resumes. Such a row is older
    than our buffered workload; one whose answer was lost is younger.
    """
    ages = {standing.id: standing.age for standing in store.standing([job.id for job in jobs])}
    for job in jobs:
        older = ages.get(job.id, 0.0) > waited(job) + 1
        (result.id_taken if older and job.kind == Kind.TASK else result.stored).append(job)


def batches(items: Sequence[Any], *, size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
