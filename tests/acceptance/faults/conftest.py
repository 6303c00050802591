"""Fixtures of the fault cases, and the table at the end of their run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.pace import FULL, SEED

COLUMNS = ("case", "faults", "jobs", "lost", "doubled", "wrong", "log bytes differing", "slowest recovery")


@pytest.fixture
def make_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., FaultSite]]:
    """Start a site; keyword arguments are the control plane's settings (EDGECONTROL_...)."""
    sites: list[FaultSite] = []

    def make(**settings: str) -> FaultSite:
        site = FaultSite(folder=tmp_path_factory.mktemp("site"), **settings)
        sites.append(site)
        site.until(site.healthy, seconds=150)
        return site

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def site(make_site: Callable[..., FaultSite]) -> FaultSite:
    return make_site()


@pytest.fixture
def balanced(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Put a row into the table, and fail the case when anything in it does not balance."""

    def check(row: Row) -> None:
        request.node.user_properties.append(row.as_property())
        assert (row.lost, row.doubled, row.wrong, row.log_bytes) == (0, 0, 0, 0), "\n".join(row.complaints[:20])

    return check


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say something below the table that is worth knowing, and that no test may depend on."""
    return lambda said: request.node.user_properties.append(("fault figure", said))


class OneAirflow(LoadScopeScheduling):
    """Spreads the cases over all processes, but those on Airflow, which one process runs one after the other."""

    def _split_scope(self, nodeid: str) -> str:
        return "airflow" if "/on_airflow/" in nodeid else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneAirflow:
    # Not `--dist loadgroup`: pytest-xdist 3.8 finds no groups with the pytest of today.
    return OneAirflow(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.stats.get(kind, [])]
    rows = [Row(**value) for one in reports for name, value in one.user_properties if name == "fault case"]
    if not rows:
        return
    table = rows_as_table(sorted(rows, key=lambda row: (int(row.case.split()[0]), row.case)))
    terminalreporter.section(f"faults, seed {SEED}, {'real intervals' if FULL else 'intervals at a tenth'}")
    terminalreporter.write(table)
    for said in [value for one in reports for name, value in one.user_properties if name == "fault figure"]:
        terminalreporter.write_line(said)
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text(table)


def rows_as_table(rows: list[Row]) -> str:
    lines = [list(COLUMNS)]
    for row in rows:
        recovery = "-" if row.recovery_seconds is None else f"{row.recovery_seconds:.1f} s"
        counts = (row.faults, row.jobs, row.lost, row.doubled, row.wrong, row.log_bytes)
        lines.append([row.case, *map(str, counts), recovery])
    return as_table(lines)


def as_table(lines: list[list[str]]) -> str:
    """The lines, headings first, as a Markdown table, which also reads well on a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in [lines[0], ["-" * width for width in widths], *lines[1:]]
    )
