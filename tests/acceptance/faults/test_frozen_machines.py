"""Case 7: a machine or its agent stands still beyond the patience and goes on; a machine is cloned."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import NOTICE_SECONDS, Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import PACE
from tests.acceptance.faults.proxy import Fault, FaultProxy

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

#: Work of which a frozen task has done little when it stops, and which nobody notices too late to stop.
WORK_SECONDS = 5 * NOTICE_SECONDS


def test_what_stood_still_beyond_the_patience(site: FaultSite, tmp_path: Path, balanced: Callable[[Row], None]) -> None:
    enough, late_enough = tmp_path / "enough", tmp_path / "late enough"
    frozen, asleep = site.machine("frozen"), site.machine("asleep")
    frozen.start("--queues", "frozen")
    asleep.start("--queues", "asleep")
    taken = site.queue({"work": WORK_SECONDS}, {"until": str(enough)}, queue="frozen", retries=1)
    heard = site.queue({"work": 15}, {"until": str(late_enough)}, queue="asleep")
    site.until(lambda: len(frozen.starts()) == len(taken) and len(asleep.starts()) == len(heard))
    frozen.freeze()
    asleep.agent.process.send_signal(signal.SIGSTOP)
    site.breakages += 3
    late, late_way, claimed = freezes_before_it_confirms(site)
    site.machine("heir").start("--queues", "frozen,late")
    for name in ("spare-1", "spare-2", "spare-3"):  # most of the fleet is well, so that silence is evidence
        site.machine(name).start("--queues", "none")

    assert handed_to_another(site, late, late_way, claimed)
    for task in heard:
        site.until(lambda task=task: job_of(site, task).state == "lost", seconds=PACE.patience + 120)
        if task.state == "running":
            late_enough.touch()
        site.until(lambda task=task: task.state == "success")
    site.until(lambda: taken[0].state == "success" and taken[1].state == "running", seconds=WORK_SECONDS + 120)

    frozen.thaw()
    asleep.agent.process.send_signal(signal.SIGCONT)
    left = [psutil.Process(start["pid"]) for start in frozen.starts() if psutil.pid_exists(start["pid"])]
    _, alive = psutil.wait_procs(left, timeout=NOTICE_SECONDS * 5)
    assert alive == [], "a thawed machine goes on with what is no longer its own"
    assert {said["what"] for said in frozen.witnessed()} == {"start"}, "it completed its work"
    for task in taken:
        assert late_word(site, frozen, task.tries[0].job_id, attempt=1) == (409, "stale_attempt")
    enough.touch()
    site.settle(seconds=120)
    for task in heard:
        job = job_of(site, task)
        assert (job.state, job.airflow_outcome, job.reason) == ("success", "success", "")
    balanced(balance(site, case="7 machine and agent frozen", may_be_retried=taken, incomplete_logs=True))


def freezes_before_it_confirms(site: FaultSite) -> tuple[Machine, FaultProxy, Task]:
    way_in, _ = site.own_ways("late")
    machine = site.machine("late", url=way_in.url)
    machine.start("--queues", "late")
    way_in.add(Fault.LOSE_REQUEST, "jobs/confirm")
    (task,) = site.queue({"work": 1}, queue="late")
    site.until(machine.held)
    machine.freeze()
    return machine, way_in, task


def handed_to_another(site: FaultSite, late: Machine, way_in: FaultProxy, task: Task) -> bool:
    """What a frozen machine never confirmed has run elsewhere; the machine thaws, and neither starts nor changes it."""
    site.until(lambda: task.state == "success", seconds=120)
    site.until(lambda: job_of(site, task).state == "success" and job_of(site, task).told_at)
    site.until(lambda: not any(machine.held() for machine in site.machines if machine.name == "heir"))
    before = job_of(site, task)
    assert before.attempt > 1
    way_in.heal()
    late.thaw()
    site.until(lambda: not late.held())
    assert late_word(site, late, before.id, attempt=1) == (409, "stale_attempt")
    assert late_word(site, late, before.id, attempt=before.attempt) == (409, "stale_attempt")
    assert late_log(site, late, before.id, attempt=1) == (409, "stale_attempt")
    assert late_log(site, late, before.id, attempt=before.attempt) == (409, "stale_attempt")
    return bool(job_of(site, task) == before and late.starts() == [])


@pytest.mark.parametrize("disk", ["empty", "copied"])
def test_a_machine_is_cloned(disk: str, site: FaultSite, tmp_path: Path, balanced: Callable[[Row], None]) -> None:
    enough = tmp_path / "enough"
    way_in, _ = site.own_ways("original")
    original = site.machine("original", url=way_in.url, concurrency=6)
    original.start()
    clone = site.clone(original, "clone")
    spec = {"until": str(enough), "bytes": 3000}
    taken = site.queue(spec, spec, retries=1)
    ended: list[Task] = []
    site.until(lambda: len(original.starts()) == len(taken))
    if disk == "copied":
        way_in.add(Fault.LOSE_REQUEST, "/report")
        ended = site.queue({"bytes": 3000})
        site.until(lambda: list(original.agent.state_dir.glob("jobs/*/exit.json")))
        # Two more are written down, and not confirmed. The copy of one looks as it would a moment later.
        way_in.add(Fault.LOSE_REQUEST, "jobs/confirm")
        taken += site.queue(spec, spec, retries=1)
        site.until(lambda: len(original.held()) == 5)
        clone.copy_disk(original)
        next(path for path in clone.folder.glob("state/jobs/*") if not (path / "confirmed").exists()).joinpath(
            "confirmed"
        ).touch()
        way_in.heal()
        site.until(lambda: len(original.starts()) == 5)
        site.until(lambda: job_of(site, ended[0]).state == "success")
    site.breakages += 1
    began = time.monotonic()
    clone.reboot()
    assert original.agent.wait(seconds=60) == 8
    site.until(lambda: len(clone.starts()) == len(taken), seconds=PACE.patience + 60)
    recovery = time.monotonic() - began
    for task in taken:
        lost = job_of(site, task)
        assert (lost.state, lost.reason, lost.airflow_outcome) == ("lost", "its machine rebooted", "")
    assert {start["job"] for start in clone.starts()}.isdisjoint(start["job"] for start in original.starts())
    enough.touch()
    site.settle(seconds=120)
    assert [len(task.tries) for task in ended] == [1] * len(ended)
    case = f"7 machine cloned, its disk {disk}"
    balanced(balance(site, case=case, recovery_seconds=recovery, may_be_retried=taken, incomplete_logs=True))


def job_of(site: FaultSite, task: Task) -> Any:
    """The stored job of a task's first try."""
    (row,) = site.rows("SELECT * FROM edgecontrol.job WHERE id = %s", task.tries[0].job_id)
    return row


def late_word(site: FaultSite, machine: Machine, job_id: object, *, attempt: int) -> tuple[int, str]:
    """What the control plane answers when this machine's agent reports a success of its own."""
    return _say(site, machine, f"jobs/{job_id}/report", json={"attempt": attempt, "state": "success"})


def late_log(site: FaultSite, machine: Machine, job_id: object, *, attempt: int) -> tuple[int, str]:
    headers = {"Content-Type": "application/octet-stream"}
    return _say(site, machine, f"logs/{job_id}/{attempt}?offset=0", data=b"from a frozen machine", headers=headers)


def _say(site: FaultSite, machine: Machine, path: str, **content: Any) -> tuple[int, str]:
    (worker,) = site.rows("SELECT session FROM edgecontrol.worker WHERE name = %s", machine.name)
    content["headers"] = {
        "Authorization": f"Bearer {machine.token}",
        "Edge-Session": str(worker.session),
        **content.get("headers", {}),
    }
    answer = requests.post(f"{site.url}/api/v1/edge/{path}", timeout=20, **content)
    return answer.status_code, answer.json().get("code", "")
