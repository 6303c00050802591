"""Case 13: a machine whose disk is full, whose clock is wrong, or whose token is revoked in mid-task."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
import requests

from tests.acceptance.faults.fault_site import FaultSite, holds_for
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import dice, times
from tests.integration.agent.conftest import STAND_IN

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

Balanced = Callable[[Row], None]
WRONG_CLOCK = Path(__file__).resolve().parent / "wrong_clock"
HOUR = 3600


# Disk


class SmallDisk:
    """A disk of a few MB that can be filled: whatever becomes free is taken at once, until it is freed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", path], check=True)
        self._full = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._eat, daemon=True)
        self._thread.start()

    def fill(self) -> None:
        self._full.set()
        deadline = time.monotonic() + 10
        while os.statvfs(self.path).f_bavail:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def free(self) -> None:
        self._full.clear()
        deadline = time.monotonic() + 10
        while (self.path / "filler").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def close(self) -> None:
        self._ended.set()
        self._thread.join(10)
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def _eat(self) -> None:
        filler = self.path / "filler"
        while not self._ended.wait(0.005):
            if self._full.is_set():
                try:
                    with filler.open("ab", buffering=0) as file:
                        while file.write(bytes(4096)):
                            pass
                except OSError:
                    continue
            else:
                filler.unlink(missing_ok=True)


