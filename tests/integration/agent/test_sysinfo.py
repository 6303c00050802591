"""What a running agent tells of its machine, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.conftest import STAND_IN, Agent
from tests.integration.agent.control_plane import ControlPlane

Start = Callable[..., Agent]

OWN = """
import os, time
from pathlib import Path

def figures():
    return {"belt": "torn", "status": "error", "status_text": "the belt is torn"}

async def stuck():
    time.sleep(3600)

def broken():
    raise OSError("no such sensor")
"""


@pytest.fixture
def own(tmp_path: Path) -> dict[str, str]:
    """The environment in which the operator's module is found."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/press_hall.py").write_text(OWN)
    return {"PYTHONPATH": f"{STAND_IN}:{tmp_path / 'own'}"}


def told(plane: ControlPlane) -> list[dict[str, Any]]:
    """Every set of figures that was told."""
    figures = [*plane.registrations, *plane.heartbeats]
    return [one["sysinfo"] for one in figures if one["sysinfo"]]


def test_figures_of_the_machine_come_with_the_registration(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    plane.wait_for(lambda: plane.registrations)
    figures = plane.registrations[0]["sysinfo"]
    assert {"cpu_percent", "load_per_cpu", "memory_used_percent", "disk_used_percent", "disk_free_gb"} <= set(figures)


def test_the_operators_own_figures_are_told_and_an_error_makes_the_machine_rest(
    plane: ControlPlane, start_agent: Start, own: dict[str, str]
) -> None:
    start_agent("--extended-sysinfo", "press_hall:figures", **own)
    plane.wait_for(lambda: any(one.get("belt") == "torn" and one["status"] == 40 for one in told(plane)))
    plane.wait_for(lambda: any(one == "maintenance" for one in plane.reports()))
    wishes = [beat["wish"] for beat in plane.heartbeats if beat["wish"]]
    assert {(one["requested"], one["by"], one["comment"]) for one in wishes} == {
        ("maintenance", "automatic", "its own check says: the belt is torn")
    }
    job = plane.add()
    plane.order()
    assert job.state == "queued"


def test_the_operators_module_may_lie_beside_the_settings_file(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/press_hall.py").write_text(OWN)
    (tmp_path / "etc/json.py").write_text("raise SystemExit('in the place of a module of ours')")
    settings = tmp_path / "etc/agent.toml"
    settings.write_text('extended_sysinfo = "press_hall:figures"')
    start_agent("--config", str(settings))
    plane.wait_for(lambda: any(one.get("belt") == "torn" for one in told(plane)))


def test_a_function_that_hangs_holds_up_nothing(plane: ControlPlane, start_agent: Start, own: dict[str, str]) -> None:
    start_agent("--extended-sysinfo", "press_hall:stuck", **own)
    job = plane.add()
    plane.wait_for(lambda: job.report)


def test_a_function_that_fails_is_shown_as_text(plane: ControlPlane, start_agent: Start, own: dict[str, str]) -> None:
    agent = start_agent("--extended-sysinfo", "press_hall:broken", **own)
    plane.wait_for(lambda: any(one.get("extended_sysinfo_error") for one in told(plane)))
    assert told(plane)[-1]["extended_sysinfo_error"] == "OSError: no such sensor"
    assert agent.stderr.count("no such sensor") == 1


def test_a_machine_without_room_takes_no_work(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["heartbeat_seconds"] = 0.2
    start_agent("--min-free-disk", "1000000TB")
    plane.wait_for(lambda: any(one == "maintenance" for one in plane.reports()))
    (comment,) = {beat["wish"]["comment"] for beat in plane.heartbeats if beat["wish"]}
    assert "less than 1000000.0 TB" in comment
