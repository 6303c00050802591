"""What agents of other versions are told, what they get, and where operators see it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from jobs_app import waiting
from jobs_app.models import Job
from workers_app.models import Worker

Make = Callable[..., Any]


@pytest.fixture
def plane_is_at(settings: Settings) -> Callable[[str], None]:
    def plane_is_at(version: str) -> None:
        settings.SPECTACULAR_SETTINGS = {**settings.SPECTACULAR_SETTINGS, "VERSION": version}

    return plane_is_at


def begin(caller: Any, **said: Any) -> Any:
    caller.session = str(uuid.uuid4())
    answer = caller.register(**said)
    assert answer.status_code == 200, answer.content
    caller.worker.refresh_from_db()
    return answer.json()


@pytest.mark.parametrize(("server", "verdict"), [("0.1.7", "ok"), ("0.3.0", "outdated"), ("0.4.0", "refused")])
def test_register_and_heartbeat_say_what_is_made_of_the_version(
    agent: Make, plane_is_at: Any, server: str, verdict: str
) -> None:
    plane_is_at(server)
    caller = agent()
    registered = begin(caller, agent_version="0.1.0")
    beat = caller.heartbeat(protocol=1, airflow_version="3.3.2").json()
    assert registered["version"] == beat["version"]
    assert registered["version"]["verdict"] == verdict
    assert bool(registered["version"]["text"]) == (verdict != "ok")
    assert registered["server_version"] == server


def test_an_agent_that_says_neither_protocol_nor_versions_in_its_heartbeats_goes_on(agent: Make) -> None:
    caller = agent()
    begin(caller, agent_version="", airflow_version="3.3.2")
    assert caller.heartbeat().json()["version"] == {"verdict": "ok", "text": ""}
    assert Worker.objects.get(pk=caller.worker.pk).airflow_version == "3.3.2"


def test_a_control_plane_that_no_longer_understands_a_running_agent_refuses_it_at_its_heartbeat(agent: Make) -> None:
    caller = agent()
    begin(caller)
    assert caller.heartbeat(protocol=0).json()["version"]["verdict"] == "refused"


def test_an_airflow_that_is_upgraded_under_the_agent_is_known(agent: Make) -> None:
    caller = agent()
    begin(caller, airflow_version="3.3.2")
    caller.heartbeat(airflow_version="3.3.9")
    assert Worker.objects.get(pk=caller.worker.pk).airflow_version == "3.3.9"
    caller.heartbeat(airflow_version="")  # its runner is being started anew
    assert Worker.objects.get(pk=caller.worker.pk).airflow_version == "3.3.9"


def test_an_outdated_agent_gets_jobs_and_a_refused_one_none_but_keeps_what_it_holds(
    agent: Make, make_job: Make, plane_is_at: Any
) -> None:
    caller = agent()
    begin(caller, agent_version="0.1.0")
    plane_is_at("0.3.0")
    make_job()
    (job,) = caller.claim().json()["jobs"]
    plane_is_at("0.4.0")
    waits = make_job()
    assert caller.claim().json()["jobs"] == []
    assert caller.confirm((job["id"], 1)).json()["confirmed"] == [{"id": job["id"], "attempt": 1}]
    assert caller.heartbeat(held=[{"id": job["id"], "attempt": 1}]).json()["gone"] == []
    assert caller.report(job["id"]).status_code == 200
    (reason,) = waiting.because(Job.objects.filter(pk=waits.pk)).values()
    assert "0.1.0 is too old" in reason


@pytest.mark.parametrize(("server", "mark"), [("0.3.0", "outdated"), ("0.4.0", "refused")])
def test_the_admin_marks_outdated_and_refused_agents(
    ops: Client, make_worker: Make, plane_is_at: Any, server: str, mark: str
) -> None:
    plane_is_at(server)
    worker = make_worker("press-7", agent_version="0.1.0")
    make_worker("mill-1", agent_version=server)
    for address in ("/admin/workers_app/worker/?outdated=1", f"/admin/workers_app/worker/{worker.pk}/change/"):
        page = ops.get(address).content.decode()
        assert f">{mark}</span>" in page
        assert "mill-1" not in page
