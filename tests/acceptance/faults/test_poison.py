"""Case 12: rows and requests that make no sense harm only themselves, and somebody is told why."""

from __future__ import annotations

import json
import random
import string
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import requests

from airflow_bridge.database import RowRefused
from airflow_bridge.store import NewJob
from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.executor_scheduler import ExecutorScheduler
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.pace import dice, times
from tests.acceptance.site import new_job

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

Balanced = Callable[[Row], None]
GOOD = {"seconds": 0.1, "bytes": 300}


@pytest.fixture
def scheduler(site: FaultSite) -> Iterator[ExecutorScheduler]:
    scheduler = ExecutorScheduler(site.airflow, database_url=site.database_url)
    yield scheduler
    scheduler.close()


def noise(length: int, *, letters: str = string.ascii_letters) -> str:
    """Text that no compression makes shorter."""
    thrower: random.Random = dice(f"noise {length}")
    return "".join(thrower.choices(letters, k=length))


#: What a workload may hold that no table takes: what to change, and a part of the reason.
UNSTORABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no slots": ({"slots": 0}, "job_slots_positive"),
    "more slots than a number has": ({"slots": 2**31}, "out of range"),
    "a queue too long for an index": ({"queue": noise(3000)}, "index row size"),
    "a queue too long for a notification": ({"queue": "q" * 7990}, "payload string too long"),
    "an id too long for an index": ({"run_id": noise(2000, letters="äöüßéèêëñçαβγδεζ€")}, "job_run_id_not_too_long"),
    "NUL in an id": ({"run_id": "r\0"}, "unsupported Unicode escape sequence"),
    "half a character": ({"run_id": "r\ud800"}, "invalid input syntax for type json"),
}
#: Rows that only a mistake of ours could write, with their reason.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "a workload that is text": ({"workload": "rm -rf /"}, "job_workload_is_object"),
    "a workload that is a list": ({"workload": [1, 2, 3]}, "job_workload_is_object"),
    "a workload that is nothing": ({"workload": None}, 'null value in column "workload"'),
}
#: Rows that are stored and cannot be run: what to change, and a part of the job's reason.
UNRUNNABLE: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown kind": ({"kind": "ExecuteDreams", "workload": {"type": "ExecuteDreams"}}, "ExecuteDreams"),
    "no task instance": ({"workload": {"type": "ExecuteTask"}}, "ti"),
    "a task instance that is a number": ({"workload": {"type": "ExecuteTask", "ti": 7}}, "ti"),
    "no type": ({"workload": {}}, "type"),
    "a deep workload": ({"workload": {"type": "ExecuteTask", "ti": [[[[[[[[]]]]]]]]}}, "ti"),
    "an id of 2,000 letters": ({"dag_id": noise(2000), "log_path": f"dag_id={noise(2000)}/1.log"}, "too long"),
    "a log path of 1 MB": ({"log_path": "a" * 1_000_000 + "/1.log"}, "too long"),
    "a log path that leaves its directory": ({"log_path": "../../../../etc/cron.d/job"}, "leaves the job's directory"),
}


class Spoiler:
    """Writes tasks as rows that were changed before, all in one batch."""

    def __init__(self, site: FaultSite, scheduler: ExecutorScheduler, changes: Sequence[dict[str, Any]]) -> None:
        self.site, self.scheduler, self.changes = site, scheduler, changes

    def enqueue(self, jobs: Sequence[NewJob]) -> None:
        batch = []
        for job, change in zip(jobs, self.changes, strict=True):
            spoilt = replace(job, dispatcher=self.scheduler.executor.dispatcher, **change)
            if "log_path" in change and "workload" not in change:
                spoilt = replace(spoilt, workload={**job.workload, "log_path": spoilt.log_path})
            batch.append(spoilt)
        self.site.store.enqueue(batch)


