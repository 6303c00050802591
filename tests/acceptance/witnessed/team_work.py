"""The DAG that each team has in a bundle of its own, `work_TEAM`: all have one queue, and only the team differs."""

from __future__ import annotations

from airflow.sdk import dag, task
from witnessed import work


def make_dag(team: str, *, executor: str | None = None) -> None:
    """The first task names no executor, the second one `executor`."""

    @dag(dag_id=f"work_{team}", schedule=None, default_args={"queue": "shared"})
    def of_team():
        task(task_id="by_default")(work)(0)
        task(task_id="by_name", executor=executor)(work)(0)

    of_team()
