"""The books that are balanced at the end of every case: what the tasks witnessed, what Airflow has, what is stored."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.acceptance.faults.airflow_stand_in import ENDED, Task
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import seconds

#: How long a machine that stood still may go on with what is no longer its own.
NOTICE_SECONDS = seconds(30)


@dataclass
class Row:
    """One line of the table that `make faults` prints. All counts but the first two have to be 0."""

    case: str
    faults: int
    jobs: int
    #: Tasks without an end.
    lost: int = 0
    #: Starts beyond the one that each attempt may have, tries that ran at the same time, and work done twice.
    doubled: int = 0
    #: Ends other than the truth, and jobs that say something else than Airflow.
    wrong: int = 0
    #: Bytes in which the stored logs differ from what the tasks wrote.
    log_bytes: int = 0
    #: The longest time from the end of the fault until work went on.
    recovery_seconds: float | None = None
    #: What does not balance, for people.
    complaints: list[str] = field(default_factory=list)

    def as_property(self) -> tuple[str, dict[str, Any]]:
        return "fault case", asdict(self)


def balance(
    site: FaultSite,
    *,
    case: str,
    recovery_seconds: float | None = None,
    may_be_retried: Iterable[Task] = (),
    incomplete_logs: bool = False,
    log_cap: int | None = None,
) -> Row:
    """Compare all books of a site that has settled.

    `may_be_retried` names the tasks whose first try a case took away; any other retry is wrong. With
    `incomplete_logs` the log of a try that was lost need only be the beginning of what its task wrote; of any log
    only the first `log_cap` bytes are kept.
    """
    jobs = site.rows("SELECT * FROM edgecontrol.job")
    row = Row(case=case, faults=site.faults, jobs=len(jobs), recovery_seconds=recovery_seconds)
    _count_ends(row, site.airflow.tasks, retried=set(map(id, may_be_retried)))
    _count_starts(row, site)
    _compare_jobs(row, site, jobs)
    for job in jobs:
        _compare_log(row, site, job, lost_may_be_short=incomplete_logs, cap=log_cap)
    for machine in site.machines:
        _check_slots(row, site, machine)
    return row


def _count_ends(row: Row, tasks: list[Task], *, retried: set[int]) -> None:
    for task in tasks:
        if task.state not in ENDED:
            row.lost += 1
            row.complaints.append(f"task {task.name} has no end: {task.state}")
        elif task.state != task.expected:
            row.wrong += 1
            row.complaints.append(f"task {task.name} is {task.state}, the truth is {task.expected}")
        if len(task.tries) > 1 and id(task) not in retried:
            row.wrong += 1
            row.complaints.append(f"task {task.name} was tried {len(task.tries)} times without a cause")


def _count_starts(row: Row, site: FaultSite) -> None:
    starts: Counter[str] = Counter()
    done: Counter[str] = Counter()
    spans: dict[str, list[tuple[float, float, str, Machine]]] = defaultdict(list)
    for machine in site.machines:
        for start, end in lives(machine, kept=site.kept):
            starts[start["job"]] += 1
            spans[start["task"]].append((start["at"], end, start["job"], machine))
        done.update(said["task"] for said in machine.witnessed() if said["what"] == "end")
    for job, count in starts.items():
        if count > 1:
            row.doubled += count - 1
            row.complaints.append(f"{job} was started {count} times")
    for task, lived in spans.items():
        lived.sort(key=lambda one: one[0])
        for (_, ended, earlier, machine), (began, until, later, _) in pairwise(lived):
            if earlier != later and ran_during(machine, began, min(ended, until)):
                row.doubled += 1
                row.complaints.append(f"{earlier} and {later} of task {task} ran at the same time")
    for task, count in done.items():
        if count > 1:
            row.doubled += count - 1
            row.complaints.append(f"task {task} did its work {count} times")


def ran_during(machine: Machine, since: float, until: float) -> bool:
    """Whether the machine ran in this time, but for the moment in which it notices that it has stood still."""
    stood = sum(max(0.0, min(until, end + NOTICE_SECONDS) - max(since, start)) for start, end in machine.stood)
    return until - since > stood


def lives(machine: Machine, *, kept: Path) -> list[tuple[dict[str, Any], float]]:
    """Each start that a machine's tasks witnessed, with when that process was last seen alive (monotonic clock)."""
    said = machine.witnessed()
    ends = {(one["job"], one["pid"]): one["at"] for one in said if one["what"] == "end"}
    now, wall = time.monotonic(), time.time()
    found = []
    for start in (one for one in said if one["what"] == "start"):
        last = start["at"]
        with contextlib.suppress(OSError):  # a task that was killed wrote its log until then
            last = max(last, now - (wall - (kept / start["job"]).stat().st_mtime) - 0.2)
        found.append((start, ends.get((start["job"], start["pid"]), last)))
    return found


def _compare_jobs(row: Row, site: FaultSite, jobs: list[Any]) -> None:
    """Every try has its job, every job is final and told, and one that Airflow took an outcome from says the same."""
    tries = {one.job_id: one for task in site.airflow.tasks if task.storable for one in task.tries}
    stored = {job.id: job for job in jobs}
    for job_id in tries.keys() - stored.keys():
        row.lost += 1
        row.complaints.append(f"job {job_id} is not stored")
    for job in jobs:
        one = tries.get(job.id)
        if job.finished_at is None or job.told_at is None:
            row.lost += 1
            row.complaints.append(f"job {job.id} is {job.state}, told {job.told_at}")
        elif one is not None and job.state == "success" and job.airflow_outcome and one.state != job.airflow_outcome:
            row.wrong += 1
            row.complaints.append(f"job {job.id} is {job.state} ({job.airflow_outcome}), Airflow has {one.state}")


def _compare_log(row: Row, site: FaultSite, job: Any, *, lost_may_be_short: bool, cap: int | None) -> None:
    """Every attempt that wrote a log: the stored bytes are the file's bytes, or the first ones below the cap."""
    for attempt in range(1, job.attempt + 1):
        kept = site.kept / f"{job.id}.{attempt}"
        if not kept.exists():
            continue
        chunks = site.rows(
            'SELECT data FROM edgecontrol.log_chunk WHERE job_id = %s AND attempt = %s ORDER BY "offset"',
            job.id,
            attempt,
        )
        stored, truth = b"".join(bytes(chunk.data) for chunk in chunks), kept.read_bytes()[:cap]
        if lost_may_be_short and job.state in ("lost", "revoked") and truth.startswith(stored):
            continue
        if stored != truth:
            same = sum(a == b for a, b in zip(stored, truth, strict=False))
            row.log_bytes += max(len(stored), len(truth)) - same
            row.complaints.append(f"log of {job.id}.{attempt}: {len(stored)} bytes stored, {len(truth)} written")


def _check_slots(row: Row, site: FaultSite, machine: Machine) -> None:
    """At no instant more slots than the machine has, as its tasks witnessed."""
    slots = {str(one.job_id): task.slots for task in site.airflow.tasks for one in task.tries}
    changes = []
    for start, end in lives(machine, kept=site.kept):
        size = slots.get(start["job"].partition(".")[0], 1)
        changes += [(start["at"], size), (end, -size)]
    running = most = 0
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    if most > machine.concurrency:
        row.wrong += 1
        row.complaints.append(f"{machine.name} ran {most} slots at once and has {machine.concurrency}")
