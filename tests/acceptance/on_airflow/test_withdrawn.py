"""Airflow's users change their mind: what runs stops at the edge, and what waits is withdrawn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]


def mark(site: AirflowSite, dag_id: str, run_id: str, state: str) -> None:
    """As the button in Airflow's UI does."""
    site.airflow.call("PATCH", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/work_0", json={"new_state": state})


def test_process_of_a_task_that_is_marked_failed_ends(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    # One slot, so that the next task says whether it is free.
    site.start_machines(*site.make_machines("stopped-1", queues="stopped", concurrency=1))
    run_id = site.trigger("work_stopped", seconds=300)
    site.until(lambda: site.starts(run_id), seconds=90)
    process = site.process_of(site.starts(run_id)[0])
    mark(site, "work_stopped", run_id, "failed")
    site.until(lambda: not process.is_running(), seconds=60)
    assert site.finish(run_id) == "failed"
    after = site.trigger("work_stopped", seconds=0.2)
    assert site.finish(after) == "success"
    ended = {("work_0", -1): "failed"}
    balanced(balance(site, case="marked", dag_id="work_stopped", run_id=run_id, faults=1, ended=ended))
    runs = [("work_stopped", run_id), ("work_stopped", after)]
    equal(books(site, case="a task marked failed while it runs, and the next one in its slot", runs=runs))


def test_jobs_that_airflow_does_not_want_any_more_are_withdrawn(
    airflow_site: AirflowSite, equal: Callable[[Books], None]
) -> None:
    """No machine serves these queues, so nobody would ever be refused a start."""
    site = airflow_site
    runs = {name: site.trigger(f"work_{name}") for name in ("deleted", "failed", "chosen")}
    site.until(lambda: all(len(site.jobs(run_id)) == 2 for run_id in runs.values()), seconds=90)
    for name in ("deleted", "failed"):  # Airflow deletes no run that goes on
        path = f"dags/work_{name}/dagRuns/{runs[name]}"
        site.airflow.call("PATCH", path, json={"state": "failed"})
        if name == "deleted":
            site.airflow.call("DELETE", path)
    mark(site, "work_chosen", runs["chosen"], "success")

    def withdrawn(name: str) -> int:
        """How many of the run's jobs are."""
        jobs = [job for job in site.jobs(runs[name]) if job["state"] == "revoked"]
        assert all("Airflow withdrew it" in job["reason"] for job in jobs), [job["reason"] for job in jobs]
        return len(jobs)

    site.until(lambda: withdrawn("deleted") == withdrawn("failed") == 2 and withdrawn("chosen") == 1, seconds=240)
    (waiting,) = [job for job in site.jobs(runs["chosen"]) if job["state"] != "revoked"]
    assert (waiting["task_id"], waiting["state"]) == ("work_1", "queued"), "what Airflow wants has to wait on"
    both = [(f"work_{name}", runs[name]) for name in ("deleted", "failed")]
    equal(books(site, case="runs deleted and marked failed while their jobs wait", runs=both, deleted=runs["deleted"]))
    mark_rest = f"dags/work_chosen/dagRuns/{runs['chosen']}"
    site.airflow.call("PATCH", mark_rest, json={"state": "failed"})
