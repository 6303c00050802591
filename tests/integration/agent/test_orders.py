"""What people want of a running agent: maintenance, shutdown, another concurrency, signals."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane

Start = Callable[..., Agent]


def reported(plane: ControlPlane, state: str) -> bool:
    return any(beat["reported"] == state for beat in plane.heartbeats)


def test_maintenance_is_heard_in_a_parked_poll_and_left_again(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["claim_wait_seconds"] = 30.0
    start_agent()
    running = plane.add({"seconds": 3})
    plane.wait_for(lambda: running.state == "running")
    plane.order(requested="maintenance")
    plane.wait_for(lambda: reported(plane, "maintenance_pending"), seconds=2)
    plane.wait_for(lambda: reported(plane, "maintenance"))
    assert running.state == "success"
    waiting = plane.add()
    time.sleep(1)
    assert waiting.attempt == 0
    plane.order(requested="active")
    plane.wait_for(lambda: waiting.state == "success", seconds=5)


def test_a_shutdown_order_drains_and_ends(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 2})
    plane.wait_for(agent.starts)
    plane.order(requested="shutdown")
    assert agent.wait() == 0
    assert job.state == "success"
    assert plane.heartbeats[-1]["reported"] == "offline"
    plane.wait_for(lambda: not agent.runners(), seconds=5)


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
    plane.wait_for(lambda: second.state == "success", seconds=5)


def _parked_without_slots(plane: ControlPlane) -> bool:
    return any(body["free_slots"] == 0 for _, path, body in plane.requests if path == "jobs/claim")


def test_short_tasks_abandon_no_polls(plane: ControlPlane, start_agent: Start) -> None:
    start_agent("--concurrency", "1")
    jobs = [plane.add() for _ in range(5)]
    plane.wait_for(lambda: all(job.report for job in jobs))
    assert not _parked_without_slots(plane)


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
