"""What may be set from outside: every variable of the control plane, with its type, default and meaning.

Nothing else on the server reads the environment. A secret may come from a file:
`EDGECONTROL_SECRET_KEY_FILE` instead of `EDGECONTROL_SECRET_KEY`, likewise for the database URL.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from pathlib import Path
from typing import Annotated

from django.core.exceptions import ImproperlyConfigured
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "EDGECONTROL_"
_FROM_FILE = ("DATABASE_URL", "SECRET_KEY")
#: Set in the same shell perhaps, for `airflow edgecontrol`.
_OF_OTHERS = {"TOKEN_FILE"}

CommaList = Annotated[list[str], NoDecode]


class Environment(BaseSettings):
    """The settings. Whole seconds end in `_seconds`, sizes in `_bytes`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid")

    #: Refuse every default that is only fit for trying things out.
    production: bool = False
    #: libpq URL of the PostgreSQL server shared with Airflow; empty starts the embedded one.
    database_url: str = ""
    secret_key: str = ""
    #: Where the embedded PostgreSQL and the generated secret key live.
    data_dir: Path = Path(".edgecontrol")
    allowed_hosts: CommaList = ["localhost", "127.0.0.1", "[::1]"]
    #: Origins such as https://edge.example.com, needed behind a TLS-terminating proxy.
    trusted_origins: CommaList = []

    #: How many of your own proxies stand before the control plane; that many entries of X-Forwarded-For are believed.
    proxies: int = Field(0, ge=0, le=10)
    #: Airflow's UI as operators reach it, e.g. https://airflow.example.com; jobs then link to it.
    airflow_url: str = ""
    #: The control plane as edge machines reach it, e.g. https://edge.example.com; empty takes the operator's address.
    public_url: str = ""
    #: The agent in one file, which machines fetch; empty takes what `make agent` has built.
    agent_file: str = ""
    #: host:port that gunicorn binds.
    listen: str = "127.0.0.1:8086"
    processes: int = Field(2, ge=1, le=64)
    #: Per process; three quarters may be parked long polls.
    threads: int = Field(512, ge=8, le=4096)
    #: Database connections per process, and how many requests may work at once.
    database_pool: int = Field(8, ge=2, le=100)

    #: Airflow's Execution API as the edge machines reach it, e.g. https://airflow.example.com/execution/
    execution_api_url: str = ""
    #: The one time span after which a silent side is given up; below Airflow's task_instance_heartbeat_timeout.
    outage_patience_seconds: int = Field(240, ge=1)
    heartbeat_seconds: int = Field(30, ge=1)
    #: A worker without heartbeat and claim for this long is shown as silent.
    silent_after_seconds: int = Field(100, ge=1)
    #: How long an idle agent's claim is parked at most.
    claim_wait_seconds: int = Field(50, ge=1, le=55)
    #: A claim that is not confirmed by then goes back to the queue.
    release_after_seconds: int = Field(30, ge=1)
    housekeeping_seconds: int = Field(5, ge=1)
    log_chunk_bytes: int = Field(256 * 1024, ge=1024)
    #: Per attempt; what exceeds it is not kept.
    log_cap_bytes: int = Field(100 * 1024 * 1024, ge=1024)
    #: Finished jobs and their logs are kept this long.
    retention_days: int = Field(30, ge=1)
    log_level: str = "INFO"

    @field_validator("allowed_hosts", "trusted_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _is_database_url(cls, value: str) -> str:
        try:
            conninfo_to_dict(value)
        except ProgrammingError:
            raise PydanticCustomError("url", "not a libpq URL such as postgresql://user@host/database") from None
        return value

    @field_validator("airflow_url", "public_url")
    @classmethod
    def _is_web_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", value):
            raise PydanticCustomError("url", "not a web address such as https://airflow.example.com")
        return value.rstrip("/")

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        if not re.fullmatch(r"(\[[0-9a-f:.]+\]|[\w.-]+):\d{1,5}", value):
            raise PydanticCustomError("address", "not an address such as 127.0.0.1:8086")
        return value

    @field_validator("log_level")
    @classmethod
    def _is_level(cls, value: str) -> str:
        if value not in logging.getLevelNamesMapping():
            raise PydanticCustomError("level", "one of DEBUG, INFO, WARNING, ERROR")
        return value


def read() -> Environment:
    """Read and check the environment.

    Raises ImproperlyConfigured with one line per mistake, each naming its variable.
    """
    given = dict(os.environ)
    mistakes = _unknown_names(given)
    values: dict[str, str] = {}
    for name in _FROM_FILE:
        path = given.get(f"{PREFIX}{name}_FILE")
        if path:
            try:
                values[name.lower()] = Path(path).read_text().strip()
            except OSError as error:
                mistakes.append(f"{PREFIX}{name}_FILE: cannot read {path}: {error.strerror}")
            except UnicodeDecodeError:
                mistakes.append(f"{PREFIX}{name}_FILE: {path} is not a text file")
    try:
        environment = Environment(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        mistakes += [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        raise ImproperlyConfigured("\n".join(mistakes)) from None
    if environment.production:
        mistakes += _unfit_for_production(environment)
    if environment.silent_after_seconds > environment.outage_patience_seconds:
        mistakes.append(f"{PREFIX}SILENT_AFTER_SECONDS: must not exceed {PREFIX}OUTAGE_PATIENCE_SECONDS")
    if environment.heartbeat_seconds * 2 > environment.silent_after_seconds:
        mistakes.append(f"{PREFIX}HEARTBEAT_SECONDS: at most half of {PREFIX}SILENT_AFTER_SECONDS")
    if mistakes:
        raise ImproperlyConfigured("\n".join(mistakes))
    return environment


def _unknown_names(given: dict[str, str]) -> list[str]:
    known = {name.upper() for name in Environment.model_fields} | {f"{name}_FILE" for name in _FROM_FILE} | _OF_OTHERS
    mistakes = []
    for name in sorted(name.removeprefix(PREFIX) for name in given if name.startswith(PREFIX)):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            mistakes.append(f"{PREFIX}{name}: no such setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
    return mistakes


def _unfit_for_production(environment: Environment) -> list[str]:
    mistakes = []
    if not environment.database_url:
        mistakes.append(f"{PREFIX}DATABASE_URL: production needs a PostgreSQL server of its own, not the embedded one")
    if len(environment.secret_key) < 32:
        mistakes.append(f"{PREFIX}SECRET_KEY: production needs at least 32 characters (or {PREFIX}SECRET_KEY_FILE)")
    if "*" in environment.allowed_hosts:
        mistakes.append(f"{PREFIX}ALLOWED_HOSTS: production needs the names it is reached by, not *")
    return mistakes
