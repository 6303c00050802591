"""One Airflow for all cases of a run, since it takes half a minute to start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.acceptance.faults.airflow_site import AirflowSite

NOBODYS_QUEUES = ("late", "doomed", "deleted")


@pytest.fixture(scope="session")
def airflow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(tmp_path_factory.mktemp("airflow") / "site")
    try:
        site.start()
        yield site
    finally:
        site.close()


@dataclass(frozen=True)
class WaitingRun:
    run_id: str
    since: float


@pytest.fixture(scope="session", autouse=True)
def waiting_runs(airflow_site: AirflowSite) -> dict[str, WaitingRun]:
    """Runs whose queues no machine serves yet, by queue: they wait all the time, whatever the other cases break."""
    runs = {queue: WaitingRun(airflow_site.trigger(f"work_{queue}"), time.monotonic()) for queue in NOBODYS_QUEUES}
    airflow_site.until(lambda: all(airflow_site.jobs(run.run_id) for run in runs.values()), seconds=60)
    return runs


@pytest.fixture(autouse=True)
def everything_runs_again(airflow_site: AirflowSite) -> Iterator[None]:
    """A case that failed in the middle must not take the next ones along."""
    yield
    airflow_site.mend()
