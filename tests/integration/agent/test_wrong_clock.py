"""A machine whose clock is wrong works all the same, and says so."""

from __future__ import annotations

from collections.abc import Callable

from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane


def test_a_wrong_clock_hinders_nothing_and_is_said_here_and_there(
    plane: ControlPlane, start_agent: Callable[..., Agent]
) -> None:
    plane.clock_ahead = 3 * 3600.0
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.state == "success")
    assert agent.stderr.count("this machine's clock is 3 hours behind the control plane's") == 1
    plane.execution_healthy = False  # a new reason not to work brings the figures with it
    figures = plane.wait_for(lambda: [beat["sysinfo"] for beat in plane.heartbeats if beat["sysinfo"]], seconds=60)
    assert abs(figures[-1]["clock_off_seconds"] + 3 * 3600) <= 2
