"""Tasks that defer, are mapped or cleared: each try is one start and one end in both ledgers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]


def test_deferred_task_goes_on_where_it_deferred(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("deferred-1", queues="deferred"))
    run_id = site.trigger("work_deferred")
    assert site.finish(run_id) == "success"
    assert [line["what"] for line in site.witnessed(run_id)] == ["start", "resumed", "end"]
    assert [job["airflow_outcome"] for job in site.jobs(run_id)] == ["deferred", "success"]
    assert [job["try_number"] for job in site.jobs(run_id)] == [1, 1]
    balanced(balance(site, case="deferred", dag_id="work_deferred", run_id=run_id, faults=0))
    equal(books(site, case="a deferrable operator", runs=[("work_deferred", run_id)]))


def test_mapped_task_of_200(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("wide-1", "wide-2", queues="wide", concurrency=6))
    run_id = site.trigger("work_wide", seconds=0.1)
    assert site.finish(run_id) == "success"
    assert sorted(line["map_index"] for line in site.ends(run_id)) == list(range(200))
    balanced(balance(site, case="mapped", dag_id="work_wide", run_id=run_id, faults=0))
    equal(books(site, case="a mapped task of 200", runs=[("work_wide", run_id)]))


def clear(site: AirflowSite, dag_id: str, run_id: str) -> None:
    """As the button in Airflow's UI does."""
    body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": ["work_0"]}
    site.airflow.call("POST", f"dags/{dag_id}/clearTaskInstances", json=body)


def test_task_that_has_ended_is_run_again(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("rerun-1", queues="rerun"))
    run_id = site.trigger("work_rerun", seconds=1)
    assert site.finish(run_id) == "success"
    clear(site, "work_rerun", run_id)
    site.until(lambda: len(site.ends(run_id)) == 2, seconds=120)
    assert site.finish(run_id) == "success"
    again = {("work_0", -1): 2}
    balanced(balance(site, case="rerun", dag_id="work_rerun", run_id=run_id, faults=0, retried=again, rerun=True))
    equal(books(site, case="a task cleared after its end, and run again", runs=[("work_rerun", run_id)]))


def test_task_that_is_cleared_while_it_runs_stops_before_it_starts_again(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("cleared-1", queues="cleared"))
    run_id = site.trigger("work_cleared", seconds=300, again=1)
    site.until(lambda: site.starts(run_id), seconds=90)
    first = site.process_of(site.starts(run_id)[0])
    clear(site, "work_cleared", run_id)
    site.until(lambda: len(site.starts(run_id)) == 2, seconds=120)
    assert not first.is_running(), "both tries ran at the same time"
    assert site.finish(run_id) == "success"
    again = {("work_0", -1): 2}
    balanced(balance(site, case="cleared", dag_id="work_cleared", run_id=run_id, faults=0, retried=again))
    equal(books(site, case="a task cleared while it runs", runs=[("work_cleared", run_id)]))