@pytest.fixture
def small_disk() -> Iterator[Callable[[Path], SmallDisk]]:
    """Mount one; to be named before `site`, so that nobody uses it any more when it goes."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disks: list[SmallDisk] = []

    def mount(path: Path) -> SmallDisk:
        disks.append(SmallDisk(path))
        return disks[-1]

    yield mount
    for disk in disks:
        disk.close()


def test_a_full_disk_ends_no_task_and_no_agent(
    small_disk: Callable[[Path], SmallDisk], site: FaultSite, balanced: Balanced
) -> None:
    machine = site.machine("edge-1", concurrency=4)
    disk = small_disk(machine.folder / "state")
    kept = disk.path / "kept"
    kept.mkdir()
    machine.start(KEPT_LOGS=str(kept))
    gate = site.folder / "go"
    running = site.queue(*[{"until": str(gate), "bytes": 1000}] * 3)
    site.until(lambda: {task.state for task in running} == {"running"})

    # Full while tasks run and log; who comes meanwhile is given back, with the reason.
    disk.fill()
    site.breakages += 1
    waiting = site.queue(*[{"seconds": 0.1, "bytes": 500}] * 6)
    refused = "SELECT 1 FROM edgecontrol.job WHERE state = 'queued' AND reason LIKE '%%No space left%%'"
    site.until(lambda: site.rows(refused))
    site.until(
        lambda: "takes no job" in str(site.rows("SELECT sysinfo->>'not_working' AS why FROM edgecontrol.worker")[0].why)
    )
    # They end on the full disk: what Airflow accepted is what is reported.
    gate.touch()
    site.until(lambda: {task.state for task in running} == {"success"})
    ids = [task.tries[0].job_id for task in running]
    site.until(lambda: not site.rows("SELECT 1 FROM edgecontrol.job WHERE id = ANY(%s) AND finished_at IS NULL", ids))
    ends = site.rows("SELECT state, airflow_outcome, reason FROM edgecontrol.job WHERE id = ANY(%s)", ids)
    assert {(job.state, job.airflow_outcome) for job in ends} == {("success", "success")}, ends
    assert not os.statvfs(disk.path).f_bavail
    assert {task.state for task in waiting} == {"queued"}

    # Work goes on once there is room; then the disk fills up in the middle of starts and ends.
    disk.free()
    freed_at = time.monotonic()
    site.until(lambda: any(task.state == "success" for task in waiting), seconds=120)
    recovery = time.monotonic() - freed_at
    thrower = dice("disk")
    for _ in range(times(3, full=30)):
        site.queue(*[{"seconds": thrower.uniform(0, 0.6), "bytes": 2000} for _ in range(6)])
        time.sleep(thrower.uniform(0.2, 1.0))
        disk.fill()
        site.breakages += 1
        time.sleep(thrower.uniform(0.5, 2.0))
        disk.free()
        recovery = max(recovery, site.went_on())
    site.settle(seconds=300)
    assert machine.agent.process.poll() is None, machine.agent.stderr
    for log in kept.iterdir():
        shutil.copy(log, site.kept / log.name)
    balanced(balance(site, case="13 disk full", recovery_seconds=recovery))


# Clock


def start_with_clock(machine: Machine, *, seconds: float) -> Path:
    """Start the agent, its runner and its tasks with a clock that is wrong; the file says by how much."""
    clock = machine.folder / "clock"
    set_clock(clock, seconds)
    machine.start(PYTHONPATH=f"{STAND_IN}{os.pathsep}{WRONG_CLOCK}", WRONG_CLOCK=str(clock))
    return clock


def set_clock(clock: Path, seconds: float) -> None:
    new = clock.with_suffix(".new")
    new.write_text(str(seconds))
    new.replace(clock)


def job_of(start: dict[str, Any]) -> str:
    """The id of the job that witnessed this start."""
    return str(start["job"]).partition(".")[0]


def test_a_wrong_clock_changes_nothing(site: FaultSite, balanced: Balanced) -> None:
    before = site.rows("SELECT now()")[0].now
    early, late, jumping = (site.machine(name, concurrency=3) for name in ("early", "late", "jumping"))
    clock = start_with_clock(jumping, seconds=0)
    start_with_clock(early, seconds=HOUR)
    start_with_clock(late, seconds=-HOUR)
    gate = site.folder / "go"
    long = site.queue(*[{"until": str(gate), "bytes": 1000}] * 7)
    site.until(lambda: {task.state for task in long} == {"running"})
    site.queue(*[{"seconds": 0.2, "bytes": 500}] * times(24, full=200))
    for number in range(times(6, full=60)):
        set_clock(clock, (HOUR, -HOUR, 0)[number % 3])
        site.breakages += 1
        time.sleep(0.7)
    set_clock(clock, HOUR)

    # A task that began before its clock was set can still be stopped.
    stopped = next(task for task in long if str(task.tries[0].job_id) in {job_of(start) for start in jumping.starts()})
    stopped.expected = "failed"
    (start,) = [start for start in jumping.starts() if job_of(start) == str(stopped.tries[0].job_id)]
    site.store.revoke([UUID(job_of(start))], reason="the case wants it")
    site.until(lambda: not psutil.pid_exists(start["pid"]))
    gate.touch()
    site.settle(seconds=120)
    after = site.rows("SELECT now()")[0].now
    for job in site.rows("SELECT * FROM edgecontrol.job"):
        moments = [before, job.queued_at, job.claimed_at, job.started_at, job.finished_at, job.told_at, after]
        assert moments == sorted(moments), job
    assert all(machine.agent.process.poll() is None for machine in site.machines)
    balanced(balance(site, case="13 clock an hour off, and jumping"))


# Token


def asks(site: FaultSite, token: str, session: str) -> dict[str, int]:
    """What each endpoint answers to a machine with this token."""
    job = uuid4()
    bodies: dict[str, Any] = {
        "workers/register": {},
        "workers/heartbeat": {},
        "jobs/claim": {},
        "jobs/confirm": {},
        f"jobs/{job}/report": {},
        f"logs/{job}/1?offset=0": {},
    }
    headers = {"Authorization": f"Bearer {token}", "Edge-Session": session}
    url = f"{site.url}/api/v1/edge/"
    return {
        path.partition("/")[2].partition("?")[0]: requests.post(
            url + path, json=body, headers=headers, timeout=20
        ).status_code
        for path, body in bodies.items()
    }


def test_a_revoked_token_ends_all_power_of_a_machine_and_none_of_its_tasks(site: FaultSite, balanced: Balanced) -> None:
    machine = site.machine("edge-1", concurrency=3)
    machine.start()
    gate = site.folder / "go"
    running = site.queue(*[{"until": str(gate), "bytes": 1000}] * 2)
    site.until(lambda: {task.state for task in running} == {"running"})
    (worker,) = site.rows("SELECT session FROM edgecontrol.worker")
    site.until(lambda: all(job.log_size > 0 for job in site.rows("SELECT log_size FROM edgecontrol.job")))

    site.manage("revoke_token", "edge-1")
    site.breakages += 1
    assert set(asks(site, machine.token, str(worker.session)).values()) == {401}
    # Its claim was parked, with a slot free, and its tasks log all the time.
    (late,) = site.queue({"seconds": 0.1, "bytes": 100})
    sizes = "SELECT id, state, log_size, worker_id FROM edgecontrol.job ORDER BY id"
    before = site.rows(sizes)
    assert holds_for(3.0, lambda: site.rows(sizes) == before)
    assert late.state == "queued"

    # Its tasks end at Airflow; the control plane hears nothing of it.
    gate.touch()
    site.until(lambda: {task.state for task in running} == {"success"})
    assert holds_for(2.0, lambda: site.rows(sizes) == before)
    assert machine.agent.process.poll() is None, "it waits for somebody who gives it a new token"

    # With a new token the same disk is the same machine.
    machine.agent.kill()
    (site.folder / "edge-1.token").unlink()
    machine.token = site.token("edge-1")
    began = time.monotonic()
    machine.start()
    site.until(lambda: late.state == "success")
    recovery = time.monotonic() - began
    site.settle(seconds=60)
    assert {job.state for job in site.rows(sizes)} == {"success"}
    balanced(balance(site, case="13 token revoked in mid-task", recovery_seconds=recovery))
