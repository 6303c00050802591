"""What Airflow's API shows of a log: its lines soon after they were written, and a large one without holding it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]

WRITTEN = re.compile(r"at (\d+\.\d+)")
LARGE = re.compile(rb"\d{9} x{900}")
#: Lines of the large log: 20 MB.
LINES = 20_000


def test_a_line_is_shown_while_its_task_runs(
    airflow_site: AirflowSite, equal: Callable[[Books], None], measured: Callable[[str], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("live-1", queues="live_log"))
    run_id = site.trigger("work_live_log", lines=40)
    site.until(lambda: site.starts(run_id), seconds=90)
    ages: dict[float, float] = {}
    while not (ended := site.ends(run_id)):
        lines = site.airflow.log("work_live_log", run_id, "work_0", -1, 1)
        now = time.time()
        for at in (float(found[1]) for line in lines if (found := WRITTEN.fullmatch(line["event"]))):
            ages.setdefault(at, now - at)
        time.sleep(0.05)
    # All but those of the last moments; how soon, on whatever machine this runs, is said and not asserted.
    assert len(ages) >= 20, f"{len(ages)} of 40 lines were shown before the task ended at {ended}"
    ordered = sorted(ages.values())
    measured(
        f"from a task's print to /api/v2: {ordered[len(ordered) // 2]:.2f} s (median), {ordered[-1]:.2f} s (most)"
        f" over {len(ordered)} lines"
    )
    assert site.finish(run_id) == "success"
    equal(books(site, case="a log that is watched", runs=[("work_live_log", run_id)]))


@contextmanager
def memory_of(root: psutil.Process) -> Iterator[list[int]]:
    """The resident bytes of the process and all below it, again and again."""
    found: list[int] = []
    ending = threading.Event()

    def look() -> None:
        while not ending.wait(0.05):
            found.append(sum(one.memory_info().rss for one in [root, *root.children(recursive=True)]))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        ending.set()
        looking.join()


def test_a_large_log_is_streamed_whole(
    airflow_site: AirflowSite, equal: Callable[[Books], None], measured: Callable[[str], None]
) -> None:
    site = airflow_site
    site.start_machines(*site.make_machines("large-1", queues="large_log"))
    run_id = site.trigger("work_large_log", lines=LINES)
    assert site.finish(run_id) == "success"
    server = psutil.Process(site.processes.newest("api-server").popen.pid)
    for task_id, where in (("work_0", "of the edge"), ("beside", "of the LocalExecutor")):
        path = f"{site.airflow.url}/api/v2/dags/work_large_log/dagRuns/{run_id}/taskInstances/{task_id}/logs/1"
        with memory_of(server) as used:
            answer = site.airflow.session.get(path, headers={"Accept": "application/x-ndjson"}, timeout=300)
        assert answer.status_code == 200
        assert len(LARGE.findall(answer.content)) == LINES
        megabytes = [round(figure / 1e6) for figure in (used[0], max(used))]
        size = len(answer.content) / 1e6
        measured(
            f"a log of {size:.0f} MB {where}: the api-server has {megabytes[0]} MB before, {megabytes[1]} MB at most"
        )
    runs = [("work_large_log", run_id)]
    equal(books(site, case="a large log", runs=runs, elsewhere=[("beside", -1)]))
