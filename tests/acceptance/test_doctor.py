"""`doctor` at a real control plane, beside an agent that works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.site import Site
from tests.integration.agent.conftest import Agent, doctor


def test_a_machine_is_checked_while_its_agent_works_and_neither_side_notices(
    tmp_path: Path, site: Site, start_agent: Callable[..., Agent]
) -> None:
    token = site.token("press-7")
    agent = start_agent(token, "--queues", "floor")
    (job,) = site.enqueue({"seconds": 6})
    site.until(agent.starts)
    before = site.rows("SELECT session, requested, queues FROM edgecontrol.worker")
    flags = ("--json", "--url", site.url, "--queues", "floor", "--state-dir", str(agent.state_dir))
    answer = doctor(*flags, folder=tmp_path, EDGE_AGENT_TOKEN=token)
    said = {one["check"]: one for one in json.loads(answer.stdout)["checks"]}
    assert (answer.returncode, answer.stderr) == (0, "")
    assert {one["state"] for one in said.values()} == {"ok"}
    assert "this is press-7" in said["token"]["text"]
    assert said["queues"]["text"] == "served: floor"
    assert "one runs here" in said["agent"]["text"]
    assert token not in answer.stdout
    assert site.rows("SELECT session, requested, queues FROM edgecontrol.worker") == before
    site.until(lambda: site.states()[job] == "success")
    assert agent.process.poll() is None
