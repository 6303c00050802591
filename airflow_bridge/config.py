"""The bridge's settings: the only place that reads Airflow's section [edgecontrol]; nothing is decided by them here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.configuration import conf as airflow_conf

SECTION = "edgecontrol"
DEFAULT_OUTAGE_PATIENCE = 240
DEFAULT_QUEUE_WAIT_LIMIT = 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeConfig:
    """What an operator may set for the bridge."""

    #: Where EdgeControl's tables are; empty when nobody has said so.
    database_url: str
    #: Seconds without a heartbeat after which a lost job's task counts as dead.
    outage_patience: int
    #: Seconds a job may wait for a worker before it fails.
    queue_wait_limit: int


def read(conf: Any = airflow_conf) -> BridgeConfig:
    """Settings from Airflow's configuration; pass an executor's own `conf` for its team's."""
    return BridgeConfig(
        database_url=conf.get(SECTION, "database_url", fallback="") or "",
        outage_patience=conf.getint(SECTION, "outage_patience", fallback=DEFAULT_OUTAGE_PATIENCE),
        queue_wait_limit=conf.getint(SECTION, "queue_wait_limit", fallback=DEFAULT_QUEUE_WAIT_LIMIT),
    )


def log_folder() -> Path:
    """Where this process of Airflow writes task logs before they go elsewhere."""
    return Path(airflow_conf.get("logging", "base_log_folder"))


def patience_complaint(config: BridgeConfig) -> str | None:
    """Why outage_patience is wrong, or None.

    Airflow must not give up a task before EdgeControl does, or both would act on the same silence.
    """
    limit = airflow_conf.getint("scheduler", "task_instance_heartbeat_timeout")
    if config.outage_patience < limit:
        return None
    return (
        f"[{SECTION}] outage_patience ({config.outage_patience} s) must be below [scheduler] "
        f"task_instance_heartbeat_timeout ({limit} s): raise the latter, or an outage that EdgeControl would sit out "
        "makes Airflow run tasks a second time"
    )
