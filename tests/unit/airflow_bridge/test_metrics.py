from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import airflow
import pytest
import yaml
from airflow._shared.observability.metrics.otel_logger import SafeOtelLogger
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from airflow_bridge import fleet, metrics
from airflow_bridge.airflow_features import EXPANDS_NAMES
from airflow_bridge.fleet import WorkerNow
from airflow_bridge.fleet_metrics import of_worker, status
from airflow_bridge.ledger import OpenJob
from airflow_bridge.metrics import Meters
from airflow_bridge.queueing import key_of
from airflow_bridge.states import JobState, Kind
from airflow_bridge.store import JobRow
from tests.unit.airflow_bridge.builders import job_row
from tests.unit.airflow_bridge.recording import Recorder, Sent, recording

EDGE3: dict[str, Any] = json.loads(Path(__file__).with_name("edge3_metrics.json").read_text())
BERLIN = WorkerNow(
    name="berlin",
    state="running",
    queues=["gpu", "cpu"],
    concurrency=8,
    jobs=2,
    slots=3,
    heard_at=1.0,
    hindered=False,
    sysinfo={"cpu_percent": 5, "load_per_cpu": 0.3, "healthy": True, "hostname": "b", "free_concurrency": 99},
)


@pytest.fixture(autouse=True)
def statsd_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Without names that hold what is in the tags."""
    monkeypatch.setenv("AIRFLOW__METRICS__LEGACY_NAMES_ON", "False")
    with recording() as recorder:
        yield recorder


def tell_all(meters: Meters) -> None:
    """Everything that there is to tell, once."""
    with meters.timing_sync():
        pass
    row = job_row(attempt=1, queue="gpu")
    meters.started(open_job(row))
    meters.ended(row, key=key_of(row), known=open_job(row))
    meters.heartbeat("berlin")
    meters.gauges(of_worker(BERLIN))
    meters.gauges((name, 1, {"queue": "gpu"}) for name in metrics.OWN if metrics.OWN[name][:2] == ("gauge", ("queue",)))
    for name in metrics.OWN:
        if metrics.OWN[name][0] == "counter":
            meters.event(name.removeprefix("edgecontrol.jobs."), queue="gpu")
    send(meters)


def send(meters: Meters, **state: Any) -> None:
    meters.send(**{"buffered": 0, "away": False, "seconds": 60, **state})


def open_job(row: JobRow, **changes: Any) -> OpenJob:
    return OpenJob(**{"id": row.id, "key": key_of(row), "airflow_id": row.airflow_id, "queue": row.queue, **changes})


def kinds_and_tags(sent: list[Sent]) -> dict[str, tuple[str, list[str]]]:
    return {one.name: (one.kind, sorted(one.tags)) for one in sent}


# What people have built upon Airflow's own edge executor


@pytest.mark.parametrize("team", [None, "blue"])
def test_every_name_and_tag_of_edge3_is_ours(plain: Recorder, team: str | None) -> None:
    tell_all(Meters(team_name=team))
    of_team = ["team_name"] if team else []
    theirs = {name: (about["type"], sorted(about["tags"] + of_team)) for name, about in EDGE3["metrics"].items()}
    figure = EDGE3["any_number_of_sysinfo"]
    for key in ("cpu_percent", "load_per_cpu", "healthy"):
        theirs[f"edge_worker.{key}"] = (figure["type"], sorted(figure["tags"] + of_team))
    ours = kinds_and_tags(plain.sent)
    assert {name: ours[name] for name in ours if name.startswith("edge_")} == theirs
    assert theirs.keys() > metrics.EDGE3 == EDGE3["metrics"].keys()


@pytest.mark.skipif(not EXPANDS_NAMES, reason="the list of Airflow before 3.3 is older than edge3's names")
def test_every_name_of_edge3_is_on_airflows_own_list_of_metrics() -> None:
    template = Path(airflow.__file__).parent / "_shared/observability/metrics/metrics_template.yaml"
    listed = {metric["name"]: metric for metric in yaml.safe_load(template.read_text())["metrics"]}
    for name, about in EDGE3["metrics"].items():
        assert listed[name]["type"] == about["type"]
        assert set(listed[name]["name_variables"]) <= set(about["tags"])
    assert not [
        name for name in listed if name.startswith(("edge_worker", "edge_executor")) and name not in EDGE3["metrics"]
    ]


def test_states_mean_what_they_mean_to_edge3() -> None:
    assert sorted(fleet.GONE) == EDGE3["states"]["connected_unless"]
    assert sorted(fleet.MAINTENANCE) == EDGE3["states"]["maintenance_when"]


def test_all_that_is_ours_is_on_our_list(plain: Recorder) -> None:
    tell_all(Meters(team_name=None, scheduler="centre"))
    ours = {name: value for name, value in kinds_and_tags(plain.sent).items() if name.startswith("edgecontrol.")}
    assert ours == {name: (kind, sorted(tags)) for name, (kind, tags, _) in metrics.OWN.items()}


# The gauges of a worker


def gauges(worker: WorkerNow) -> dict[str, float]:
    return {name.removeprefix("edge_worker."): value for name, value, _ in of_worker(worker)}


def test_a_worker_that_is_there_shows_its_figures() -> None:
    assert gauges(BERLIN) == {
        "status": logging.INFO,
        "connected": 1,
        "maintenance": 0,
        "jobs_active": 2,
        "concurrency": 8,
        "free_concurrency": 5,
        "num_queues": 2,
        "cpu_percent": 5,
        "load_per_cpu": 0.3,
        "healthy": 1,
    }
    assert [tags for name, _, tags in of_worker(BERLIN) if name.endswith("num_queues")] == [
        {"worker_name": "berlin", "queues": "gpu,cpu"}
    ]


def test_a_worker_that_is_gone_shows_no_figure_of_its_past() -> None:
    assert gauges(replace(BERLIN, state="unknown", jobs=1)) == {
        "status": logging.NOTSET,
        "connected": 0,
        "maintenance": 0,
        "jobs_active": 1,
        "concurrency": 0,
        "free_concurrency": 0,
        "num_queues": 0,
    }


@pytest.mark.parametrize(
    ("sysinfo", "hindered", "level"),
    [
        ({}, False, logging.INFO),
        ({}, True, logging.WARNING),
        ({"status": 40}, True, 40),
        ({"status": "well"}, False, logging.INFO),
        ({"status": True}, False, logging.INFO),
    ],
)
def test_the_status_is_a_level_of_logging(sysinfo: dict[str, Any], hindered: bool, level: int) -> None:
    assert status(replace(BERLIN, sysinfo=sysinfo, hindered=hindered)) == level


def test_a_worker_that_lost_slots_has_none_free_and_no_negative_number() -> None:
    assert gauges(replace(BERLIN, concurrency=1))["free_concurrency"] == 0


@pytest.mark.parametrize("figure", ["", "x" * 200, "has space", "a.b", "a|g", "größe", "connected", "num_queues"])
def test_a_figure_whose_name_is_unfit_or_taken_is_left_out(figure: str) -> None:
    assert gauges(replace(BERLIN, sysinfo={figure: 7})) == gauges(replace(BERLIN, sysinfo={}))


# Starts and ends


def counted(recorder: Recorder, meters: Meters) -> dict[str, float]:
    recorder.sent.clear()
    send(meters)
    return {sent.name: sent.value for sent in recorder.sent if sent.kind == "counter"}


def test_a_job_starts_once_however_often_it_is_handed_out(plain: Recorder) -> None:
    meters, row = Meters(team_name=None), job_row(queue="gpu")
    meters.started(open_job(row))
    meters.started(open_job(row))
    send(meters)
    assert plain.named("edge_worker.ti.start") == [
        Sent("counter", "edge_worker.ti.start", 1, {"dag_id": "etl", "task_id": "extract", "queue": "gpu"})
    ]


@pytest.mark.parametrize(
    ("state", "outcome", "finish", "others"),
    [
        (JobState.SUCCESS, "success", "success", {}),
        (JobState.SUCCESS, "deferred", "success", {}),
        (JobState.SUCCESS, "up_for_retry", "failed", {}),
        (JobState.SUCCESS, "failed", "failed", {}),
        (JobState.FAILED, "", "failed", {}),
        (JobState.LOST, "", "failed", {"edgecontrol.jobs.lost": 1}),
        (JobState.REFUSED, "", "failed", {"edgecontrol.jobs.refused": 1}),
        (JobState.REVOKED, "", "failed", {"edgecontrol.jobs.revoked": 1}),
    ],
)
def test_what_started_has_one_end(
    plain: Recorder, state: JobState, outcome: str, finish: str, others: dict[str, float]
) -> None:
    meters, row = Meters(team_name=None), job_row(state=state, airflow_outcome=outcome, attempt=1, queue="gpu")
    meters.ended(row, key=key_of(row), known=open_job(row))
    # Airflow dropped the event, so it is told again; the ledger knows of it no more.
    meters.ended(row, key=key_of(row), known=None)
    assert counted(plain, meters) == {"edge_worker.ti.start": 1, "edge_worker.ti.finish": 1, **others}
    assert plain.named("edge_worker.ti.finish")[0].tags == {
        "dag_id": "etl",
        "task_id": "extract",
        "queue": "gpu",
        "state": finish,
    }


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.REVOKED])
def test_what_never_started_has_no_end(plain: Recorder, state: JobState) -> None:
    meters, row = Meters(team_name=None), job_row(state=state, attempt=0)
    meters.ended(row, key=key_of(row), known=open_job(row))
    name = "expired" if state == JobState.FAILED else "revoked"
    assert counted(plain, meters) == {f"edgecontrol.jobs.{name}": 1}


def test_a_start_that_another_scheduler_saw_is_not_counted_again(plain: Recorder) -> None:
    meters, row = Meters(team_name=None), job_row(attempt=1)
    meters.started(open_job(row, handed_out=True))
    meters.ended(row, key=key_of(row), known=open_job(row, handed_out=True))
    assert counted(plain, meters) == {"edge_worker.ti.finish": 1}


def test_callbacks_are_no_task_instances(plain: Recorder) -> None:
    meters, row = Meters(team_name=None), job_row(kind=Kind.CALLBACK, state=JobState.LOST, attempt=1)
    meters.started(open_job(row))
    meters.ended(row, key=key_of(row), known=open_job(row))
    assert counted(plain, meters) == {"edgecontrol.jobs.lost": 1}


def test_a_thousand_ends_of_one_task_are_one_message(plain: Recorder) -> None:
    meters = Meters(team_name=None)
    for _ in range(1000):
        row = job_row(attempt=1)
        meters.ended(row, key=key_of(row), known=None)
    assert counted(plain, meters) == {"edge_worker.ti.finish": 1000}
    assert len(plain.named("edge_worker.ti.finish")) == 1


def test_what_is_remembered_is_bounded(plain: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REMEMBERED", 10)
    meters = Meters(team_name=None)
    for _ in range(50):
        row = job_row(attempt=1)
        meters.started(open_job(row))
        meters.ended(row, key=key_of(row), known=open_job(row))
    never_ended = job_row()
    meters.started(open_job(never_ended))
    assert (len(meters._ended), len(meters._started)) == (10, 1)
    meters.forget_all_but(lambda job_id: False)
    assert not meters._started


# Sending


def test_what_does_not_fit_into_a_turn_goes_out_in_the_next_ones(plain: Recorder) -> None:
    meters = Meters(team_name=None)
    meters.gauges(("edgecontrol.jobs.held", number, {"queue": f"q{number}"}) for number in range(10))
    turns = 0
    while meters.gauges_left or not turns:
        meters.send(buffered=3, away=True, seconds=1e-9)
        turns += 1
        assert turns < 100
    # At least one message a turn, or a slow machine would never get anywhere.
    assert 10 <= turns <= 20
    assert plain.values("edgecontrol.jobs.held") == list(range(10))
    assert (plain.values("edgecontrol.buffered"), plain.values("edgecontrol.table_away")) == ([3], [1])


def test_a_backend_that_fails_harms_nobody_and_is_complained_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as recorder:
        meters = Meters(team_name=None)

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError("network is unreachable")

        for method in ("incr", "gauge", "timing"):
            monkeypatch.setattr(recorder, method, fail)
        for _ in range(3):
            tell_all(meters)
    complaints = [record.getMessage() for record in caplog.records]
    assert complaints == ["EdgeControl: metrics cannot be sent: OSError: network is unreachable"]
    assert not caplog.records[0].exc_info


def test_an_airflow_without_metrics_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "False")
    with recording() as recorder:
        meters = Meters(team_name=None)
        tell_all(meters)
    assert recorder.sent == []
    assert not meters._counts
    assert not meters._started
    assert not meters._ended


def test_without_tags_the_names_say_whose_figures_they_are() -> None:
    with recording(legacy_names=True) as recorder:
        meters = Meters(team_name=None, scheduler="centre.example.com")
        meters.gauges(of_worker(replace(BERLIN, name="berlin 3.a")))
        meters.event("lost", queue="gpu")
        send(meters)
    names = {sent.name for sent in recorder.sent}
    assert {
        "edge_worker.status.berlin_3__a",
        "edge_worker.cpu_percent.berlin_3__a",
        "edgecontrol.jobs.lost.gpu",
        "edgecontrol.buffered.centre__example__com",
    } < names
    assert {sent.tags["worker_name"] for sent in recorder.named("edge_worker.status")} == {"berlin_3.a"}


def test_names_stay_within_what_airflow_sends() -> None:
    with recording(legacy_names=True) as recorder:
        meters = Meters(team_name=None)
        row = job_row(dag_id="d" * 250, task_id="t" * 250, queue="q" * 60, attempt=1)
        meters.ended(row, key=key_of(row), known=open_job(row))
        meters.gauges(of_worker(replace(BERLIN, name="w" * 253, queues=["q" * 200, "r" * 200])))
        send(meters)
    assert max(len(sent.name) for sent in recorder.sent) <= 250
    assert any(sent.name.startswith("edge_worker.ti.finish.qqq") for sent in recorder.sent)


def test_influx_gets_no_tag_that_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
    with recording() as recorder:
        meters = Meters(team_name=None)
        meters.gauges(of_worker(BERLIN))
        meters.gauges(of_worker(replace(BERLIN, queues=["gpu"])))
        meters.gauges(of_worker(replace(BERLIN, queues=None)))
        meters.event("lost", queue="")
        send(meters)
    assert [sent.tags.get("queues") for sent in recorder.named("edge_worker.num_queues")] == [None, "gpu", None]
    assert [sent.tags for sent in recorder.named("edgecontrol.jobs.lost")] == [{}]


def test_opentelemetry_takes_all_of_it_with_its_tags() -> None:
    reader = InMemoryMetricReader()
    backend = SafeOtelLogger(MeterProvider(metric_readers=[reader]))
    with recording(backend=backend):
        tell_all(Meters(team_name="blue", scheduler="centre"))
    data = json.loads(reader.get_metrics_data().to_json())
    taken = {
        metric["name"].removeprefix("airflow."): sorted(metric["data"]["data_points"][0]["attributes"])
        for metric in data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    }
    expected = {name: sorted([*about["tags"], "team_name"]) for name, about in EDGE3["metrics"].items()}
    expected |= {name: sorted([*tags, "team_name"]) for name, (_, tags, _) in metrics.OWN.items()}
    assert {name: tags for name, tags in taken.items() if name in expected} == expected


def test_ids_of_jobs_are_never_tags() -> None:
    # Each would be a series of its own for ever.
    with recording(legacy_names=True) as recorder:
        tell_all(Meters(team_name=None, scheduler="centre"))
    assert not {tag for sent in recorder.sent for tag in sent.tags} - {
        "dag_id",
        "task_id",
        "queue",
        "queues",
        "state",
        "worker_name",
        "scheduler",
    }


# What people read of it

PAGE = Path(__file__).parents[3] / "docs/airflow-metrics.md"


def test_the_page_names_every_metric_of_ours_with_its_tags_and_no_other() -> None:
    rows = re.findall(r"^\| `(edgecontrol\.[\w.]+)` \| (\w+) \| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.M)
    assert rows == [(name, kind, *tags, about) for name, (kind, tags, about) in metrics.OWN.items()]


def test_the_page_names_every_metric_of_edge3_with_its_tags() -> None:
    rows = re.findall(r"^\| `(edge_[\w.]+)` \| (\w+) \|([^|]*)\|", PAGE.read_text(), re.M)
    assert {name: {"type": kind, "tags": sorted(re.findall(r"`(\w+)`", tags))} for name, kind, tags in rows} == EDGE3[
        "metrics"
    ]
