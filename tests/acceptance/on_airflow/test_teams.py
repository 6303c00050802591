"""Airflow with teams: one queue, one job table, and each team's work goes to that team's machines only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.faults.airflow_ledger import balance
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.on_airflow.books import Books, books

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]

EXECUTOR = "airflow_bridge.executor.EdgeControlExecutor"
#: What each team calls its executor; nobody's work goes to everybody's.
NAMES = {"": "edge", "team_a": "edge_a", "team_b": "edge_b"}


def bundles(folder: Path, *, with_teams: bool) -> str:
    """Airflow's list of DAG bundles, one for each team. Machines know of no teams of Airflow, only of their own."""
    made = []
    for team, executor in NAMES.items():
        place = folder / (team or "all")
        place.mkdir(parents=True, exist_ok=True)
        call = f"make_dag({place.name!r}, executor={executor!r})"
        (place / "team_dag.py").write_text(f"# a DAG of Airflow\nfrom team_work import make_dag\n\n{call}\n")
        bundle = {
            "name": place.name,
            "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
            "kwargs": {"path": str(place)},
        }
        made.append({**bundle, "team_name": team} if team and with_teams else bundle)
    return json.dumps(made)


@pytest.fixture(scope="module")
def airflow_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowSite]:
    folder = tmp_path_factory.mktemp("teams")
    executors = ";".join(f"{team}={name}:{EXECUTOR}".removeprefix("=") for team, name in NAMES.items())
    site = AirflowSite(
        folder / "site",
        settings={
            "core.multi_team": "true",
            "core.executor": executors,
            "dag_processor.dag_bundle_config_list": bundles(folder / "dags", with_teams=True),
        },
        machine_settings={"dag_processor.dag_bundle_config_list": bundles(folder / "dags", with_teams=False)},
        first_dag="work_team_b",
        teams=[team for team in NAMES if team],
    )
    try:
        site.start()
        yield site
    finally:
        site.close()


def test_work_of_a_team_goes_to_the_machines_of_that_team_only(
    airflow_site: AirflowSite, equal: Callable[[Books], None], balanced: Callable[[Row], None]
) -> None:
    site = airflow_site
    machines = {team: site.make_machines(f"of-{team or 'all'}", queues="shared", team=team)[0] for team in NAMES}
    site.until(lambda: all(site.knows(f"work_{team or 'all'}") for team in NAMES), seconds=90)
    runs = {team: site.trigger(f"work_{team or 'all'}") for team in NAMES}
    site.until(lambda: all(len(site.jobs(run_id)) == 2 for run_id in runs.values()), seconds=90)
    for team, run_id in runs.items():
        assert {job["team_name"] for job in site.jobs(run_id)} == {team}
    # One after the other: each has all the work before it, and takes only its own.
    for team in ("team_b", "", "team_a"):
        site.start_machines(machines[team])
        assert site.finish(runs[team]) == "success"
        assert {line["machine"] for line in site.starts(runs[team])} == {machines[team].name}
    assert len([line for machine in machines.values() for line in machine.starts()]) == 6
    named = [(f"work_{team or 'all'}", run_id) for team, run_id in runs.items()]
    for dag_id, run_id in named:
        balanced(balance(site, case="teams", dag_id=dag_id, run_id=run_id, faults=0))
    equal(books(site, case="two teams and everybody's work on one queue", runs=named))
