"""The callback of a missed deadline runs at the edge, also when its scheduler dies under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.faults.airflow_programs import SECOND_SCHEDULER
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

MISSED = (
    "SELECT c.id, c.state FROM callback c JOIN deadline d ON d.callback_id = c.id JOIN dag_run r ON r.id = d.dagrun_id"
    " WHERE r.run_id = %s"
)


def callback(site: AirflowSite, run_id: str) -> tuple[Any, str]:
    """(id, state) of the run's callback, as Airflow has it; of a run that has not begun there is none."""
    rows = site.parts.rows("airflow", MISSED, run_id)
    return rows[0] if rows else (None, "")


def said(site: AirflowSite, run_id: str, what: str) -> int:
    return len([line for line in site.witnessed(run_id) if line["what"] == f"callback {what}"])


def test_deadline_callback_runs_at_the_edge(airflow_site: AirflowSite, equal: Callable[[Books], None]) -> None:
    site = airflow_site
    # Airflow gives callbacks no queue: they go to [operators] default_queue.
    site.start_machines(*site.make_machines("late-1", queues="late,default"))
    run_id = site.trigger("work_late", seconds=8)
    site.until(lambda: callback(site, run_id)[1] in ("success", "failed"), seconds=120)
    assert site.finish(run_id) == "success"
    assert callback(site, run_id)[1] == "success"
    assert (said(site, run_id, "start"), said(site, run_id, "end")) == (1, 1)
    equal(books(site, case="the callback of a missed deadline", runs=[("work_late", run_id)]))


def test_deadline_callback_outlives_its_scheduler(airflow_site: AirflowSite, equal: Callable[[Books], None]) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("late-2", queues="late,default"))
    run_id = site.trigger("work_late", seconds=1, callback_seconds=15)
    site.until(lambda: said(site, run_id, "start"), seconds=120)
    query = "SELECT dispatcher FROM edgecontrol.job WHERE airflow_id = %s"
    ((dispatcher,),) = site.parts.rows("edgecontrol", query, callback(site, run_id)[0])
    (victim,) = [one for one in ("scheduler", SECOND_SCHEDULER) if dispatcher in site.parts.dispatchers(one)]
    site.kill(victim)
    site.until(lambda: said(site, run_id, "end"), seconds=60)
    site.until(lambda: callback(site, run_id)[1] in ("success", "failed"), seconds=300)
    assert site.finish(run_id) == "success"
    assert (said(site, run_id, "start"), said(site, run_id, "end")) == (1, 1)
    equal(books(site, case="its scheduler killed under a deadline's callback", runs=[("work_late", run_id)]))
