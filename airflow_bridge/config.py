"""The bridge's settings: the only place that reads Airflow's section [edgecontrol]; nothing is decided by them here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.configuration import conf as airflow_conf

SECTION = "edgecontrol"
#: A person's own, before the option that a whole installation shares.
TOKEN_FILE_VARIABLE = "EDGECONTROL_TOKEN_FILE"  # noqa: S105
DEFAULT_OUTAGE_PATIENCE = 240
DEFAULT_QUEUE_WAIT_LIMIT = 86400
#: The life of a running task's token, in patiences.
TOKEN_LIVES = 5

_HOST = r"(?:\[[0-9a-f:.]+\]|[^\s/?#@:\[\]\\]+)"
_HTTP_URL = re.compile(rf"https?://{_HOST}(?::\d{{1,5}})?(?:/[^\s?#]*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class BridgeConfig:
    """What an operator may set for the bridge."""

    #: Where EdgeControl's tables are; empty when nobody has said so.
    database_url: str
    #: Seconds without a heartbeat after which a lost job's task counts as dead.
    outage_patience: int
    #: Seconds a job may wait for a worker before it fails.
    queue_wait_limit: int
    #: The control plane as browsers reach it, without a slash at the end; empty when nobody has said so.
    control_plane_url: str


def read(conf: Any = airflow_conf) -> BridgeConfig:
    """Settings from Airflow's configuration; pass an executor's own `conf` for its team's.

    What a team has not set is as for everybody: all teams share one job table, which says whose each job is.
    """
    return BridgeConfig(
        database_url=_of_team_or_all(conf.get, airflow_conf.get, "database_url", "") or "",
        outage_patience=_of_team_or_all(conf.getint, airflow_conf.getint, "outage_patience", DEFAULT_OUTAGE_PATIENCE),
        queue_wait_limit=_of_team_or_all(
            conf.getint, airflow_conf.getint, "queue_wait_limit", DEFAULT_QUEUE_WAIT_LIMIT
        ),
        control_plane_url=control_plane_url(conf),
    )


def _of_team_or_all(of_team: Any, of_all: Any, option: str, default: Any) -> Any:
    """Airflow itself knows only a team's own value or the default, and does not say which of the two it is."""
    value = of_team(SECTION, option, fallback=default)
    return of_all(SECTION, option, fallback=default) if value == default else value


def control_plane_url(conf: Any = airflow_conf) -> str:
    """This setting alone: the UI's links must not fall over another one that is wrong."""
    return (conf.get(SECTION, "control_plane_url", fallback="") or "").strip().rstrip("/")


def api_token_file(conf: Any = airflow_conf) -> str:
    """The file with the personal token of `airflow edgecontrol`; empty when nobody has said so."""
    named = os.environ.get(TOKEN_FILE_VARIABLE) or conf.get(SECTION, "api_token_file", fallback="")
    return (named or "").strip()


def log_folder() -> Path:
    """Where this process of Airflow writes task logs before they go elsewhere."""
    return Path(airflow_conf.get("logging", "base_log_folder"))


def patience_complaint(config: BridgeConfig) -> str | None:
    """Why outage_patience is wrong, or None.

    Airflow must not give up a task before EdgeControl does, or both would act on the same silence. And the token that a
    start is repeated with must not run out meanwhile: whether an earlier try arrived could then not be found out.
    """
    for option, follows in (
        (
            "task_instance_heartbeat_timeout",
            "an outage that EdgeControl would sit out makes Airflow run tasks a second time",
        ),
        ("task_queued_timeout", "the token of a start runs out, as it lasts so long, while the start is repeated"),
    ):
        limit = airflow_conf.getint("scheduler", option)
        if config.outage_patience >= limit:
            return (
                f"[{SECTION}] outage_patience ({config.outage_patience} s) must be below [scheduler] "
                f"{option} ({limit} s): raise the latter, or {follows}"
            )
    return None


def token_complaint(config: BridgeConfig) -> str | None:
    """Why the life of a running task's token is wrong, or None.

    A task renews its token in the last fifth of the token's life, and then needs Airflow's API.
    """
    life = airflow_conf.getint("execution_api", "jwt_expiration_time")
    if life >= TOKEN_LIVES * config.outage_patience:
        return None
    return (
        f"[execution_api] jwt_expiration_time ({life} s) should be at least {TOKEN_LIVES} times [{SECTION}] "
        f"outage_patience ({config.outage_patience} s): set it to {TOKEN_LIVES * config.outage_patience}, or a task's "
        "token runs out in an outage that the task would live through"
    )


def is_address(url: str) -> bool:
    """Whether it is an address of a control plane: http or https, a host, perhaps a port and a path, nothing else."""
    return _HTTP_URL.fullmatch(url) is not None


def url_complaint(url: str) -> str | None:
    """Why no link can be made of control_plane_url, or None. The value is not repeated: it might hold a password."""
    if is_address(url):
        return None
    return (
        f"[{SECTION}] control_plane_url must be the control plane's address as browsers reach it, such as "
        "https://edge.example.com: http or https, a host, perhaps a port and a path, no user, nothing behind. "
        "Correct it, then restart the api-server"
    )
