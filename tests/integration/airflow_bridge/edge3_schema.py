"""The tables of Airflow's Edge provider, with the columns that it has today or had at first."""

from __future__ import annotations

from sqlalchemy import JSON, Column, DateTime, Integer, MetaData, String, Table, Text


def tables(*, first: bool = False) -> MetaData:
    """Those of 5.1.0, or of 3.0.0, which knew neither teams nor a number set by operators."""
    metadata = MetaData()
    later = (
        [Column("sysinfo", Text), Column("jobs_taken", Integer)]
        if first
        else [Column("sysinfo", JSON), Column("team_name", String(64)), Column("concurrency", Integer)]
    )
    Table(
        "edge_worker",
        metadata,
        Column("worker_name", String(64), primary_key=True),
        Column("state", String(20), nullable=False),
        Column("maintenance_comment", String(1024)),
        Column("queues", String(256)),
        Column("first_online", DateTime(timezone=True)),
        Column("last_update", DateTime(timezone=True)),
        Column("jobs_active", Integer, nullable=False, default=0),
        *later,
    )
    Table(
        "edge_job",
        metadata,
        Column("dag_id", String(250), primary_key=True),
        Column("task_id", String(250), primary_key=True),
        Column("run_id", String(250), primary_key=True),
        Column("map_index", Integer, primary_key=True, default=-1),
        Column("try_number", Integer, primary_key=True, default=1),
        Column("state", String(20), nullable=False),
        Column("queue", String(256), nullable=False),
        Column("edge_worker", String(64)),
    )
    return metadata
