"""Two api-servers that share no disk show the same log, while its task runs and afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.demo.airflow_api import AirflowApi
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]

LINE = re.compile(r"task 0, line \d+: 20 °C, größer als 19 °C, 温度")


def shown(server: AirflowApi, run_id: str) -> list[str]:
    """The task's own lines, as this api-server shows them now."""
    lines = server.log("work_two_servers", run_id, "work_0", 0, 1)
    events = [line["event"] if isinstance(line, dict) else str(line) for line in lines]
    return [event for event in events if LINE.fullmatch(event)]


def test_two_api_servers_without_a_shared_disk_show_the_same_log_live(
    airflow_site: AirflowSite, equal: Callable[[Books], None]
) -> None:
    site = airflow_site
    servers = (site.airflow, site.other_airflow)
    site.start_machines(*site.make_machines("servers-1", queues="two_servers"))
    run_id = site.trigger("work_two_servers", seconds=30)
    site.until(lambda: site.starts(run_id), seconds=90)
    for server in servers:
        site.until(lambda one=server: len(shown(one, run_id)) >= 3, seconds=25)
    earlier = shown(servers[0], run_id)
    later = shown(servers[1], run_id)
    assert not site.ends(run_id), "the log was shown only once the task had ended"
    assert later[: len(earlier)] == earlier, "the second one shows less than the first one showed before"
    assert site.finish(run_id) == "success"
    first, second = (shown(server, run_id) for server in servers)
    assert first == second
    assert [f"task 0, line {number}:" for number in range(len(first))] == [
        line.partition(":")[0] + ":" for line in first
    ]
    assert len(first) >= 55
    folders = [
        Path(of["AIRFLOW__LOGGING__BASE_LOG_FOLDER"]) for of in (site.programs.airflow, site.programs.other_api_server)
    ]
    assert not [path for folder in folders for path in folder.rglob("*.log") if run_id in str(path)]
    equal(books(site, case="two api-servers without a shared disk", runs=[("work_two_servers", run_id)]))
