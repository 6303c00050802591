"""Case 8: the scheduler of a run of 200 tasks is killed again and again, at whatever it is doing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.pace import dice, times

pytestmark = [
    pytest.mark.faults,
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

TASKS = 200
KILLS = times(10, full=50)
DAG_ID = "work_kills"


def test_scheduler_killed_in_a_run_of_200_tasks(airflow_site: AirflowSite, balanced: Callable[[Row], None]) -> None:
    machines = airflow_site.make_machines("kills-1", "kills-2", "kills-3", queues="kills", concurrency=4)
    airflow_site.start_machines(*machines)
    thrown = dice("scheduler kills")
    # How many tasks have started by then, and how much later the scheduler dies: in any of its steps.
    points = sorted((thrown.randint(0, TASKS - 10), thrown.uniform(0, 4)) for _ in range(KILLS))
    # A few last longer than a scheduler is missed, so that each next one finds work in every state.
    run_id = airflow_site.trigger(DAG_ID, seconds=[*[0.2] * 9, 12])
    away = 0.0
    for started, later in points:
        airflow_site.until(lambda bound=started: len(airflow_site.starts(run_id)) >= bound, seconds=180)
        time.sleep(later)
        airflow_site.kill("scheduler")
        began = time.monotonic()
        airflow_site.start_again("scheduler")
        airflow_site.until_ready("scheduler")
        away = max(away, time.monotonic() - began)
    airflow_site.until(lambda: airflow_site.run_state(run_id) in ("success", "failed"), seconds=180)
    airflow_site.settle(run_id)
    balanced(
        balance(
            airflow_site,
            case="8 scheduler killed in a run of 200 tasks (A)",
            dag_id=DAG_ID,
            run_id=run_id,
            faults=KILLS,
            recovery_seconds=away,
        )
    )
    for machine in machines:
        machine.stop()
