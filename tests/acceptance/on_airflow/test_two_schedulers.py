"""Two schedulers share a run of 300 tasks, and one of them is killed in the middle of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_programs import SECOND_SCHEDULER
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

SCHEDULERS = ("scheduler", SECOND_SCHEDULER)


def test_one_of_two_schedulers_is_killed_in_a_run_of_300_tasks(
    airflow_site: AirflowSite,
    equal: Callable[[Books], None],
    balanced: Callable[[Row], None],
    measured: Callable[[str], None],
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("shifts-1", "shifts-2", "shifts-3", queues="shifts", concurrency=4))
    # Some last until after the kill, so that the survivor finds work in every state.
    run_id = site.trigger("work_shifts", seconds=[*[0.2] * 9, 10])
    site.until(lambda: len(site.starts(run_id)) >= 50, seconds=120)
    open_jobs: dict[str, int] = {}

    def both_have_some() -> bool:
        open_jobs.update({name: site.open_jobs(run_id, scheduler=name) for name in SCHEDULERS})
        return all(open_jobs.values())

    site.until(both_have_some, seconds=120)
    victim = max(SCHEDULERS, key=lambda name: open_jobs[name])
    done = len(site.ends(run_id))
    site.kill(victim)
    killed_at = time.monotonic()
    site.until(lambda: not site.open_jobs(run_id, scheduler=victim), seconds=120)
    measured(f"a scheduler is killed after {done} of 300 tasks; its {open_jobs[victim]} open jobs are another's after "
             f"{time.monotonic() - killed_at:.0f} s")  # fmt: skip
    assert site.finish(run_id) == "success"
    assert len(site.ends(run_id)) == 300
    balanced(balance(site, case="two schedulers", dag_id="work_shifts", run_id=run_id, faults=1))
    equal(books(site, case="one of two schedulers killed in a run of 300 tasks", runs=[("work_shifts", run_id)]))
