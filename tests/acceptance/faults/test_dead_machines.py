"""Case 3: machines reboot or are gone for good; a runner is killed, and a supervisor that leaves its task behind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgecontrol.housekeeper import LOST_MARGIN_SECONDS
from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import PACE, dice, seconds, times
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def test_machines_reboot_or_are_gone_for_good(site: FaultSite, tmp_path: Path, balanced: Callable[[Row], None]) -> None:
    enough = tmp_path / "enough"  # for the tasks of dead machines, which see it no more
    gone = site.machine("gone")
    gone.start("--queues", "gone")
    left = site.queue(*[{"until": str(enough), "bytes": 2000}] * 3, queue="gone", retries=1)
    site.until(lambda: len(gone.starts()) == 3)
    gone.power_off()
    site.breakages += 1

    heir = site.machine("heir")
    heir.start("--queues", "gone")
    for name in ("spare-1", "spare-2"):  # most of the fleet is well, so that silence is evidence
        site.machine(name).start("--queues", "none")
    rebooted, recovery = reboot_a_machine(site, enough=enough)

    site.until(lambda: all(len(task.tries) == 2 for task in left), seconds=PACE.patience + 120)
    for task in left:
        lost, retry = jobs_of(site, task)
        assert lost.state == "lost", lost.reason
        assert "silent" in lost.reason
        assert lost.silence >= PACE.patience + LOST_MARGIN_SECONDS
        assert lost.queued_at < lost.finished_at <= retry.queued_at
    site.settle(seconds=120)
    assert {jobs_of(site, task)[1].worker for task in left} == {"heir"}
    case = "3 machine rebooted, machine gone for good"
    balanced(
        balance(site, case=case, recovery_seconds=recovery, may_be_retried=[*left, *rebooted], incomplete_logs=True)
    )


def reboot_a_machine(site: FaultSite, *, enough: Path) -> tuple[list[Task], float]:
    """A machine dies with two running tasks and a claim that it has not confirmed, and is back soon.

    Returns the tasks whose work was lost, and how long it took from the agent's start until the last was tried again.
    """
    way_in, _ = site.own_ways("phoenix")
    machine = site.machine("phoenix", url=way_in.url)
    machine.start("--queues", "phoenix")
    running = site.queue(*[{"until": str(enough), "bytes": 2000}] * 2, queue="phoenix", retries=1)
    site.until(lambda: len(machine.starts()) == 2)
    way_in.add(Fault.LOSE_REQUEST, "jobs/confirm")
    (claimed,) = site.queue({"work": 1}, queue="phoenix")
    site.until(lambda: len(machine.held()) == 3)
    machine.power_off()
    off_at = time.monotonic()
    enough.touch()
    site.breakages += 1
    time.sleep(seconds(20))
    way_in.heal()
    began = time.monotonic()
    machine.reboot("--queues", "phoenix")
    site.until(lambda: all(len(task.tries) == 2 for task in running))
    recovery = time.monotonic() - began
    assert time.monotonic() - off_at < PACE.patience, "tried again only when the patience was over"
    for task in running:
        lost, _ = jobs_of(site, task)
        assert (lost.state, lost.reason) == ("lost", "its machine rebooted")
    site.until(lambda: claimed.state == "success" and jobs_of(site, claimed)[0].state == "success")
    (job,) = jobs_of(site, claimed)
    assert (job.state, job.attempt) == ("success", 2)
    return running, recovery


def test_a_runner_and_supervisors_are_killed(site: FaultSite, tmp_path: Path, balanced: Callable[[Row], None]) -> None:
    orphaned = kill_supervisors(site, site.machine("orphans", concurrency=6), enough=tmp_path / "enough")
    kill_runners(site, site.machine("runners", concurrency=8))
    site.settle(seconds=120)
    balanced(balance(site, case="3 runner and supervisors killed", may_be_retried=orphaned))


def kill_supervisors(site: FaultSite, machine: Machine, *, enough: Path) -> list[Task]:
    """Each leaves its task behind. When the report arrives, nothing of the job may be alive any more."""
    spec = {"until": str(enough), "bytes": 2000}
    tasks = site.queue(
        spec, {**spec, "child": True}, {**spec, "ignore_term": True}, queue="orphans", retries=1, expected="success"
    )
    machine.start("--queues", "orphans")
    site.until(lambda: len(machine.starts()) == len(tasks))
    left = {start["job"]: processes_of(start, site) for start in machine.starts()}
    assert sorted(len(processes) for processes in left.values()) == [1, 1, 2]
    alive: dict[str, int] = {}

    def look(request: str) -> None:
        for job, processes in left.items():
            if "/report" in request and job.partition(".")[0] in request:
                alive[job] = sum(map(lives, processes))

    site.way_in.on_request = look
    for job in left:
        started = json.loads((machine.agent.state_dir / "jobs" / job / "started").read_text())
        psutil.Process(started["pid"]).kill()
        site.breakages += 1
    site.until(lambda: all(len(task.tries) == 2 for task in tasks))
    assert alive == dict.fromkeys(left, 0), "reported while a process of the job was still alive"
    for task in tasks:
        failed = jobs_of(site, task)[0]
        assert failed.state == "failed"
        assert "the job's process on the machine ended" in failed.reason
    site.until(lambda: len(machine.starts()) == 2 * len(tasks))
    enough.touch()
    return tasks


def kill_runners(site: FaultSite, machine: Machine) -> None:
    """Again and again under tasks that start, run and end: they live on, later ones start in a new runner."""
    throw, killed = dice("killed runners"), set()
    machine.start("--queues", "runners")
    lasting = site.queue(*[{"work": seconds(100), "bytes": 2000}] * 2, queue="runners")
    site.until(lambda: len(machine.starts()) == len(lasting))
    for _ in range(times(5, full=20)):
        site.queue(*[{"work": throw.uniform(0.1, 2), "bytes": 1000}] * 5, queue="runners")
        time.sleep(throw.uniform(0, 1))
        site.until(lambda: runners_of(machine))
        for runner in runners_of(machine):
            runner.kill()
            killed.add(runner.pid)
            site.breakages += 1
    site.until(lambda: not site.airflow.unfinished(), seconds=120)
    assert len(killed) >= times(5, full=20)


def lives(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and is only waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def runners_of(machine: Machine) -> list[psutil.Process]:
    """Fork servers that the agent has started; orphans of dead ones look like them, but have another parent."""
    children = psutil.Process(machine.agent.process.pid).children()
    return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]


def processes_of(start: dict[str, object], site: FaultSite) -> list[psutil.Process]:
    """The task that witnessed its start, and the program that it may have started in a session of its own."""
    pids = [int(str(start["pid"]))]
    log = site.kept / str(start["job"])
    site.until(lambda: log.stat().st_size > 1000)
    first = log.read_bytes().split(b"\n")[0]
    if first.startswith(b'{"child"'):
        pids.append(json.loads(first)["child"])
    return [psutil.Process(pid) for pid in pids]


def jobs_of(site: FaultSite, task: Task) -> list[Any]:
    """The stored jobs of a task's tries, in their order."""
    return [
        row
        for one in task.tries
        for row in site.rows(
            "SELECT job.*, worker.name AS worker, extract(epoch FROM finished_at - last_heartbeat) AS silence"
            " FROM edgecontrol.job LEFT JOIN edgecontrol.worker ON worker.id = worker_id WHERE job.id = %s",
            one.job_id,
        )
    ]
