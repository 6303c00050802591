"""Case 2: an agent is killed with SIGKILL under 20 running tasks and started again at once, again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import dice, times
from tests.acceptance.faults.proxy import FaultProxy

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

RUNNING = 20
#: Beside the tasks that run on, there is room for short ones, so that claims, confirmations and reports go on.
SLOTS = 24
#: In the midst of what the agent is killed: (the request, whether the control plane has handled it). "" is any moment.
MOMENTS = (
    ("jobs/claim", True),
    ("jobs/confirm", False),
    ("jobs/confirm", True),
    ("/report", False),
    ("/report", True),
    ("", False),
    ("workers/register", True),
    ("/logs/", True),
)


class Killer:
    """Kills a machine's agent in the midst of the next request that fits, and notes how soon its successor is back."""

    def __init__(self, machine: Machine, way_in: FaultProxy) -> None:
        self.machine = machine
        self.recoveries: list[float] = []
        self._struck = threading.Event()
        self._target: tuple[str, bool] | None = None
        self._lock = threading.Lock()
        self._killed_at = 0.0
        way_in.on_request = lambda request: self._see(request, answered=False)
        way_in.on_answer = lambda request: self._see(request, answered=True)

    def kill(self, request: str, *, answered: bool, after: float) -> None:
        """Kill, after a while, in the midst of this request; at once where it names none, or none comes."""
        # An agent registers as soon as it has started, and then no more.
        time.sleep(0 if request == "workers/register" else after)
        self._struck.clear()
        if request:
            with self._lock:
                self._target = (request, answered)
            self._struck.wait(15)
        with self._lock:
            self._target = None
        if not self._struck.is_set():
            self._strike()
        self.machine.agent.wait()
        self.machine.start()

    def _see(self, request: str, *, answered: bool) -> None:
        with self._lock:
            hit = self._target is not None and self._target[0] in request and self._target[1] is answered
            if hit:
                self._target = None
        if hit:
            self._strike()
        elif answered and "workers/register" in request and self._killed_at:
            self.recoveries.append(time.monotonic() - self._killed_at)
            self._killed_at = 0.0

    def _strike(self) -> None:
        self._killed_at = self._killed_at or time.monotonic()
        self.machine.agent.process.kill()
        self._struck.set()


@pytest.mark.ci
def test_an_agent_is_killed_under_twenty_tasks(
    site: FaultSite, tmp_path: Path, balanced: Callable[[Row], None]
) -> None:
    enough = tmp_path / "enough"
    long = site.queue(*[{"until": str(enough), "bytes": 5000}] * RUNNING)
    machine = site.machine("edge", concurrency=SLOTS)
    machine.start()
    site.until(lambda: len(machine.starts()) == RUNNING)
    before, runner = {start["job"]: start["pid"] for start in machine.starts()}, machine.runner().pid
    killer, throw = Killer(machine, site.way_in), dice("killed agents")
    moments = (moment for _ in range(100) for moment in throw.sample(MOMENTS, len(MOMENTS)))
    for request, answered in islice(moments, times(8, full=40)):
        site.queue(*[{"seconds": throw.uniform(0, 1), "bytes": 2000}] * 8)
        killer.kill(request, answered=answered, after=throw.uniform(0, 1.5))
        site.breakages += 1
    assert {task.state for task in long} == {"running"}
    enough.touch()
    site.settle(seconds=120)
    assert {start["job"]: start["pid"] for start in machine.starts() if start["job"] in before} == before
    assert machine.runner().pid == runner
    assert len(machine.agents) == times(8, full=40) + 1
    slowest = max(killer.recoveries)
    balanced(balance(site, case="2 agent killed under 20 tasks", recovery_seconds=slowest))
