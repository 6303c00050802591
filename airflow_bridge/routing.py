"""Which executor Airflow gives a task or a callback to, when several are configured; read off its scheduler."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from airflow.configuration import conf as airflow_conf
from airflow.executors.executor_loader import ExecutorLoader
from airflow.utils.session import create_session
from sqlalchemy import select


def executor_names() -> list[Any]:
    """Those that are configured, in Airflow's order: the first one without a team is the default."""
    return list(ExecutorLoader.get_executor_names(validate_teams=False))


def goes_to(*, wanted: str | None, team: str | None, names: Sequence[Any]) -> Any:
    """The name of the executor for work that names this one, of this team; None when there is none.

    As `SchedulerJobRunner._try_to_load_executor` of Airflow 3.3.2 decides it.
    """
    if wanted is None:
        of_team = [name for name in names if team and name.team_name == team]
        of_nobody = [name for name in names if name.team_name is None]
        return next(iter(of_team + of_nobody), None)
    for name in names:
        if wanted in (name.alias, name.module_path, name.module_path.split(".")[-1]) and (
            name.team_name is None or (team and name.team_name == team)
        ):
            return name
    return None


def teams_of(dag_ids: Collection[str]) -> dict[str, str]:
    """The teams of those of these DAGs that have one; none at all while Airflow knows no teams."""
    if not dag_ids or not airflow_conf.getboolean("core", "multi_team", fallback=False):
        return {}
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.team import Team

    query = (
        select(DagModel.dag_id, Team.name)
        .join(DagBundleModel.teams)
        .join(DagModel, DagModel.bundle_name == DagBundleModel.name)
        .where(DagModel.dag_id.in_(dag_ids))
    )
    with create_session(scoped=False) as session:
        return {row.dag_id: row.name for row in session.execute(query)}
