"""Case 5: Airflow's api-server is away with tasks running, ending and about to start."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_programs import PACE
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.pace import FULL

pytestmark = [
    pytest.mark.faults,
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

DAG_ID = "work_outage"
SLOTS = 12


@pytest.mark.parametrize("away_seconds", [40, 180] if FULL else [45])
def test_api_server_away(
    airflow_site: AirflowSite, balanced: Callable[[Row], None], away_seconds: int, request: pytest.FixtureRequest
) -> None:
    names = [f"outage-{away_seconds}-{number}" for number in range(2)]
    machines = airflow_site.make_machines(*names, queues="outage", concurrency=SLOTS // 2)
    airflow_site.start_machines(*machines)
    # Of every two one ends in the outage, so that another would start in its place, and one runs right through it,
    # also where the api-server needs half a minute more to be back.
    run_id = airflow_site.trigger(DAG_ID, seconds=[away_seconds / 3, away_seconds + 45])
    airflow_site.until(lambda: len(airflow_site.starts(run_id)) == SLOTS, seconds=120)
    gone_at = time.time()
    airflow_site.way_to_airflow.refuse_connections()
    airflow_site.kill("api-server")
    # How long it takes to be back is not ours to say; nobody can reach it before its time.
    airflow_site.start_again("api-server")
    airflow_site.until_ready("api-server")
    airflow_site.until_ready("Execution API")
    time.sleep(max(0.0, gone_at + away_seconds - time.time()))
    airflow_site.way_to_airflow.reopen()
    back_at = time.time()
    assert back_at - gone_at < PACE.patience - 5, "this machine brings the api-server back too late for this case"
    airflow_site.until(lambda: airflow_site.run_state(run_id) in ("success", "failed"), seconds=away_seconds * 4 + 120)
    airflow_site.settle(run_id)
    ended = [line for line in airflow_site.ends(run_id) if gone_at < line["at"] < back_at]
    started = {(line["task"], line["map_index"]): line["at"] for line in airflow_site.starts(run_id)}
    through = [
        line
        for line in airflow_site.ends(run_id)
        if started[line["task"], line["map_index"]] < gone_at and line["at"] > back_at
    ]
    assert ended, "no task ended while the api-server was away"
    assert through, "no task ran through the outage"
    assert not [at for at in started.values() if gone_at + 1 < at < back_at], "a task started without Airflow"
    first = min(at for at in started.values() if at > gone_at + 1)
    balanced(
        balance(
            airflow_site,
            case=f"5 api-server away for {back_at - gone_at:.0f} s (A)",
            dag_id=DAG_ID,
            run_id=run_id,
            faults=1,
            recovery_seconds=first - back_at,
        )
    )
    for machine in machines:
        machine.stop()
