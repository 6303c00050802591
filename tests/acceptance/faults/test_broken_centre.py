"""Case 6: PostgreSQL, the control plane's processes or all of it break under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.pace import FULL, PACE, dice, times

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800 if FULL else 400)]

MACHINES = 4
JOBS = times(150, full=1000)
NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def loaded(site: FaultSite) -> FaultSite:
    """A site whose machines are at work."""
    for number in range(MACHINES):
        site.machine(f"edge-{number}").start()
    site.until_registered()
    load(site, JOBS // 5)
    site.until(lambda: any(machine.starts() for machine in site.machines))
    return site


def load(site: FaultSite, jobs: int) -> None:
    throw = dice(f"load {len(site.airflow.tasks)}")
    site.queue(*({"seconds": throw.uniform(0.1, 0.5), "bytes": throw.randrange(3000)} for _ in range(jobs)))


def finish(site: FaultSite, *, case: str, recovery: float) -> Row:
    """Let all end, and see that nothing failed, nobody left and nothing was given up on the way."""
    site.settle(seconds=300)
    assert all(machine.agent.process.poll() is None for machine in site.machines)
    assert {row.state for row in site.rows("SELECT state FROM edgecontrol.job")} == {"success"}
    log = site.log.read_text()
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
    assert "gave up" not in log
    return balance(site, case=case, recovery_seconds=recovery)


@pytest.mark.ci
def test_postgresql_breaks_under_load(loaded: FaultSite, balanced: Callable[[Row], None]) -> None:
    throw, slowest = dice("postgresql"), 0.0
    for _ in range(3):
        load(loaded, JOBS * 4 // 15)
        time.sleep(throw.uniform(0.2, 2.0))
        loaded.restart_postgres()
        slowest = max(slowest, loaded.went_on())
    balanced(finish(loaded, case="6 PostgreSQL restarted under load", recovery=slowest))


def test_processes_of_the_control_plane_are_killed_under_load(
    loaded: FaultSite, balanced: Callable[[Row], None]
) -> None:
    throw = dice("processes")
    load(loaded, JOBS * 4 // 5)
    for _ in range(times(20, full=50)):
        time.sleep(throw.uniform(0.1, 1.0))
        if processes := loaded.control_plane_processes():
            throw.choice(processes).kill()
            loaded.breakages += 1
    slowest = loaded.went_on()
    balanced(finish(loaded, case="6 gunicorn's processes killed at random", recovery=slowest))


def test_the_whole_control_plane_is_killed_under_load(loaded: FaultSite, balanced: Callable[[Row], None]) -> None:
    throw, slowest = dice("control plane"), 0.0
    for _ in range(3):
        load(loaded, JOBS * 4 // 15)
        time.sleep(throw.uniform(0.2, 2.0))
        loaded.kill_control_plane()
        loaded.serve()
        loaded.until(loaded.healthy)
        slowest = max(slowest, loaded.went_on())
    balanced(finish(loaded, case="6 the control plane killed under load", recovery=slowest))


def test_a_rolling_restart_fails_no_task(loaded: FaultSite, balanced: Callable[[Row], None]) -> None:
    throw, slowest = dice("rolling restart"), 0.0
    for _ in range(3):
        load(loaded, JOBS * 4 // 15)
        time.sleep(throw.uniform(0.2, 2.0))
        loaded.restart_control_plane()
        loaded.until(loaded.healthy)
        slowest = max(slowest, loaded.went_on())
    balanced(finish(loaded, case="6 rolling restarts under load", recovery=slowest))


def test_without_postgresql_agents_are_told_to_come_again(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    away = 120.0 if FULL else 20.0
    machine = site.machine("edge")
    machine.start()
    ended = site.folder / "ended"
    site.queue({"until": str(ended)}, {"until": str(ended)}, {"seconds": 3.0})
    site.until(lambda: len(machine.starts()) == 3)
    since, postmaster = site.now(), site.postmaster()
    restart = threading.Thread(target=site.restart_postgres, kwargs={"away_seconds": away})
    restart.start()
    psutil.wait_procs([postmaster], timeout=20)
    with ThreadPoolExecutor(len(ADDRESSES)) as all_at_once:
        asked = [all_at_once.submit(ask, site, path, token=machine.token) for path in ADDRESSES]
    answers = [one.result() for one in asked]
    restart.join()
    recovery = site.went_on(since=since)  # the one that has ended meanwhile may be told before we look
    ended.touch()
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json().keys() == {"code", "detail"}
        assert 0 < int(answer.headers["Retry-After"]) <= PACE.patience
    balanced(finish(site, case=f"6 PostgreSQL away, {away:.0f} s", recovery=recovery))


ADDRESSES = (
    "health",
    "workers/register",
    "workers/heartbeat",
    "jobs/claim",
    "jobs/confirm",
    f"jobs/{NOBODY}/report",
    f"logs/{NOBODY}/1?offset=0",
)


def ask(site: FaultSite, path: str, *, token: str) -> requests.Response:
    return requests.request(
        "GET" if path == "health" else "POST",
        f"{site.url}/api/v1/edge/{path}",
        headers={"Authorization": f"Bearer {token}", "Edge-Session": NOBODY},
        timeout=60,
    )
