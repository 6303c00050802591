"""One Airflow with two schedulers for all cases of a run, and both ledgers of all cases at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.faults.airflow_programs import SECOND_API_SERVER, SECOND_SCHEDULER
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.conftest import as_table
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books

DAGS = Path(__file__).resolve().parent / "dags"
COLUMNS = ("case", "Airflow's ledger", "EdgeControl's ledger", "equal")
SETTINGS = {
    "core.executor": "edge:airflow_bridge.executor.EdgeControlExecutor,LocalExecutor",
    # Far below what waits in the cases: what waits may fill none of it.
    "core.parallelism": "16",
    # A busy machine must not have one scheduler take the other for dead: LocalExecutor's work is reset over it.
    "scheduler.scheduler_health_check_threshold": "15",
    "core.test_connection": "Enabled",
    "connection_test.timeout": "10",
    "connection_test.reaper_interval": "5",
}


@pytest.fixture(scope="session")
def airflow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    site = AirflowSite(
        tmp_path_factory.mktemp("airflow") / "site",
        settings=SETTINGS,
        dags=DAGS,
        first_dag="work_shifts",
        more=(SECOND_SCHEDULER, SECOND_API_SERVER),
    )
    try:
        site.start()
        yield site
    finally:
        site.close()


@pytest.fixture(autouse=True)
def everything_runs_again(airflow_site: AirflowSite) -> Iterator[None]:
    """No case takes the next ones along, whatever it killed and whether it failed."""
    yield
    airflow_site.mend()
    airflow_site.stop_machines(*airflow_site.machines)


@pytest.fixture
def equal(request: pytest.FixtureRequest) -> Callable[[Books], None]:
    """Put both ledgers into the table, and fail the case when they differ."""

    def check(books: Books) -> None:
        request.node.user_properties.append(books.as_property())
        assert not (differences := books.differences()), "\n".join(differences[:20])

    return check


@pytest.fixture
def balanced() -> Callable[[Row], None]:
    """Fail the case when anything was lost, done twice, or recorded otherwise than it was."""

    def check(row: Row) -> None:
        assert (row.lost, row.doubled, row.wrong, row.log_bytes) == (0, 0, 0, 0), "\n".join(row.complaints[:20])

    return check


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say something below the table that is worth knowing, and that no test may depend on."""
    return lambda said: request.node.user_properties.append(("acceptance figure", said))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, [])]
    said = [pair for one in reports for pair in one.user_properties]
    lines = [value for name, value in said if name == "two books"]
    if not lines:
        return
    terminalreporter.section("how everything ended, by Airflow and by EdgeControl")
    terminalreporter.write(as_table([list(COLUMNS), *sorted(lines)]))
    for figure in [value for name, value in said if name == "acceptance figure"]:
        terminalreporter.write_line(figure)
