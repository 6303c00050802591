"""A machine with Python and nothing else is connected by the commands that the admin shows, typed one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.acceptance.browser import Operators, look
from tests.acceptance.site import Site
from tests.integration.agent.conftest import Agent, inherited_environment
from tests.integration.agent.one_file import make_one_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

NAME = "press-7"


class Machine:
    """An empty directory, and a `python3` without any package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.python = folder / "bin/python3"
        for path in (self.home, self.python.parent):
            path.mkdir()
        self.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
        self.python.chmod(0o755)
        # Else root's would be the machine's.
        self.environ = {"XDG_CACHE_HOME": str(self.home / ".cache")}

    def type(self, command: str, *, typed: str = "") -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.home,
            env={
                **inherited_environment(),
                **self.environ,
                "HOME": str(self.home),
                "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            },
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def started() -> Iterator[list[Agent]]:
    agents: list[Agent] = []
    yield agents
    for agent in agents:
        agent.clean_up()


def commands_of(page: Page) -> list[str]:
    return [text.strip() for text in page.locator(".ec-todo > li > .ec-copy code:not(.ec-secret)").all_inner_texts()]


def test_one_file_and_four_commands_connect_a_machine(
    site: Site, operators: Operators, tmp_path: Path, started: list[Agent]
) -> None:
    made = make_one_file(site.folder / "made")
    made.rename(site.folder / "edge-agent.pyz")
    page = operators.log_in("operator")
    page.goto("/admin/workers_app/enrolmenttoken/connect/")
    expect(page.get_by_role("link", name="edge-agent.pyz")).to_be_visible()
    look(page, "connect")
    page.get_by_label("Name").fill(NAME)
    page.get_by_role("button", name="Make an enrolment token").click()
    token = page.locator("code.ec-secret").inner_text()
    fetch, check, enrol, run = commands_of(page)
    page.get_by_text("Or install it as a package").click()
    look(page, "connect-waiting")

    machine = Machine(tmp_path)
    machine.type(fetch)
    assert machine.type(check) == "edge-agent.pyz: OK\n"
    assert NAME in machine.type(enrol, typed=f"{token}\n")
    program, file, what = run.split()
    assert (program, what) == ("python3", "run")
    flags = ["--task-python", sys.executable]  # the one of the page has no Airflow
    started.append(
        Agent(folder=machine.home, url=None, flags=flags, environ=machine.environ, program=[machine.python, file])
    )
    expect(page.get_by_text(f"{NAME} is connected")).to_be_visible(timeout=30_000)
    (job,) = site.enqueue({"result": "success"})
    site.until(lambda: site.states()[job] == "success")
    assert sorted(path.name for path in machine.home.iterdir() if not path.name.startswith(("stderr-", "."))) == [
        "edge-agent.pyz",
        "witness",
    ]
