"""Maintenance asked for on the machine and with a management command reaches the other sides, for real."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

from agent.local_control import ask
from tests.acceptance.site import Site
from tests.integration.agent.conftest import AGENT, ROOT, Agent, inherited_environment


def on_machine(agent: Agent, *arguments: str) -> str:
    return subprocess.run(
        [*AGENT, *arguments, "--state-dir", str(agent.state_dir)],
        cwd=ROOT,
        env=inherited_environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def worker(site: Site) -> Any:
    (row,) = site.rows(
        "SELECT state, requested, requested_by, requested_by_kind, requested_comment FROM edgecontrol.worker"
    )
    return row


def test_maintenance_travels_both_ways_and_outlasts_a_restart_of_the_agent(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    token = site.token("press-7")
    agent = start_agent(token, "--queues", "floor")
    site.until(lambda: worker(site).state == "idle")

    on_machine(agent, "maintenance", "on", "--comments", "new belt", "--wait")
    site.until(lambda: worker(site).state == "maintenance mode")
    assert worker(site)[1:] == ("maintenance", "press-7", "machine", "new belt")
    (change,) = site.rows("SELECT * FROM edgecontrol.change WHERE action = 'request_maintenance'")
    assert (change.actor_kind, change.actor, change.comment) == ("machine", "press-7", "new belt")

    on_machine(agent, "stop", "--wait")
    assert worker(site).state == "offline maintenance"
    (job,) = site.enqueue({"seconds": 0.1})
    again = start_agent(token, "--queues", "floor")
    site.until(lambda: worker(site).state == "maintenance mode")
    assert ask(again.state_dir, {"op": "status"})["comment"] == "new belt"
    assert site.states()[job] == "queued"

    site.manage("exit_maintenance", "press-7", "--wait", "30")
    site.until(lambda: site.states()[job] == "success")
    site.manage("request_maintenance", "press-7", "--comment", "kernel patch", "--wait", "30")
    told = ask(again.state_dir, {"op": "status"})
    assert (told["state"], told["requested_by"], told["comment"]) == ("maintenance", "operator", "kernel patch")
    assert told["requested_by_name"] == worker(site).requested_by

    on_machine(again, "maintenance", "off")
    site.until(lambda: worker(site).state == "idle")
    assert worker(site)[1:4] == ("active", "press-7", "machine")
