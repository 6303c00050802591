"""What the checks of `doctor` hand to each other, and what each says; nothing is looked at here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from agent.client import Client
from agent.config import Config


class State(StrEnum):
    OK = "ok"
    #: Works now, and somebody should know.
    WARNING = "warning"
    #: The agent, or its tasks, cannot work so.
    FAILED = "failed"
    #: Could not be looked at, because of another failure.
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    check: str
    state: State
    #: One line: what was seen, and what to do about it.
    text: str


class Proxy(NamedTuple):
    """The one that the control plane is reached through."""

    scheme: str
    host: str
    port: int
    user: str
    password: str

    @property
    def shown(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


class Look(NamedTuple):
    """What a task interpreter says of its Airflow; for `label`, with the queues that it is for."""

    label: str
    facts: dict[str, Any]


@dataclass
class Examination:
    """Filled by the checks one after the other."""

    flags: Mapping[str, Any]
    environ: Mapping[str, str]
    home: Path | None = None
    config: Config | None = None
    #: Why there is no token that could be tried.
    bad_token: str = ""
    token_file: Path | None = None
    proxy: Proxy | None = None
    client: Client | None = None
    health: dict[str, Any] | None = None
    #: How far this machine's clock is ahead of the control plane's.
    ahead_seconds: float | None = None
    me: dict[str, Any] | None = None
    looks: list[Look] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)

    @property
    def settings(self) -> Config:
        """For checks that come only once there are settings."""
        assert self.config is not None  # noqa: S101 - `CHECKS` says that it is needed
        return self.config

    @property
    def caller(self) -> Client:
        assert self.client is not None  # noqa: S101 - made with the settings
        return self.client

    def without_secrets(self, finding: Finding) -> Finding:
        text = " ".join(finding.text.split())
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return replace(finding, text=text)


def ok(check: str, text: str) -> Finding:
    return Finding(check, State.OK, text)


def warning(check: str, text: str) -> Finding:
    return Finding(check, State.WARNING, text)


def failed(check: str, text: str) -> Finding:
    return Finding(check, State.FAILED, text)