@pytest.mark.ci
def test_poisoned_rows_harm_only_themselves(site: FaultSite, scheduler: ExecutorScheduler, balanced: Balanced) -> None:
    good: list[Task] = []

    def queue_good(number: int) -> None:
        good.extend(site.airflow.queue(scheduler, *[GOOD] * number))  # type: ignore[arg-type]

    for number in range(2):
        site.machine(f"edge-{number}", concurrency=4).start()
    queue_good(times(10, full=50))
    poisoned = queue_unstorable(site, scheduler)
    queue_good(times(10, full=50))
    scheduler.start()

    for change, reason in IMPOSSIBLE.values():
        spoiler = Spoiler(site, scheduler, [{}, change])
        with pytest.raises(RowRefused, match=reason):
            spoiler.enqueue([new_job({}), new_job({})])
    changes = [{}, *(change for change, _ in UNRUNNABLE.values()), {}]
    batch = site.airflow.queue(Spoiler(site, scheduler, changes), *[GOOD] * len(changes))  # type: ignore[arg-type]
    good += [batch[0], batch[-1]]
    unrunnable = dict(zip(UNRUNNABLE, batch[1:-1], strict=True))
    for task in unrunnable.values():
        task.expected = "failed"
    raising = site.airflow.queue(scheduler, {"raise": "boom"}, expected="failed")  # type: ignore[arg-type]
    (too_big,) = site.airflow.queue(scheduler, GOOD, slots=5000, expected="failed")  # type: ignore[arg-type]
    (odd,) = site.airflow.queue(scheduler, GOOD, queue='it\'s "odd"; --\n\u202e\\ {} %s 😀')  # type: ignore[arg-type]
    queue_good(times(10, full=50))
    site.breakages += len(poisoned) + len(IMPOSSIBLE) + len(UNRUNNABLE) + 2

    site.until(lambda: {one.name for one in site.airflow.unfinished()} <= {too_big.name}, seconds=90)
    harmed = [(task.name, task.state) for task in [*good, odd] if task.state != "success"]
    assert not harmed, scheduler.failures

    failed = {(task_id, attempt): reason for task_id, attempt, reason in scheduler.failures}
    for name, task in poisoned.items():
        assert UNSTORABLE[name][1] in failed[task.name, 1], name
    for name, (_, reason) in UNRUNNABLE.items():
        (row,) = site.rows("SELECT * FROM edgecontrol.job WHERE id = %s", unrunnable[name].tries[0].job_id)
        assert (row.state, row.attempt) == ("failed", 1), (name, row.reason)
        assert reason in row.reason, name
    (row,) = site.rows("SELECT * FROM edgecontrol.job WHERE id = %s", raising[0].tries[0].job_id)
    assert "boom" in row.reason
    assert "boom" in failed[raising[0].name, 1]

    (waiting,) = site.rows("SELECT * FROM edgecontrol.job WHERE id = %s", too_big.tries[0].job_id)
    assert waiting.state == "queued"
    (listed,) = json.loads(site.manage("list_jobs", "--state", "queued", "--json"))
    assert "5000" in listed["waits_because"]
    site.store.revoke([waiting.id], reason="nobody has so many slots")
    site.settle(seconds=60)
    untouched = "SELECT 1 FROM edgecontrol.job WHERE state = 'success' AND (attempt > 1 OR unconfirmed_claims > 0)"
    assert not site.rows(untouched), "no good job was handed out again"
    assert scheduler.errors == []
    balanced(balance(site, case="12 poisoned rows"))


def queue_unstorable(site: FaultSite, scheduler: ExecutorScheduler) -> dict[str, Task]:
    """One task for each of UNSTORABLE, spoilt in Airflow's own objects."""
    tasks = {}
    for name, (changes, _) in UNSTORABLE.items():
        (task,) = site.airflow.queue(scheduler, GOOD, expected="failed")  # type: ignore[arg-type]
        workload = scheduler._inbox[-1]
        for field, value in changes.items():
            object.__setattr__(workload.ti, {"slots": "pool_slots"}.get(field, field), value)
        task.storable = False
        tasks[name] = task
    return tasks


# Requests


class Rogue:
    """A machine with a token of its own that says whatever it likes."""

    def __init__(self, site: FaultSite) -> None:
        self.url = f"{site.way_in.url}/api/v1/edge/"
        self.headers = {"Authorization": f"Bearer {site.token('rogue')}", "Edge-Session": str(uuid.uuid4())}
        self.introduction = {
            "session": self.headers["Edge-Session"],
            "boot_id": "b",
            "name": None,
            "queues": [],
            "concurrency": 1,
            "agent_version": "1",
            "airflow_version": "3.3.2",
            "protocol": 1,
            "sysinfo": {},
            "held": [],
        }
        assert self.say("workers/register", self.introduction).status_code == 200

    def say(self, path: str, body: Any, **headers: str) -> requests.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if path.startswith("logs/") else "application/json"
        return requests.post(
            self.url + path, data=content, headers={"Content-Type": kind, **self.headers, **headers}, timeout=60
        )


