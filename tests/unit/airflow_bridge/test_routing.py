from __future__ import annotations

import pytest
from airflow.executors.executor_utils import ExecutorName

from airflow_bridge.routing import goes_to

OURS = ExecutorName("airflow_bridge.executor.EdgeControlExecutor", alias="edge")
LOCAL = ExecutorName("airflow.executors.local_executor.LocalExecutor", alias="LocalExecutor")
TEAMS = ExecutorName("airflow_bridge.executor.EdgeControlExecutor", team_name="press")


@pytest.mark.parametrize("wanted", [None, "edge", "airflow_bridge.executor.EdgeControlExecutor", "EdgeControlExecutor"])
def test_work_is_ours_by_default_by_alias_by_path_and_by_class(wanted: str | None) -> None:
    assert goes_to(wanted=wanted, team=None, names=[OURS, LOCAL]) is OURS


def test_work_of_another_executor_is_not_ours() -> None:
    assert goes_to(wanted="LocalExecutor", team=None, names=[OURS, LOCAL]) is LOCAL
    assert goes_to(wanted=None, team=None, names=[LOCAL, OURS]) is LOCAL
    assert goes_to(wanted="CeleryExecutor", team=None, names=[OURS, LOCAL]) is None


def test_a_teams_work_goes_to_its_own_executor_and_else_to_everybodys() -> None:
    names = [LOCAL, OURS, TEAMS]
    assert goes_to(wanted=None, team="press", names=names) is TEAMS
    assert goes_to(wanted=None, team="paint", names=names) is LOCAL
    assert goes_to(wanted="EdgeControlExecutor", team="paint", names=[TEAMS, OURS]) is OURS
    assert goes_to(wanted="EdgeControlExecutor", team=None, names=[TEAMS]) is None
