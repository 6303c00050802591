"""Cases 12 and 13: jobs wait longer than Airflow waits for its own, and Airflow deletes some of them meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_programs import STUCK_SECONDS
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.on_airflow.conftest import WaitingRun

pytestmark = [
    pytest.mark.faults,
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


def tokens(site: AirflowSite, run_id: str) -> set[str]:
    return {job["token"] for job in site.jobs(run_id) if job["token"]}


def test_jobs_wait_longer_than_the_stuck_timer(
    airflow_site: AirflowSite, waiting_runs: dict[str, WaitingRun], balanced: Callable[[Row], None]
) -> None:
    run_id, deleted_run, run_of_deleted_dag = (waiting_runs[queue].run_id for queue in ("late", "doomed", "deleted"))
    doomed = (deleted_run, run_of_deleted_dag)
    first_tokens = tokens(airflow_site, run_id)
    # Airflow deletes no run that goes on.
    airflow_site.airflow.call("PATCH", f"dags/work_doomed/dagRuns/{deleted_run}", json={"state": "failed"})
    airflow_site.airflow.call("DELETE", f"dags/work_doomed/dagRuns/{deleted_run}")
    airflow_site.airflow.call("DELETE", "dags/work_deleted")
    # Airflow's timer is looked at every other second; at a third of a token's life it is minted anew.
    at_least = max(STUCK_SECONDS + 5 - (time.monotonic() - waiting_runs["late"].since), STUCK_SECONDS / 2)
    time.sleep(at_least)
    waited = time.monotonic() - waiting_runs["late"].since
    assert [job["state"] for job in airflow_site.jobs(run_id)] == ["queued"] * 4, "Airflow has queued them again"
    assert not tokens(airflow_site, run_id) & first_tokens, "the tokens run out"

    (machine,) = airflow_site.make_machines("late-1", queues="late,doomed,deleted")
    began = time.monotonic()
    airflow_site.start_machines(machine)
    airflow_site.until(lambda: airflow_site.run_state(run_id) in ("success", "failed"), seconds=120)
    recovery = time.monotonic() - began
    for one in (run_id, *doomed):
        airflow_site.settle(one)
    balanced(
        balance(
            airflow_site,
            case=f"13 a job waits for {waited:.0f} s, stuck after {STUCK_SECONDS} s (A)",
            dag_id="work_late",
            run_id=run_id,
            faults=1,
            recovery_seconds=recovery,
        )
    )
    row = Row(case="12 DAG and DAG run deleted under waiting jobs (A)", faults=2, jobs=6)
    for one in doomed:
        for job in airflow_site.jobs(one):
            # Withdrawn by a scheduler within a minute or two; by a machine's start where that came first.
            withdrawn = job["state"] == "revoked" and job["reason"].startswith("Airflow withdrew it")
            if not withdrawn and (job["state"], bool(job["reason"])) != ("refused", True):
                row.wrong += 1
                row.complaints.append(f"{job['task_id']}: {job['state']} {job['reason']!r}")
        row.doubled += len(airflow_site.starts(one))
    balanced(row)
    machine.stop()
