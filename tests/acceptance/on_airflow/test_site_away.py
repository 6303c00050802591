"""Many jobs wait for a site that is away, far more than [core] parallelism: another site's work does not wait."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]


def test_100_jobs_wait_for_a_site_that_is_away_while_another_works(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    away, here = site.make_machines("away-1", "here-1", queues="away,here", concurrency=8)
    away.queues, here.queues = "away", "here"
    away_run = site.trigger("work_away", seconds=0.1)
    site.until(lambda: len(site.jobs(away_run)) == 100, seconds=120)
    site.start_machines(here)
    here_run = site.trigger("work_here")
    assert site.finish(here_run) == "success"
    assert [job["state"] for job in site.jobs(away_run)] == ["queued"] * 100
    assert site.run_state(away_run) == "running"
    site.start_machines(away)
    assert site.finish(away_run) == "success"
    runs = [("work_here", here_run), ("work_away", away_run)]
    for dag_id, run_id in runs:
        balanced(balance(site, case="away", dag_id=dag_id, run_id=run_id, faults=0))
    equal(books(site, case="100 jobs wait for a site that is away while another works", runs=runs))
