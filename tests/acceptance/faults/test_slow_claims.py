"""Case 9: claims and their answers take up to 30 s, come twice, or come when their agent has been restarted."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.pace import seconds, times
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LATENCY = seconds(30)
TASK = {"seconds": seconds(10), "bytes": 500}


@pytest.mark.ci
def test_a_machine_with_one_slot_never_runs_two_tasks(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    site.way_in.add(Fault.DUPLICATE, "jobs/claim", share=0.25)
    site.way_in.add(Fault.DELAY, "jobs/claim", share=0.5, seconds=LATENCY)
    site.way_in.add(Fault.DELAY_ANSWER, "jobs/claim", seconds=LATENCY)
    site.queue(*[TASK] * times(16, full=20))
    began = time.monotonic()
    for name in ("slow-1", "slow-2"):
        site.machine(name, concurrency=1).start()
    site.settle(seconds=800)
    slowest = max(task.ended_at for task in site.airflow.tasks) - began
    balanced(balance(site, case="9 claims with latency, concurrency 1", recovery_seconds=slowest))


@pytest.mark.parametrize(
    ("flags", "number"),
    [((), signal.SIGKILL), (("--on-term", "leave"), signal.SIGTERM), ((), signal.SIGTERM)],
    ids=["killed", "leaves", "drains"],
)
def test_an_agent_is_restarted_while_a_late_answer_brings_it_work(
    site: FaultSite,
    balanced: Callable[[Row], None],
    request: pytest.FixtureRequest,
    flags: tuple[str, ...],
    number: int,
) -> None:
    """The answer of the first claim has jobs in it that only the control plane knows of."""
    machine = site.machine("slow", concurrency=1)
    slowest = 0.0
    for _ in range(times(2, full=10)):
        site.way_in.add(Fault.DELAY_ANSWER, "jobs/claim", seconds=LATENCY)
        tasks = site.queue(TASK, TASK)
        agent = machine.start(*flags)
        site.until(lambda: site.rows("SELECT 1 FROM edgecontrol.job WHERE state = 'claimed'"), seconds=60)
        agent.signal(number)
        site.breakages += 1
        agent.wait(seconds=120)
        site.way_in.heal()
        began = time.monotonic()
        agent = machine.start()
        site.settle(seconds=120)
        slowest = max(slowest, max(task.ended_at for task in tasks) - began)
        agent.signal(signal.SIGTERM)
        agent.wait(seconds=60)
    name = f"9 agent {request.node.callspec.id} while an answer is late"
    balanced(balance(site, case=name, recovery_seconds=slowest))
