"""What an agent does when the control plane thinks little of its version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs_app import agent_api, agent_jobs_api
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane

Start = Callable[..., Agent]


def last_word(plane: ControlPlane) -> str:
    """What the agent last said of itself."""
    return plane.reports()[-1] if plane.heartbeats else ""


def test_an_outdated_agent_works_and_says_so_once(plane: ControlPlane, start_agent: Start) -> None:
    plane.version = {"verdict": "outdated", "text": "upgrade to 0.9"}
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.report)
    beats = len(plane.heartbeats)
    plane.order()
    plane.wait_for(lambda: len(plane.heartbeats) > beats)
    assert agent.stderr.count("upgrade to 0.9") == 1


def test_a_refused_agent_finishes_what_it_holds_and_ends(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    running = plane.add({"until": str(tmp_path / "done")})
    plane.wait_for(agent.starts)
    plane.order(version={"verdict": "refused", "text": "install 0.9"})
    plane.wait_for(lambda: last_word(plane) == "terminating")
    waiting = plane.add()
    (tmp_path / "done").touch()
    assert agent.wait() == 10
    assert (running.state, waiting.state) == ("success", "queued")
    assert plane.reports()[-1] == "offline"
    assert "edge-agent: " in agent.stderr
    assert "install 0.9" in agent.stderr.splitlines()[-1]


def test_a_refusal_that_is_withdrawn_in_time_ends_nothing(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    plane.add({"until": str(tmp_path / "done")})
    plane.wait_for(agent.starts)
    plane.order(version={"verdict": "refused", "text": "install 0.9"})
    plane.wait_for(lambda: last_word(plane) == "terminating")
    plane.order(version={"verdict": "ok", "text": ""})
    plane.wait_for(lambda: last_word(plane) == "running")
    after = plane.add()
    plane.wait_for(lambda: after.report)
    (tmp_path / "done").touch()
    assert agent.process.poll() is None


def test_an_agent_that_is_refused_when_it_starts_delivers_what_an_earlier_one_left(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    plane.wait_for(agent.starts)
    agent.kill()
    plane.version = {"verdict": "refused", "text": "install 0.9"}
    agent = start_agent()
    plane.wait_for(lambda: len(plane.registrations) == 2)
    (tmp_path / "done").touch()
    assert agent.wait() == 10
    assert job.state == "success"


def test_an_agent_that_is_refused_when_it_starts_and_holds_nothing_ends_at_once(
    plane: ControlPlane, start_agent: Start
) -> None:
    plane.settings |= {"heartbeat_seconds": 300.0, "claim_wait_seconds": 300.0}
    plane.version = {"verdict": "refused", "text": "install 0.9"}
    job = plane.add()
    assert start_agent().wait() == 10
    assert job.state == "queued"


def test_what_the_agent_says_of_itself_is_what_the_control_plane_reads(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    beat = plane.wait_for(lambda: plane.heartbeats and plane.heartbeats[-1])
    (registration,) = plane.registrations
    claim = plane.wait_for(lambda: plane.parked and plane.parked[-1])
    for said, read in (
        (registration, agent_api.RegisterSerializer()),
        (beat, agent_api.HeartbeatSerializer()),
        (claim, agent_jobs_api.ClaimSerializer()),
    ):
        assert {name for name, field in read.fields.items() if field.required} <= set(said) <= set(read.fields)
    assert beat["protocol"] == registration["protocol"] == 1
    assert beat["airflow_version"] == registration["airflow_version"] != ""
    assert registration["agent_version"].startswith("0.")
