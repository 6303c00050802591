"""One Airflow for all cases of a run, since it takes half a minute to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.faults.airflow_site import AirflowSite


@pytest.fixture(scope="session")
def airflow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(tmp_path_factory.mktemp("airflow") / "site")
    try:
        site.start()
        yield site
    finally:
        site.close()


@pytest.fixture(autouse=True)
def everything_runs_again(airflow_site: AirflowSite) -> Iterator[None]:
    """A case that failed in the middle must not take the next ones along."""
    yield
    airflow_site.mend()
