"""Real Airflow with `[logging] remote_logging` to S3, on its own machines and at the edge: both logs, side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-not-found]
import psycopg
import pytest
from moto.server import ThreadedMotoServer  # type: ignore[import-not-found]

from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.proxy import FaultProxy

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

BUCKET = "airflow-logs"
STORAGE = {
    "logging.remote_logging": "true",
    "logging.remote_base_log_folder": f"s3://{BUCKET}/tasks",
    "logging.remote_log_conn_id": "log_store",
}
MARKED = re.compile(r"\w+ -?\d+ try \d+ line \d 温度")


class Cloud:
    """S3, with a line to it that can be cut."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.way = FaultProxy(target=f"http://{host}:{port}", name="S3")
        known: dict[str, Any] = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
        self.client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1", **known)
        self.client.create_bucket(Bucket=BUCKET)

    def objects(self) -> dict[str, str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        keys = [one["Key"] for one in listed]
        return {key: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode() for key in keys}

    def close(self) -> None:
        self.way.close()
        self.server.stop()


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, cloud: Cloud) -> Iterator[AirflowSite]:
    site = AirflowSite(
        tmp_path_factory.mktemp("airflow") / "site",
        settings=STORAGE,
        # The machine has no credentials: its tasks get the connection from Airflow.
        machine_settings={**STORAGE, "logging.delete_local_logs": "true"},
        dags=Path(__file__).resolve().parent / "dags",
        first_dag="both_logs",
    )
    try:
        site.start()
        connection = {"connection_id": "log_store", "conn_type": "aws", "login": "key", "password": "secret"}
        extra = json.dumps({"endpoint_url": cloud.way.url, "region_name": "us-east-1"})
        site.airflow.put("connections", "log_store", {**connection, "extra": extra})
        site.start_machines(*site.make_machines("plant-1", queues="plant"))
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def run_id(site: AirflowSite) -> str:
    """A run of every kind of task, of which everything has arrived."""
    run_id = site.trigger("both_logs")
    assert site.finish(run_id) == "success"
    return run_id


@pytest.fixture(autouse=True)
def everything_answers_again(site: AirflowSite, cloud: Cloud) -> Iterator[None]:
    yield
    cloud.way.reopen()
    site.database.thaw()


def events(site: AirflowSite, run_id: str, task_id: str, *, map_index: int = -1, number: int = 1) -> list[str]:
    return [line["event"] for line in site.airflow.log("both_logs", run_id, task_id, map_index, number)]


def marked(site: AirflowSite, run_id: str, task_id: str, **which: int) -> list[str]:
    return [event for event in events(site, run_id, task_id, **which) if MARKED.fullmatch(event)]


def sources(site: AirflowSite, run_id: str, task_id: str, **which: int) -> list[str]:
    """What Airflow's UI shows under "Log message source details"."""
    lines = events(site, run_id, task_id, **which)
    return lines[lines.index("::group::Log message source details") + 1 : lines.index("::endgroup::")]


def two_lines(kind: str, *, map_index: int = -1, number: int = 1) -> list[str]:
    return [f"{kind} {map_index} try {number} line {line} 温度" for line in range(2)]


def test_a_task_beside_is_shown_from_s3_and_one_of_the_edge_from_edgecontrol(site: AirflowSite, run_id: str) -> None:
    assert marked(site, run_id, "beside") == two_lines("beside")
    assert [source.partition("://")[0] for source in sources(site, run_id, "beside")] == ["s3"]
    assert marked(site, run_id, "edge") == two_lines("edge")
    assert [source.partition(" job ")[0] for source in sources(site, run_id, "edge")] == ["EdgeControl"]


def test_tasks_of_the_edge_upload_too_and_the_agents_log_stays_whole(
    site: AirflowSite, cloud: Cloud, run_id: str
) -> None:
    stored = cloud.objects()
    jobs = site.jobs(run_id)
    assert len(jobs) == 7  # one, two mapped with two tries each, and the two parts of the deferred one
    for job in jobs:
        whole = site.stored_log(job, job["attempt"]).decode()
        assert len(whole.encode()) == job["log_final_size"]
        uploaded = stored[f"tasks/{job['log_path']}"]
        # What follows the upload is not in it.
        assert all(line in uploaded for line in whole.splitlines() if "温度" in line)


def test_each_try_of_each_mapped_task_has_its_own_log(site: AirflowSite, run_id: str) -> None:
    for map_index in (0, 1):
        for number in (1, 2):
            which = {"map_index": map_index, "number": number}
            assert marked(site, run_id, "again", **which) == two_lines("again", **which)


def test_the_triggerers_part_is_in_both(site: AirflowSite, cloud: Cloud, run_id: str) -> None:
    assert marked(site, run_id, "deferred") == [*two_lines("before"), *two_lines("after")]
    assert [" at Airflow's triggerer" in source for source in sources(site, run_id, "deferred")].count(True) == 1
    keys = [key for key in cloud.objects() if "task_id=deferred" in key]
    assert [".trigger." in key for key in sorted(keys)] == [False, True]


def test_while_s3_is_away_the_edges_log_is_shown_and_the_other_says_why_it_is_not(
    site: AirflowSite, cloud: Cloud, run_id: str
) -> None:
    cloud.way.refuse_connections()
    assert marked(site, run_id, "edge") == two_lines("edge")
    assert any("remote log storage cannot be read now" in event for event in events(site, run_id, "beside"))
    cloud.way.reopen()
    assert marked(site, run_id, "beside") == two_lines("beside")


def test_while_edgecontrols_database_is_away_the_log_in_s3_is_shown(site: AirflowSite, run_id: str) -> None:
    site.database.cut()
    site.database.freeze()
    assert marked(site, run_id, "beside") == two_lines("beside")
    assert any("EdgeControl's log cannot be read now" in source for source in sources(site, run_id, "beside"))


def test_a_cleared_task_has_a_log_for_each_try(site: AirflowSite, run_id: str) -> None:
    body = {"dry_run": False, "dag_run_id": run_id, "task_ids": ["edge"], "only_failed": False}
    site.airflow.call("POST", "dags/both_logs/clearTaskInstances", json=body)
    site.until(lambda: len(site.jobs(run_id)) == 8, seconds=60)
    assert site.finish(run_id) == "success"
    assert marked(site, run_id, "edge") == two_lines("edge")
    assert marked(site, run_id, "edge", number=2) == two_lines("edge", number=2)


def test_while_s3_is_away_a_task_of_the_edge_ends_as_it_did(site: AirflowSite, cloud: Cloud) -> None:
    cloud.way.refuse_connections()
    run_id = site.trigger("both_logs")
    site.until(lambda: sum(job["state"] == "success" for job in site.jobs(run_id)) >= 1, seconds=180)
    cloud.way.reopen()
    assert site.finish(run_id) == "success"
    assert marked(site, run_id, "edge") == two_lines("edge")


def test_of_a_purged_job_the_log_in_s3_is_shown(site: AirflowSite, run_id: str) -> None:
    with psycopg.connect(site.programs.databases["edgecontrol"]) as connection:
        connection.execute("DELETE FROM edgecontrol.job WHERE run_id = %s", [run_id])
    assert marked(site, run_id, "edge") == two_lines("edge")
    assert [source.partition("://")[0] for source in sources(site, run_id, "edge")] == ["s3"]
    assert marked(site, run_id, "deferred") == [*two_lines("before"), *two_lines("after")]
