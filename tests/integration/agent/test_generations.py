"""A runner ends when the packages of its interpreter change; the real runner on a stand-in for Airflow."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import packages
from agent.runner_link import ForkRunner
from agent.task_kinds import TaskKind
from tests.integration.agent.conftest import STAND_IN, inherited_environment
from tests.integration.agent.control_plane import ControlPlane

SECONDS = 30.0


class Link:
    """The agent's side of runners, without an agent."""

    def __init__(self, folder: Path, plane: ControlPlane) -> None:
        self.folder = folder
        self.plane = plane
        self.installed = folder / "site-packages"
        self.installed.mkdir()
        environ = {**inherited_environment(), "PYTHONPATH": os.pathsep.join([str(STAND_IN), str(self.installed)])}
        kind = TaskKind(python=sys.executable, given={})
        self.runner = ForkRunner(kind=kind, state_dir=folder / "state", environ=environ)
        self.said: list[dict[str, Any]] = []

    def connect(self) -> int:
        self.runner.renew()
        self.runner.connect()
        self.until(lambda: self.runner.ready)
        return self.runner.pid

    def until(self, holds: Callable[[], Any]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline
            self.said += self.runner.events(timeout=0.05)

    def start(self, name: str, **task: Any) -> Path:
        directory = self.folder / name
        directory.mkdir()
        job = {"kind": "ExecuteTask", "log_path": "task.log", "patience_seconds": 5.0, "hostname": "machine"}
        workload = {"type": "ExecuteTask", "token": "t", "log_path": "task.log", "ti": {"id": name, "task": task}}
        (directory / "job.json").write_text(json.dumps({**job, "execution_api_url": self.plane.execution_api_url}))
        (directory / "workload.json").write_text(json.dumps(workload))
        self.runner.start(directory)
        return directory

    def ended(self, name: str) -> bool:
        return any(message["event"] == "ended" and message["job"] == name for message in self.said)


@pytest.fixture
def link(tmp_path: Path, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    monkeypatch.setattr(packages, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(packages, "SETTLE_SECONDS", 0.0)
    link = Link(tmp_path, plane)
    yield link
    (tmp_path / "go").touch()
    link.runner.close(drain=True)


def test_changed_packages_end_a_runner_whose_jobs_are_still_told_of(link: Link, tmp_path: Path) -> None:
    first = link.connect()
    link.start("long.1", until=str(tmp_path / "go"))
    link.until(lambda: any(message["event"] == "started" for message in link.said))
    (link.installed / "new-1.0.dist-info").mkdir()
    link.until(lambda: not link.runner.alive)
    second = link.connect()
    assert second != first
    link.start("short.1")
    link.until(lambda: link.ended("short.1"))
    assert not link.ended("long.1")
    (tmp_path / "go").touch()
    link.until(lambda: link.ended("long.1"))
    link.until(lambda: not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE)
    assert link.runner.alive


def test_the_same_packages_are_the_same_runner(link: Link) -> None:
    first = link.connect()
    link.runner.close(drain=False)
    assert link.connect() == first
