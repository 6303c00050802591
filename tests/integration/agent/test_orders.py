"""What people want of a running agent: maintenance, shutdown, another concurrency, signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane, Refusal

Start = Callable[..., Agent]


def reported(plane: ControlPlane, state: str) -> bool:
    return any(beat["reported"] == state for beat in plane.heartbeats)


@pytest.fixture
def quiet(plane: ControlPlane) -> None:
    """Nothing but an answered poll can bring an order to the agent while a test waits for it."""
    plane.settings |= {"claim_wait_seconds": 300.0, "heartbeat_seconds": 300.0}


BEAT, CLAIM = "workers/heartbeat", "jobs/claim"


def after(plane: ControlPlane, **changes: Any) -> list[tuple[str, Any]]:
    """Give an order while a poll is parked; returns what followed until the next poll was, and was about it."""
    plane.wait_for(lambda: plane.parked)
    seen = len(plane.requests)
    plane.order(**changes)
    words = {BEAT: "reported", CLAIM: "free_slots"}

    def followed() -> list[tuple[str, Any]]:
        return [(path, body[words[path]]) for _, path, body in plane.requests[seen:] if path in words]

    plane.wait_for(lambda: plane.parked and any(path == CLAIM for path, _ in followed()))
    return followed()


@pytest.mark.usefixtures("quiet")
def test_maintenance_is_heard_in_a_parked_poll_and_left_again(plane: ControlPlane, start_agent: Start) -> None:
    start_agent("--concurrency", "3")
    plane.wait_for(lambda: reported(plane, "idle"))
    heartbeat, *rest = after(plane, requested="maintenance")
    assert heartbeat == (BEAT, "idle"), "the order is fetched before anything else is said or asked for"
    assert (CLAIM, 0) in rest
    assert (CLAIM, 3) not in rest
    plane.wait_for(lambda: plane.reports()[-1] == "maintenance")
    heartbeat, *rest = after(plane, requested="active")
    assert heartbeat == (BEAT, "maintenance")
    assert (CLAIM, 3) in rest
    plane.wait_for(lambda: plane.reports()[-1] == "idle")


@pytest.mark.usefixtures("quiet")
def test_maintenance_waits_for_what_runs_and_takes_nothing_new(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    running = plane.add({"until": str(tmp_path / "done")})
    plane.wait_for(lambda: reported(plane, "running"))
    plane.order(requested="maintenance")
    plane.wait_for(lambda: plane.reports()[-1] == "maintenance_pending")
    waiting = plane.add()
    (tmp_path / "done").touch()
    plane.wait_for(lambda: plane.reports()[-1] == "maintenance")
    assert (running.state, waiting.attempt) == ("success", 0)
    plane.order(requested="active")
    plane.wait_for(lambda: waiting.state == "success")
    plane.wait_for(lambda: plane.reports()[-1] == "idle")
    assert plane.reports()[-4:] in (
        ["running", "maintenance_pending", "maintenance", "idle"],
        ["maintenance_pending", "maintenance", "running", "idle"],
    )
    assert agent.process.poll() is None


@pytest.mark.usefixtures("quiet")
def test_another_concurrency_is_heard_in_a_parked_poll(plane: ControlPlane, start_agent: Start) -> None:
    start_agent("--concurrency", "4")
    plane.wait_for(lambda: reported(plane, "idle"))
    for wanted, slots in ((1, 1), (6, 6), (None, 4)):
        assert after(plane, concurrency=wanted) == [(BEAT, "idle"), (CLAIM, slots)]


@pytest.mark.usefixtures("quiet")
def test_a_shutdown_is_heard_in_a_parked_poll(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    plane.wait_for(lambda: reported(plane, "idle"))
    plane.wait_for(lambda: plane.parked)
    plane.order(requested="shutdown")
    assert agent.wait() == 0
    assert plane.reports()[-1] == "offline"
    plane.wait_for(lambda: not agent.runners())


@pytest.mark.usefixtures("quiet")
def test_a_shutdown_waits_for_what_runs(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    plane.wait_for(agent.starts)
    plane.order(requested="shutdown")
    plane.wait_for(lambda: reported(plane, "terminating"))
    assert agent.process.poll() is None
    (tmp_path / "done").touch()
    assert agent.wait() == 0
    assert job.state == "success"
    assert plane.reports()[-2:] == ["terminating", "offline"]


@pytest.mark.usefixtures("quiet")
def test_a_shutdown_stops_at_its_deadline_what_still_runs(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--kill-grace-seconds", "1")
    jobs = [plane.add({"seconds": 600}), plane.add({"seconds": 600, "ignore_term": True})]
    plane.wait_for(lambda: len(agent.starts()) == 2)
    plane.order(requested="shutdown", deadline_at=time.monotonic() + 3600)
    plane.wait_for(lambda: reported(plane, "terminating"))
    assert "deadline" not in agent.stderr
    plane.order(deadline_at=time.monotonic() + 1)
    assert agent.wait() == 0
    for job in jobs:
        assert job.report is not None
        assert job.report["state"] == "failed"
        assert "the deadline of its worker's shutdown has passed" in job.report["reason"]
    assert agent.held() == []
    paths = [path for _, path, _ in plane.requests]
    assert paths[-1] == BEAT, "the goodbye comes after the last report and log"
    assert plane.reports()[-2:] == ["terminating", "offline"]


def ordered_to_end(plane: ControlPlane, agent: Agent, **changes: Any) -> None:
    plane.wait_for(agent.starts)
    plane.order(requested="shutdown", **changes)
    plane.wait_for(lambda: reported(plane, "terminating"))


def works_again(plane: ControlPlane, agent: Agent) -> bool:
    job = plane.add()
    return bool(plane.wait_for(lambda: job.state == "success") and agent.process.poll() is None)


@pytest.mark.usefixtures("quiet")
def test_a_withdrawn_shutdown_brings_the_agent_back_to_work(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    ordered_to_end(plane, agent, deadline_at=time.monotonic() + 3600)
    plane.order(requested="maintenance")
    plane.wait_for(lambda: plane.reports()[-1] == "maintenance_pending")
    plane.order(requested="shutdown")
    plane.wait_for(lambda: plane.reports()[-1] == "terminating")
    plane.order(requested="active")
    plane.wait_for(lambda: plane.reports()[-1] == "running")
    assert works_again(plane, agent)
    (tmp_path / "done").touch()
    plane.wait_for(lambda: job.state == "success")
    assert works_again(plane, agent)


@pytest.mark.usefixtures("quiet")
def test_a_shutdown_that_is_withdrawn_while_jobs_are_being_stopped_costs_only_these(
    plane: ControlPlane, start_agent: Start
) -> None:
    agent = start_agent("--kill-grace-seconds", "2")
    job = plane.add({"seconds": 600, "ignore_term": True})
    ordered_to_end(plane, agent, deadline_at=time.monotonic())
    plane.wait_for(lambda: "the deadline of the shutdown has passed" in agent.stderr)
    plane.order(requested="active")
    plane.wait_for(lambda: job.report)
    assert job.state == "failed"
    assert works_again(plane, agent)


@pytest.mark.usefixtures("quiet")
def test_a_shutdown_that_is_withdrawn_before_the_last_report_has_arrived_keeps_the_agent(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    ordered_to_end(plane, agent)
    busy = [True]
    plane.fault = lambda path, number: Refusal(503, "busy") if path == "jobs/report" and busy[0] else None
    (tmp_path / "done").touch()
    plane.wait_for(lambda: plane.count("jobs/report"))
    plane.order(requested="active")
    plane.wait_for(lambda: plane.reports()[-1] != "terminating")
    busy[0] = False
    plane.wait_for(lambda: job.state == "success")
    assert works_again(plane, agent)


@pytest.mark.usefixtures("quiet")
def test_a_drain_by_a_signal_is_not_withdrawn(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    agent = start_agent()
    plane.add({"until": str(tmp_path / "done")})
    ordered_to_end(plane, agent)
    agent.signal(signal.SIGINT)
    plane.wait_for(lambda: "draining" in agent.stderr)
    plane.order(requested="active")
    plane.wait_for(lambda: "asks for active" in agent.stderr)
    (tmp_path / "done").touch()
    assert agent.wait() == 0


def test_concurrency_follows_the_operator(plane: ControlPlane, start_agent: Start) -> None:
    plane.enforce_concurrency = False
    agent = start_agent("--concurrency", "4")
    plane.wait_for(lambda: plane.count("jobs/claim"))
    plane.order(concurrency=1)
    plane.wait_for(lambda: plane.heartbeats)
    jobs = [plane.add({"seconds": 0.6}) for _ in range(3)]
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, len([path for path in agent.held() if not (path / "exit.json").exists()]))
        return all(job.report for job in jobs)

    plane.wait_for(done)
    # The poll that was parked when the order came may still bring what it had asked for; none after it does.
    assert most <= 4
    more = [plane.add({"seconds": 0.6}) for _ in range(3)]
    most, jobs = 0, more
    plane.wait_for(done)
    assert most == 1


def test_a_slot_that_becomes_free_is_filled_at_once_although_a_poll_is_parked(
    plane: ControlPlane, start_agent: Start
) -> None:
    plane.settings["claim_wait_seconds"] = 30.0
    start_agent("--concurrency", "1")
    first = plane.add({"seconds": 3})
    plane.wait_for(lambda: first.state == "running")
    second = plane.add()
    plane.wait_for(lambda: _parked_without_slots(plane))
    plane.wait_for(lambda: first.state == "success")
    plane.wait_for(lambda: second.state == "success", seconds=20)


def _parked_without_slots(plane: ControlPlane) -> int:
    """How many polls asked for no slots."""
    return sum(body["free_slots"] == 0 for _, path, body in plane.requests if path == "jobs/claim")


def test_short_tasks_abandon_no_polls(plane: ControlPlane, start_agent: Start) -> None:
    start_agent("--concurrency", "1")
    jobs = [plane.add() for _ in range(5)]
    plane.wait_for(lambda: all(job.report for job in jobs))
    # Where the machine is so busy that a short task takes seconds, one of them is no short one.
    assert _parked_without_slots(plane) < len(jobs) / 2


def test_an_idle_agent_only_parks(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["claim_wait_seconds"] = 30.0
    start_agent()
    plane.wait_for(lambda: any(body["free_slots"] for _, path, body in plane.requests if path == "jobs/claim"))
    time.sleep(6)  # the change from starting to idle is told once
    before = len(plane.requests)
    time.sleep(3)
    assert len(plane.requests) == before


def test_the_first_interrupt_drains_and_the_second_stops(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--kill-grace-seconds", "1")
    job = plane.add({"seconds": 60, "ignore_term": True})
    plane.wait_for(agent.starts)
    agent.signal(signal.SIGINT)
    plane.wait_for(lambda: reported(plane, "terminating"))
    assert agent.process.poll() is None
    agent.signal(signal.SIGINT)
    assert agent.wait() == 130
    assert job.report is not None
    assert job.report["state"] == "failed"
    assert "stopped" in job.report["reason"]


def test_sigterm_drains(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 1})
    plane.wait_for(agent.starts)
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert job.state == "success"


def test_sigterm_leaves_the_tasks_to_the_runner_when_told_so(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--on-term", "leave")
    job = plane.add({"seconds": 3})
    plane.wait_for(agent.starts)
    asked_at = time.monotonic()
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert time.monotonic() - asked_at < 1.5
    assert job.report is None
    start_agent()
    plane.wait_for(lambda: job.state == "success")
    assert len(agent.starts()) == 1


def test_a_drain_waits_for_the_control_plane_only_so_long(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 1})
    plane.wait_for(agent.starts)
    plane.close()
    plane.wait_for(lambda: "ended: success" in agent.stderr)
    agent.signal(signal.SIGINT)
    plane.wait_for(lambda: "draining" in agent.stderr)
    agent.signal(signal.SIGINT)
    assert agent.wait() == 0
    assert agent.held()
    plane.reopen()
    start_agent()
    plane.wait_for(lambda: job.state == "success")
