"""A connection is tested on the machine that would use it; what nobody tests is withdrawn."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]


def enqueue(site: AirflowSite, name: str, *, path: str, queue: str) -> str:
    """Ask Airflow for the test of a connection to a folder, as its UI does; return the test's token."""
    body = {
        "connection_id": name,
        "conn_type": "fs",
        "extra": json.dumps({"path": path}),
        "executor": "edge",
        "queue": queue,
    }
    return str(site.airflow.call("POST", "connections/enqueue-test", json=body)["token"])


def result(site: AirflowSite, token: str) -> dict[str, Any]:
    headers = {"Airflow-Connection-Test-Token": token}
    answer: dict[str, Any] = site.airflow.call("GET", "connections/enqueue-test", headers=headers)
    return answer


def ended(site: AirflowSite, token: str) -> bool:
    return result(site, token)["state"] in ("success", "failed")


def job_of(site: AirflowSite, token: str) -> dict[str, Any]:
    ((test_id,),) = site.parts.rows("airflow", "SELECT id FROM connection_test_request WHERE token = %s", token)
    ((state, machine, reason),) = site.parts.rows(
        "edgecontrol",
        "SELECT j.state, w.name, j.reason FROM edgecontrol.job j LEFT JOIN edgecontrol.worker w ON w.id = j.worker_id"
        " WHERE airflow_id = %s",
        test_id,
    )
    return {"state": state, "machine": machine, "reason": reason}


def test_connection_is_tested_on_the_machine_of_its_queue(
    airflow_site: AirflowSite, equal: Callable[[Books], None]
) -> None:
    site = airflow_site
    (machine,) = site.make_machines("tests-1", queues="tests")
    site.start_machines(machine)
    # A file of which only that machine could know.
    there = enqueue(site, "folder_there", path=str(machine.folder / "state"), queue="tests")
    gone = enqueue(site, "folder_gone", path="/nonexistent/folder", queue="tests")
    for token in (there, gone):
        site.until(lambda one=token: ended(site, one), seconds=90)
        site.until(lambda one=token: job_of(site, one)["state"] in ("success", "failed"), seconds=60)
        assert job_of(site, token)["machine"] == "tests-1"
    assert result(site, there)["state"] == "success"
    assert "is existing" in result(site, there)["result_message"]
    assert result(site, gone)["state"] == "failed"
    assert "does not exist" in result(site, gone)["result_message"]
    equal(books(site, case="connection tests, one of which fails", tests=[there, gone]))


def test_connection_test_that_nobody_takes_is_withdrawn(
    airflow_site: AirflowSite, equal: Callable[[Books], None]
) -> None:
    site = airflow_site
    token = enqueue(site, "folder_waiting", path="/tmp", queue="nobody_tests")
    site.until(lambda: ended(site, token), seconds=120)
    assert "never started" in result(site, token)["result_message"]
    site.until(lambda: job_of(site, token)["state"] == "revoked", seconds=120)
    assert "Airflow" in job_of(site, token)["reason"]
    equal(books(site, case="a connection test that nobody takes", tests=[token]))
