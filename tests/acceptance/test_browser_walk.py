"""A day at a site, walked through in Chromium: every page is looked at, every click has its effect on a real agent."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Dialog, Page, expect

from tests.acceptance.browser import ROLES, Operators, look
from tests.acceptance.site import ROOT, Site
from tests.integration.agent.conftest import STAND_IN, Agent, inherited_environment

pytestmark = pytest.mark.timeout(300)

NAME = "press-7"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[[], Agent]]:
    """An enrolled machine: `machine()` starts its agent by the command that the page shows, without any flag."""
    agents: list[Agent] = []

    def start() -> Agent:
        agents.append(Agent(folder=tmp_path, url=None, flags=[], environ={}))
        return agents[-1]

    yield start
    for agent in agents:
        agent.clean_up()


def run_shown_command(command: str, *, home: Path, typed: str) -> str:
    """Run a command as the page shows it, with this interpreter for `python`; return what it says."""
    program, *arguments = command.split()
    assert program == "python"
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**inherited_environment(), "HOME": str(home), "PYTHONPATH": str(STAND_IN)},
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert typed.strip() not in done.stdout + done.stderr
    return done.stdout


def act(page: Page, operation: str, **fields: str) -> None:
    """Open an operation from the page's menu, fill its dialog in and send it."""
    page.get_by_role("button", name="Actions", exact=True).click()
    page.get_by_role("menuitem", name=operation, exact=True).click()
    dialog = page.get_by_role("dialog")
    for label, text in fields.items():
        dialog.get_by_label(re.compile(label, re.I)).first.fill(text)
    dialog.get_by_role("button", name=operation, exact=True).click()
    expect(dialog).to_be_hidden()


def shown_state(page: Page, state: str) -> None:
    expect(page.locator(".ec-now .ec-state").first).to_have_text(state, timeout=20_000)


def open_job(page: Page, site: Site, job: Any) -> None:
    page.goto(f"/admin/jobs_app/job/{job}/change/")


def test_a_day_at_a_site(site: Site, operators: Operators, machine: Callable[[], Agent], tmp_path: Path) -> None:
    page = operators.log_in("operator")
    look(page, "home-empty")
    connect(page, site=site, machine=machine, home=tmp_path)
    drain(page, site=site, release=tmp_path / "enough")
    why_a_job_waits(page, site=site)
    revoke(page, site=site)
    roles(operators)
    retire(operators.log_in("administrator"), site=site)


def connect(page: Page, *, site: Site, machine: Callable[[], Agent], home: Path) -> None:
    """From nothing to a green machine, by the commands that the page shows."""
    page.goto("/admin/workers_app/worker/")
    expect(page.get_by_text("No worker hosts yet")).to_be_visible()
    page.get_by_role("link", name="Connect a machine").last.click()
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Queues").fill("floor, paint")
    look(page, "connect-package")
    page.get_by_role("button", name="Make an enrolment token").click()
    token = page.locator("code.ec-secret").inner_text()
    enrol, start = (
        page.locator("code", has_text=f"python -m agent {word}").last.inner_text() for word in ("enrol", "run")
    )
    assert token not in enrol
    assert start == "python -m agent run"
    look(page, "connect-package-waiting")
    assert NAME in run_shown_command(enrol, home=home, typed=f"{token}\n")
    expect(page.get_by_text("Waiting for its agent")).to_be_visible()
    machine()
    connected = page.get_by_text(f"{NAME} is connected")
    expect(connected).to_be_visible(timeout=30_000)
    address = page.url
    page.get_by_role("link", name="Open its page").click()
    shown_state(page, "idle")
    page.goto(address)
    assert token not in page.content()


def drain(page: Page, *, site: Site, release: Path) -> None:
    """Maintenance with a comment while a task runs: request, pending, mode, exit; its log is read meanwhile."""
    (job,) = site.enqueue(
        {"until": str(release)}, queue="floor", dag_id="press_line", task_id="calibrate", run_id="manual__2026-11-22"
    )
    page.goto("/admin/workers_app/worker/")
    page.get_by_role("link", name=NAME).click()
    shown_state(page, "running")
    act(page, "Request maintenance", comment="replace the hydraulic pump", until="2h")
    shown_state(page, "maintenance pending")
    expect(page.get_by_text("replace the hydraulic pump").first).to_be_visible()
    look(page, "worker")
    tail_the_log(page, job)
    page.goto("/admin/workers_app/worker/")
    look(page, "workers")
    page.get_by_role("link", name=NAME).click()
    release.touch()
    shown_state(page, "maintenance mode")
    act(page, "Exit maintenance")
    shown_state(page, "idle")
    changes = site.rows("SELECT action, actor, comment FROM edgecontrol.change WHERE actor_kind = 'person' ORDER BY id")
    assert [(row.action, row.actor) for row in changes[-2:]] == [
        ("request_maintenance", ROLES["operator"]),
        ("exit_maintenance", ROLES["operator"]),
    ]
    page.goto("/admin/workers_app/change/")
    look(page, "changes")


