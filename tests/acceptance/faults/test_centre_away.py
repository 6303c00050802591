"""Case 4: the control plane is away, for all or for one site. Case 5: Airflow is away."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgecontrol.housekeeper import LOST_MARGIN_SECONDS
from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.fault_site import FaultSite, holds_for
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import FULL, PACE, dice, seconds
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(2400 if FULL else 400)]

#: After so long a silence a machine is given up while others are heard.
GIVEN_UP = PACE.patience + LOST_MARGIN_SECONDS


def alive(site: FaultSite) -> bool:
    return all(machine.agent.process.poll() is None for machine in site.machines)


def states(site: FaultSite, tasks: list[Task]) -> set[str]:
    """The states of the newest jobs of these tasks."""
    ids = [task.tries[-1].job_id for task in tasks]
    return {row.state for row in site.rows("SELECT state FROM edgecontrol.job WHERE id = ANY (%s)", ids)}


def started(site: FaultSite) -> int:
    return sum(len(machine.starts()) for machine in site.machines)


class Work:
    """Tasks that run all through an outage, end in it, start in it and wait for its end."""

    def __init__(self, site: FaultSite, *, away: float) -> None:
        self.site = site
        self.ended = site.folder / "ended"
        throw = dice("work")
        through = [{"until": str(self.ended), "bytes": 500}] * 4
        ending = [{"seconds": throw.uniform(0, away), "bytes": 500} for _ in range(6)]
        self.tasks = site.queue(*through, *ending)

    def begin(self) -> None:
        """Return while the last of them are about to start."""
        self.site.until(lambda: started(self.site) >= 5)
        self.tasks += self.site.queue(*[{"seconds": 0.2, "bytes": 500}] * 12)

    def end(self) -> None:
        self.ended.touch()


def begin_on_three_machines(site: FaultSite, *, away: float) -> Work:
    for number in range(3):
        site.machine(f"edge-{number}").start()
    site.until_registered()
    work = Work(site, away=away)
    work.begin()
    return work


@pytest.mark.parametrize(
    ("how", "away"),
    [("killed", seconds(60)), ("line dead", seconds(300)), ("answers 503", seconds(1200) if FULL else GIVEN_UP + 16)],
)
def test_the_control_plane_is_away(site: FaultSite, balanced: Callable[[Row], None], how: str, away: float) -> None:
    work = begin_on_three_machines(site, away=away)
    if how == "killed":
        site.kill_control_plane()
    elif how == "line dead":
        site.way_in.freeze()
    else:
        site.way_in.add(Fault.REFUSE, status=503)
    work.tasks += site.queue(*[{"seconds": 0.2}] * 12)
    assert holds_for(away, lambda: alive(site))
    if how == "killed":
        site.serve()
        site.until(site.healthy)
    site.way_in.heal()
    recovery = site.went_on()
    work.end()
    site.settle(seconds=away + 120)  # one of them may have begun at the end
    assert alive(site)
    assert "gave up" not in site.log.read_text()
    assert states(site, work.tasks) == {"success"}
    balanced(balance(site, case=f"4 control plane away, {away:.0f} s, {how}", recovery_seconds=recovery))


def away_site(site: FaultSite) -> tuple[Machine, Callable[[], None], Callable[[], None]]:
    """A machine at the end of its own line, others that are heard meanwhile, and what cuts and heals that line."""
    way_in, to_airflow = site.own_ways("far")
    far = site.machine("far", url=way_in.url)
    far.start("--queues=far")
    for number in range(3):
        site.machine(f"edge-{number}").start("--queues=floor")
    site.until_registered()

    def cut() -> None:
        to_airflow.freeze()
        way_in.freeze()

    def heal() -> None:
        way_in.heal()
        to_airflow.heal()

    return far, cut, heal


def test_one_sites_link_is_away_for_a_minute(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    away = seconds(60)
    far, cut, heal = away_site(site)
    ended = site.folder / "ended"
    tasks = site.queue({"until": str(ended)}, {"until": str(ended)}, {"seconds": away / 2}, queue="far", retries=1)
    site.until(lambda: len(far.starts()) == 3)
    cut()
    tasks += site.queue({"seconds": 0.1}, {"seconds": 0.1}, queue="far", retries=1)
    tasks += site.queue(*[{"seconds": 0.2}] * 10, retries=1)
    assert holds_for(away, lambda: alive(site))
    heal()
    recovery = site.went_on()
    ended.touch()
    site.settle(seconds=120)
    assert states(site, tasks) == {"success"}
    balanced(balance(site, case="4 link of one site away, a minute", recovery_seconds=recovery))


def test_one_sites_link_is_away_beyond_the_patience(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    away = max(seconds(300), GIVEN_UP + 10)
    far, cut, heal = away_site(site)
    ended = site.folder / "ended"
    tasks = site.queue(*[{"until": str(ended), "bytes": 500}] * 3, queue="far", retries=3)
    site.until(lambda: len(far.starts()) == 3)
    spare = site.machine("spare")
    spare.start("--queues=far")
    site.until_registered()
    cut()
    began = time.monotonic()
    site.until(lambda: len(spare.starts()) == 3, seconds=away)
    again_after = time.monotonic() - began
    assert again_after > PACE.patience, "handed to another while the first may still run"
    time.sleep(max(0.0, away - again_after))
    heal()
    time.sleep(2 * PACE.heartbeat)
    assert all(task.state == "running" for task in tasks)
    ended.touch()
    site.settle(seconds=120)
    assert [len(task.tries) for task in tasks] == [2, 2, 2]
    balanced(
        balance(
            site,
            case="4 link of one site away, 5 minutes",
            recovery_seconds=again_after,
            may_be_retried=tasks,
            incomplete_logs=True,
        )
    )


def test_only_the_way_to_the_control_plane_is_cut(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    way_in, _ = site.own_ways("far")
    far = site.machine("far", url=way_in.url)
    far.start("--queues=far")
    for number in range(3):
        site.machine(f"edge-{number}").start("--queues=floor")
    site.until_registered()
    meanwhile, afterwards = site.folder / "meanwhile", site.folder / "afterwards"
    tasks = site.queue(*({"until": str(path)} for path in (meanwhile, meanwhile, afterwards)), queue="far", retries=3)
    site.until(lambda: len(far.starts()) == 3)
    spare = site.machine("spare")
    spare.start("--queues=far")
    site.until_registered()
    way_in.freeze()
    site.until(lambda: states(site, tasks) == {"lost"}, seconds=GIVEN_UP + 30)
    assert holds_for(2.0, lambda: all(task.state == "running" and len(task.tries) == 1 for task in tasks))
    meanwhile.touch()
    site.until(lambda: [task.state for task in tasks].count("success") == 2)
    way_in.heal()
    recovery = site.went_on()
    assert holds_for(2 * PACE.heartbeat, lambda: tasks[2].state == "running"), site.airflow.failures
    afterwards.touch()
    site.settle(seconds=120)
    assert states(site, tasks) == {"success"}
    assert not spare.starts()
    balanced(balance(site, case="4 only the control plane's link away", recovery_seconds=recovery))


@pytest.mark.parametrize(("how", "away"), [("refused", seconds(40)), ("line dead", seconds(180))])
def test_airflow_is_away(site: FaultSite, balanced: Callable[[Row], None], how: str, away: float) -> None:
    work = begin_on_three_machines(site, away=away)
    if how == "refused":
        site.way_to_airflow.refuse_connections()
    else:
        site.way_to_airflow.freeze()
    work.tasks += site.queue(*[{"seconds": 0.2}] * 12)
    assert holds_for(away, lambda: alive(site) and not site.airflow.failures), site.airflow.failures
    site.way_to_airflow.heal()
    recovery = site.went_on()
    work.end()
    site.settle(seconds=200)
    assert states(site, work.tasks) == {"success"}
    balanced(balance(site, case=f"5 Airflow away, {away:.0f} s, {how}", recovery_seconds=recovery))


def test_airflow_is_away_for_long(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    away = seconds(1680) if FULL else 3 * PACE.patience
    machines = [site.machine(f"edge-{number}") for number in range(3)]
    for machine in machines:
        machine.start()
    site.until_registered()
    site.queue({"seconds": 0}, {"seconds": 0}, {"seconds": 0})
    site.settle(seconds=60)
    site.way_to_airflow.refuse_connections()
    tasks = site.queue(*[{"seconds": 0.2}] * 30)
    began = time.monotonic()
    # What was handed out before anybody knew is given back when its patience ends.
    said = "SELECT 1 FROM edgecontrol.worker WHERE sysinfo->>'not_working' LIKE 'Airflow%%'"
    site.until(lambda: len(site.rows(said)) == 3 and states(site, tasks) == {"queued"}, seconds=2 * PACE.patience + 60)
    left = away - (time.monotonic() - began)
    assert holds_for(max(left, 5.0), lambda: alive(site) and states(site, tasks) == {"queued"})
    site.way_to_airflow.heal()
    recovery = site.went_on()
    site.settle(seconds=200)
    assert not site.rows("SELECT 1 FROM edgecontrol.job WHERE attempt > 4")
    site.until(lambda: not site.rows(said), seconds=60)
    balanced(balance(site, case=f"5 Airflow away, {away:.0f} s, 30 jobs wait", recovery_seconds=recovery))
