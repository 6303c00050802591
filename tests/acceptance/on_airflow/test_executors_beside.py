"""LocalExecutor beside ours: a task runs where it says, however it spells the executor's name."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]

OURS = {"by_default", "by_alias", "by_path", "by_class"}
BESIDE = {"beside_by_class", "beside_by_path"}


def external_ids(site: AirflowSite, run_id: str) -> dict[str, str]:
    """What Airflow calls each queueing of ours."""
    query = "SELECT task_id, external_executor_id FROM task_instance WHERE run_id = %s AND task_id = ANY(%s)"
    return dict(site.parts.rows("airflow", query, run_id, list(OURS)))


def test_tasks_choose_their_executor_by_alias_path_and_class_name(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("choice-1", queues="choice"))
    run_id = site.trigger("work_choice", seconds=1)
    assert site.finish(run_id) == "success"
    assert {line["task"] for line in site.starts(run_id)} == OURS
    assert {line["task"] for line in site.witnessed_beside(run_id)} == BESIDE
    assert sorted(job["task_id"] for job in site.jobs(run_id)) == sorted(OURS), "not one job for each task of ours"
    assert {job["task_id"]: str(job["id"]) for job in site.jobs(run_id)} == external_ids(site, run_id)
    elsewhere = [(task, -1) for task in BESIDE]
    balanced(balance(site, case="executors", dag_id="work_choice", run_id=run_id, faults=0, elsewhere=elsewhere))
    case = "LocalExecutor beside: tasks choose by alias, module path and class name"
    equal(books(site, case=case, runs=[("work_choice", run_id)], elsewhere=elsewhere))