def tail_the_log(page: Page, job: Any) -> None:
    """The log of the running task grows before one's eyes, and is searched."""
    page.goto(f"/admin/jobs_app/job/{job}/log/1/")
    last = page.locator("[data-log]").get_by_text(re.compile(r"tick \d+ äöü")).last
    expect(last).to_be_visible()
    before = last.inner_text()
    expect(last).not_to_have_text(before)
    page.get_by_role("searchbox", name="Search").fill("tick 3 ")
    expect(page.locator("mark").first).to_have_text("tick 3 ")
    look(page, "log", reload=True)


def why_a_job_waits(page: Page, *, site: Site) -> None:
    """A paused queue, and a queue that nobody serves: each says so on its waiting jobs."""
    page.goto("/admin/jobs_app/queue/")
    page.get_by_role("link", name="floor", exact=True).click()
    act(page, "Pause", comment="the line is being cleaned")
    (paused,) = site.enqueue({"seconds": 0}, queue="floor", dag_id="press_line", task_id="count")
    (unserved,) = site.enqueue({"seconds": 0}, queue="gpu", dag_id="vision", task_id="train")
    page.goto("/admin/jobs_app/job/")
    expect(page.get_by_text("queue 'floor' is paused: the line is being cleaned").first).to_be_visible()
    expect(page.get_by_text("no live worker serves queue 'gpu'").first).to_be_visible()
    look(page, "jobs")
    page.goto("/admin/jobs_app/queue/")
    look(page, "queues")
    page.goto("/admin/")
    expect(page.get_by_text("gpu").first).to_be_visible()
    look(page, "home")
    page.goto("/admin/jobs_app/queue/")
    page.get_by_role("link", name="floor", exact=True).click()
    act(page, "Resume")
    site.until(lambda: site.states()[paused] == "success")
    open_job(page, site, unserved)
    expect(page.get_by_text("no live worker serves queue 'gpu'").first).to_be_visible()
    look(page, "job")


def revoke(page: Page, *, site: Site) -> None:
    """A job that runs is revoked: its process ends on the machine."""
    (job,) = site.enqueue({"seconds": 600}, queue="floor", dag_id="press_line", task_id="endless")
    site.until(lambda: site.states()[job] == "running")
    open_job(page, site, job)
    act(page, "Revoke", comment="started by mistake")
    expect(page.locator(".ec-state").first).to_have_text("revoked")
    expect(page.get_by_text("revoked by otto: started by mistake").first).to_be_visible()
    site.until(lambda: site.rows("SELECT FROM edgecontrol.worker WHERE jobs_active = 0 AND state = 'idle'"))


def roles(operators: Operators) -> None:
    """A viewer sees the fleet and is offered nothing to change; an address typed by hand is refused too."""
    page = operators.log_in("viewer")
    page.goto("/admin/workers_app/worker/")
    page.get_by_role("link", name=NAME).click()
    shown_state(page, "idle")
    expect(page.get_by_role("button", name="Actions", exact=True)).to_have_count(0)
    answer = page.goto(page.url.replace("/change/", "/shutdown_worker/"))
    assert answer is not None
    assert answer.status == 403
    look(page, "forbidden")


def retire(page: Page, *, site: Site) -> None:
    """Shut down, watch it end, remove."""
    page.on("dialog", Dialog.accept)
    page.goto("/admin/workers_app/worker/")
    page.get_by_role("link", name=NAME).click()
    act(page, "Shut down", comment="the press is sold")
    shown_state(page, "offline")
    act(page, "Remove")
    page.goto("/admin/workers_app/worker/")
    expect(page.get_by_text("No worker hosts yet")).to_be_visible()
    assert site.rows("SELECT FROM edgecontrol.worker") == []
