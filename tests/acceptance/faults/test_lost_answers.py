"""Case 1: every third answer of every endpoint is lost, after the request was handled."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.pace import times
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

ENDPOINTS = ("workers/register", "workers/heartbeat", "jobs/claim", "jobs/confirm", "/report", "/logs/")


@pytest.mark.ci
def test_every_third_answer_is_lost(site: FaultSite, balanced: Callable[[Row], None]) -> None:
    for endpoint in ENDPOINTS:
        site.way_in.add(Fault.LOSE_ANSWER, endpoint, every=3)
    for call in ("/run", "/state", "/heartbeat"):
        site.way_to_airflow.add(Fault.LOSE_ANSWER, f"{call}$", every=3)
    site.queue(*[{"seconds": 0.05, "bytes": 2000}] * times(200, full=1000))
    began = time.monotonic()
    for number in range(4):
        site.machine(f"edge-{number}", concurrency=6).start()
    site.settle(seconds=800)
    slowest = max(task.ended_at for task in site.airflow.tasks) - began
    balanced(balance(site, case="1 every 3rd answer of every endpoint lost", recovery_seconds=slowest))
