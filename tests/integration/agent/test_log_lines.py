"""What a running agent writes, and that an idle one writes nothing."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import TOKEN, ControlPlane, Refusal

Start = Callable[..., Agent]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_idle_agent_writes_nothing(plane: ControlPlane, start_agent: Start, log_format: str) -> None:
    """With more polls and heartbeats than twenty idle minutes have."""
    agent = start_agent("--log-format", log_format)
    plane.wait_for(lambda: plane.parked and plane.heartbeats)
    before = agent.stderr
    for _ in range(20):
        polls, beats = plane.count("jobs/claim"), len(plane.heartbeats)
        plane.order()
        plane.wait_for(lambda: plane.parked and plane.count("jobs/claim") > polls and len(plane.heartbeats) > beats)  # noqa: B023
    assert agent.stderr == before


def test_every_line_of_a_life_is_json_without_a_secret(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["heartbeat_seconds"] = 0.2
    agent = start_agent("--log-format", "json", "--log-level", "debug")
    job = plane.add()
    plane.wait_for(lambda: job.report)
    seen = len(plane.requests)
    plane.fault = lambda path, number: Refusal(502, "bad_gateway") if path == "workers/heartbeat" else None
    plane.order(requested="maintenance")
    plane.wait_for(lambda: len(plane.requests) > seen + 2)
    plane.fault = lambda path, number: None
    plane.wait_for(lambda: plane.reports()[-1] == "maintenance")
    agent.signal(signal.SIGINT)
    assert agent.wait() == 0
    said = [json.loads(line) for line in agent.stderr.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(one) for one in said))
    assert any("drained" in one["message"] for one in said)
    assert TOKEN not in agent.stderr
    assert "task-token" not in agent.stderr


def test_the_reason_of_an_end_is_json_too(plane: ControlPlane, start_agent: Start) -> None:
    plane.token = "another"
    agent = start_agent("--log-format", "json")
    assert agent.wait() == 5
    last = json.loads(agent.stderr.splitlines()[-1])
    assert (last["level"], last["exit_code"]) == ("critical", 5)
    assert "does not accept the token" in last["message"]