def bad_requests(rogue: Rogue, *, others: Any) -> list[tuple[str, Any, dict[str, str]]]:
    """(path, body, headers) of requests that nobody should send; `others` is a job that somebody else has."""
    claim = {"claim_id": str(uuid.uuid4()), "free_slots": 1, "wait": 0, "revision": 0}
    report = {"attempt": others.attempt, "state": "success", "airflow_outcome": "success"}
    beat = {"reported": "idle", "jobs_active": 0, "concurrency": 1, "queues": [], "sysinfo": None, "held": []}
    job, log = f"jobs/{others.id}/report", f"logs/{others.id}/{others.attempt}"
    bodies: list[tuple[str, Any]] = [
        ("jobs/claim", b""),
        ("jobs/claim", b"\xff\xfe{}"),
        ("jobs/claim", b"{" * 10),
        ("jobs/claim", b"[" * 100_000),
        ("jobs/claim", b'{"a":' * 50_000),
        ("jobs/claim", []),
        ("jobs/claim", "claim"),
        ("jobs/claim", {**claim, "claim_id": "mine"}),
        ("jobs/claim", {**claim, "free_slots": -1}),
        ("jobs/claim", {**claim, "free_slots": 10**30}),
        ("jobs/claim", {**claim, "free_slots": [1]}),
        ("jobs/claim", {**claim, "wait": float("nan")}),
        ("jobs/claim", {**claim, "wait": "long"}),
        ("jobs/claim", json.dumps(claim).encode() + b" " * 30_000_000),
        ("jobs/confirm", {"jobs": {"id": 1}}),
        ("jobs/confirm", {"jobs": [{"id": str(others.id), "attempt": 2**40}]}),
        ("workers/heartbeat", {**beat, "reported": "happy"}),
        ("workers/heartbeat", {**beat, "held": [{"id": "x", "attempt": 1}]}),
        ("workers/heartbeat", {**beat, "sysinfo": {"a": "\0"}}),
        ("workers/heartbeat", {**beat, "queues": ["\ud800"]}),
        ("workers/register", {**rogue.introduction, "name": "\0"}),
        ("workers/register", {**rogue.introduction, "boot_id": "b\0"}),
        ("workers/register", {**rogue.introduction, "held": [{"id": str(others.id), "attempt": 0}]}),
        (job, report),
        (job, {**report, "attempt": 2**31}),
        (job, {**report, "state": "exploded"}),
        (job, {**report, "exit_code": 10**40}),
        (f"jobs/{uuid.uuid4()}/report", report),
        ("jobs/not-a-uuid/report", report),
        (f"{log}?offset=0", b"not my log"),
        (f"{log}?offset=-1", b"x"),
        (f"{log}?offset=many", b"x"),
        (log, b"x"),
        (f"{log}?offset=0", b"x" * 3_000_000),
        (f"logs/{others.id}/{10**15}?offset=0", b"x"),
    ]
    return [
        *((path, body, {}) for path, body in bodies),
        ("jobs/claim", claim, {"Edge-Session": "mine"}),
        ("jobs/claim", claim, {"Edge-Session": str(uuid.uuid4())}),
        ("jobs/claim", claim, {"Authorization": "Bearer ec_0_0"}),
        ("jobs/claim", claim, {"Authorization": "Bearer " + "ä" * 100}),
        ("jobs/claim", claim, {"Content-Type": "text/plain"}),
        (f"{log}?offset=0", b"x", {"Content-Type": "application/json"}),
    ]


def test_poisoned_requests_harm_only_themselves(site: FaultSite, balanced: Balanced) -> None:
    rogue = Rogue(site)
    machine = site.machine("edge-1", concurrency=4)
    machine.start()
    gate = site.folder / "go"
    (others,) = site.queue({"until": str(gate), "bytes": 1000})
    site.until(lambda: others.state == "running")
    (held,) = site.rows("SELECT * FROM edgecontrol.job")
    slowest = 0.0
    for _ in range(times(1, full=20)):
        site.queue(*[GOOD] * 15)
        for path, body, headers in bad_requests(rogue, others=held):
            began = time.monotonic()
            try:
                answer = rogue.say(path, body, **headers)
            except requests.ConnectionError:  # refused before all of it was read
                assert len(body) > 1_000_000, (path, str(body)[:80])
                continue
            slowest = max(slowest, time.monotonic() - began)
            what = (path, str(body)[:80], headers, answer.status_code, answer.text[:300])
            assert 400 <= answer.status_code < 500, what
            assert {"code", "detail"} <= answer.json().keys(), what
            site.breakages += 1
    gate.touch()
    site.settle(seconds=120)
    assert all(job.attempt == 1 for job in site.rows("SELECT attempt FROM edgecontrol.job"))
    assert machine.agent.process.poll() is None
    assert "Traceback" not in site.log.read_text()
    balanced(balance(site, case="12 poisoned requests", recovery_seconds=slowest))
