"""Case 12: EdgeControl's database swallows everything under the scheduler, and the scheduler dies in the middle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_programs import HEALTH_SECONDS
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.pace import FULL

pytestmark = [
    pytest.mark.faults,
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

HOLE_SECONDS = 120 if FULL else 25
#: Half of what Airflow takes for healthy unless told otherwise.
OLDEST_HEARTBEAT_SECONDS = 15


@contextmanager
def watching_pace(site: AirflowSite) -> Iterator[list[float]]:
    """Collect how old the scheduler's heartbeat is, many times a second."""
    ages: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        query = (
            "SELECT extract(epoch FROM now() - max(latest_heartbeat))::float8 FROM job WHERE job_type = 'SchedulerJob'"
        )
        while not ended.wait(0.2):
            ages.append(site.parts.rows("airflow", query)[0][0])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield ages
    finally:
        ended.set()
        thread.join()


def test_database_is_a_black_hole(airflow_site: AirflowSite, balanced: Callable[[Row], None]) -> None:
    (machine,) = airflow_site.make_machines("hole-1", queues="hole", concurrency=4)
    airflow_site.start_machines(machine)
    before = airflow_site.trigger("work_hole", seconds=1)
    airflow_site.until(lambda: airflow_site.starts(before), seconds=60)
    airflow_site.database.freeze()
    with watching_pace(airflow_site) as ages:
        began = time.monotonic()
        within = airflow_site.trigger("work_hole", seconds=1)
        beside = airflow_site.trigger("work_beside")
        airflow_site.until(lambda: airflow_site.queued(within) == 6, seconds=60)
        # LocalExecutor's work is not kept waiting by ours.
        airflow_site.until(lambda: airflow_site.run_state(beside) == "success", seconds=HOLE_SECONDS + 60)
        time.sleep(max(0.0, HOLE_SECONDS - (time.monotonic() - began)))
    assert airflow_site.jobs(within) == []
    assert max(ages) < OLDEST_HEARTBEAT_SECONDS, f"the scheduler's heartbeat was {max(ages):.1f} s old"
    # What it has queued and could not write has to survive its death too.
    airflow_site.kill("scheduler")
    airflow_site.start_again("scheduler")
    airflow_site.until_ready("scheduler")
    time.sleep(HEALTH_SECONDS + 6)  # it takes over while the database is away
    airflow_site.database.thaw()
    began = time.monotonic()
    airflow_site.until(lambda: airflow_site.starts(within), seconds=120)
    recovery = time.monotonic() - began
    for run_id in (before, within):
        airflow_site.until(lambda one=run_id: airflow_site.run_state(one) in ("success", "failed"), seconds=180)
        airflow_site.settle(run_id)
    for name, run_id in (("in work", before), ("queued meanwhile", within)):
        balanced(
            balance(
                airflow_site,
                case=f"12 PostgreSQL a black hole under the scheduler, {name} (A)",
                dag_id="work_hole",
                run_id=run_id,
                faults=2,
                recovery_seconds=recovery,
            )
        )
    machine.stop()
