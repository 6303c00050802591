"""A backend of Airflow's metrics that remembers what it was told to send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow_bridge.airflow_features import EXPANDS_NAMES, stats


@dataclass(frozen=True)
class Sent:
    kind: str
    name: str
    value: float
    tags: dict[str, str] = field(hash=False)


class Recorder:
    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def incr(self, stat: str, count: int = 1, rate: float = 1, *, tags: Any = None) -> None:
        self.sent.append(Sent("counter", stat, count, dict(tags or {})))

    def gauge(self, stat: str, value: float, rate: float = 1, delta: bool = False, *, tags: Any = None) -> None:
        self.sent.append(Sent("gauge", stat, value, dict(tags or {})))

    def timing(self, stat: str, dt: float, *, tags: Any = None) -> None:
        self.sent.append(Sent("timer", stat, dt, dict(tags or {})))

    def named(self, name: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.name == name]

    def values(self, name: str) -> list[float]:
        return [sent.value for sent in self.named(name)]


@contextmanager
def recording(*, legacy_names: bool = False, backend: Any = None) -> Iterator[Recorder]:
    """In the place of what Airflow is configured with; `backend` then hears what the recorder would."""
    recorder = Recorder()
    _initialize(lambda: backend or recorder, legacy_names=legacy_names)
    try:
        yield recorder
    finally:
        _initialize(Recorder, legacy_names=False)


def _initialize(factory: Callable[[], Any], *, legacy_names: bool) -> None:
    options = {"export_legacy_names": legacy_names} if EXPANDS_NAMES else {}
    stats.initialize(factory=factory, **options)
