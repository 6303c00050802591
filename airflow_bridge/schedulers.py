"""Which of Airflow's schedulers speaks for all of them, by Airflow's own table of jobs; nothing is changed there."""

from __future__ import annotations

from datetime import timedelta

from airflow._shared.timezones import timezone
from airflow.configuration import conf as airflow_conf
from airflow.jobs.job import Job, JobState
from airflow.utils.session import create_session
from sqlalchemy import func, select


def eldest() -> int | None:
    """The id of the living scheduler's job that is the oldest; None when there is none.

    Alive is what Airflow takes for alive. Two may think so of themselves for a moment, while one of them dies.
    """
    heard_since = timezone.utcnow() - timedelta(
        seconds=airflow_conf.getint("scheduler", "scheduler_health_check_threshold")
    )
    query = select(func.min(Job.id)).where(
        Job.job_type == "SchedulerJob", Job.state == JobState.RUNNING, Job.latest_heartbeat > heard_since
    )
    with create_session(scoped=False) as session:
        found: int | None = session.scalar(query)
        return found
