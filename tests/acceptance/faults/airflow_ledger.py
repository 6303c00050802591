"""The books of a run on real Airflow: what its tasks witnessed, what Airflow has, what is stored, what they logged."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any

from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row

#: (task, map index, try)
Try = tuple[str, int, int]
#: A task instance: (task, map index)
Place = tuple[str, int]
#: What a job may have ended with while its try went on.
GOES_ON = frozenset({"deferred", "up_for_reschedule"})


def balance(
    site: AirflowSite,
    *,
    case: str,
    dag_id: str,
    run_id: str,
    faults: int,
    recovery_seconds: float | None = None,
    retried: dict[Place, int] | None = None,
    unheard: Collection[str] = (),
    ended: Mapping[Place, str] | None = None,
    rerun: bool = False,
    elsewhere: Collection[Place] = (),
) -> Row:
    """Compare all books of a run that has ended.

    Every task has to have succeeded at its first try, but for those in `retried`, at that one, and those in `ended`,
    which says how. `unheard` names machines that were lost: what their tasks logged may be missing, and a job there
    need not have ended as its task did. In a run that was `rerun` work is done once in each try. What ran `elsewhere`,
    in another executor, is in none of our books.
    """
    row = Row(case=case, faults=faults, jobs=0, recovery_seconds=recovery_seconds)
    tis = [ti for ti in site.task_instances(dag_id, run_id) if place_of(ti) not in elsewhere]
    jobs = site.jobs(run_id)
    row.jobs = len(jobs)
    said = site.witnessed(run_id)
    _check_ends(row, tis, retried or {}, ended or {})
    _check_starts(row, tis, said, once_a_try=rerun)
    _check_jobs(row, tis, jobs)
    _check_slots(row, site, said)
    _check_logs(row, site, jobs, unheard)
    for name in site.never_told():
        row.lost += 1
        row.complaints.append(f"Airflow was never told of {name}")
    return row


def _check_ends(row: Row, tis: list[dict[str, Any]], retried: dict[Place, int], ended: Mapping[Place, str]) -> None:
    for ti in tis:
        place = place_of(ti)
        expected = retried.get(place, 1)
        if ti["state"] != ended.get(place, "success"):
            row.lost += 1
            row.complaints.append(f"{place} has ended as {ti['state']} at try {ti['try_number']}")
        elif ti["try_number"] != expected:
            row.wrong += 1
            row.complaints.append(f"{place} has ended as {ti['state']} at try {ti['try_number']}, not {expected}")


def _check_starts(row: Row, tis: list[dict[str, Any]], said: list[dict[str, Any]], *, once_a_try: bool) -> None:
    """No try starts twice, none works to its end after another has, and Airflow knows of each."""
    starts = Counter(try_of(line) for line in said if line["what"] == "start")
    for one, count in starts.items():
        if count > 1:
            row.doubled += count - 1
            row.complaints.append(f"{one} was started {count} times")
    ends = [try_of(line) for line in said if line["what"] == "end"]
    for place, count in Counter(ends if once_a_try else [one[:2] for one in ends]).items():
        if count > 1:
            row.doubled += count - 1
            row.complaints.append(f"{place} did its work {count} times")
    known = {(*place_of(ti), one["try_number"]) for ti in tis for one in ti["tries"]}
    for one in starts.keys() - known:
        row.wrong += 1
        row.complaints.append(f"{one} was started, and Airflow does not know of it")
    for ti in tis:
        if ti["state"] == "success" and (*place_of(ti), ti["try_number"]) not in starts:
            row.wrong += 1
            row.complaints.append(f"{ti['task_id']}, {ti['map_index']} has succeeded and never started")


def _check_jobs(row: Row, tis: list[dict[str, Any]], jobs: list[dict[str, Any]]) -> None:
    """Every job is final; one that ended with its task's outcome says the same as Airflow; none is missing."""
    states = {(*place_of(ti), one["try_number"]): one["state"] for ti in tis for one in ti["tries"]}
    outcomes: dict[Try, list[str]] = defaultdict(list)
    for job in jobs:
        one = (job["task_id"], job["map_index"], job["try_number"])
        if job["finished_at"] is None:
            row.lost += 1
            row.complaints.append(f"the job of {one} is {job['state']}")
        if job["state"] == "success" and job["airflow_outcome"] in GOES_ON:
            continue
        if job["state"] == "success" and job["airflow_outcome"] != states.get(one):
            row.wrong += 1
            row.complaints.append(f"the job of {one} ended as {job['airflow_outcome']}, Airflow: {states.get(one)}")
        outcomes[one].append(job["state"])
    for one, state in states.items():
        if state == "success" and outcomes[one].count("success") != 1:
            row.wrong += 1
            row.complaints.append(f"{one} has succeeded in Airflow, its jobs: {outcomes[one]}")


def _check_slots(row: Row, site: AirflowSite, said: list[dict[str, Any]]) -> None:
    """At no instant more of a run's tasks on a machine than it has slots; tasks that were killed do not count."""
    ended = {(line["machine"], try_of(line)) for line in said if line["what"] == "end"}
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for line in said:
        if (line["machine"], try_of(line)) in ended:
            changes[line["machine"]].append((line["at"], 1 if line["what"] == "start" else -1))
    for name, moments in changes.items():
        most = max(accumulate(change for _, change in sorted(moments)))
        if most > site.machines[name].concurrency:
            row.wrong += 1
            row.complaints.append(f"{name} ran {most} tasks at once, and has {site.machines[name].concurrency} slots")


def _check_logs(row: Row, site: AirflowSite, jobs: list[dict[str, Any]], unheard: Collection[str]) -> None:
    """The stored bytes are those that the machine wrote, for every attempt that wrote any."""
    written = site.keeper.logs()
    for job in jobs:
        for attempt in range(1, job["attempt"] + 1):
            truth, stored = written.get((job["id"], attempt)), site.stored_log(job, attempt)
            if truth is None:
                if stored:
                    row.complaints.append(f"nobody kept the log of {job['id']}.{attempt}")
                    row.log_bytes += len(stored)
                continue
            if job["machine"] in unheard and job["state"] in ("lost", "revoked") and truth.startswith(stored):
                continue
            if stored != truth:
                same = sum(a == b for a, b in zip(stored, truth, strict=False))
                row.log_bytes += max(len(stored), len(truth)) - same
                row.complaints.append(f"log of {job['id']}.{attempt}: {len(stored)} bytes stored, {len(truth)} written")


def place_of(ti: dict[str, Any]) -> Place:
    return ti["task_id"], ti["map_index"]


def try_of(line: dict[str, Any]) -> Try:
    return line["task"], line["map_index"], line["try"]
