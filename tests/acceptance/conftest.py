"""All three programs as real processes; of Airflow, only the supervisor's call and its API are stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.site import Site
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane

if TYPE_CHECKING:
    from tests.acceptance.browser import Operators


@pytest.fixture
def airflow() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    plane.close()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, airflow: ControlPlane) -> Iterator[Site]:
    site = Site(folder=tmp_path_factory.mktemp("site"), execution_api_url=f"{airflow.url}/execution/")
    try:
        site.until(site.healthy)
        yield site
    finally:
        site.close()


@pytest.fixture
def start_agent(tmp_path: Path, site: Site) -> Iterator[Callable[..., Agent]]:
    agents: list[Agent] = []

    def start(token: str, *flags: str) -> Agent:
        agent = Agent(folder=tmp_path, url=site.url, flags=list(flags), environ={"EDGE_AGENT_TOKEN": token})
        agents.append(agent)
        return agent

    yield start
    for agent in agents:
        agent.clean_up()


@pytest.fixture
def operators(site: Site) -> Iterator[Operators]:
    # What is in a browser's hands is in no other environment than .venv.
    from tests.acceptance.browser import Operators, chromium

    with chromium() as browser:
        yield Operators(site=site, browser=browser)
