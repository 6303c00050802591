"""A function of the operator's own, with all that it may do wrong."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any

import pytest

from agent import extended_sysinfo
from agent.extended_sysinfo import ERROR, ExtendedSysinfo

Told = Callable[[Callable[[], Any]], dict[str, Any]]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("site_figures")
    monkeypatch.setitem(sys.modules, "site_figures", module)
    return module


@pytest.fixture
def extended(site: types.ModuleType) -> ExtendedSysinfo:
    return ExtendedSysinfo("site_figures:figures", every_seconds=60.0, deadline_seconds=0.2)


@pytest.fixture
def told(site: types.ModuleType, extended: ExtendedSysinfo) -> Told:
    def told(function: Callable[[], Any]) -> dict[str, Any]:
        site.figures = function  # type: ignore[attr-defined]
        extended.step()
        figures = extended.figures()
        assert len(json.dumps(figures, allow_nan=False).encode()) < 4 * extended_sysinfo.MOST_BYTES
        return figures

    return told


def test_what_it_tells_is_there(told: Told) -> None:
    figures = {"spindle_temperature": 41.5, "lens": "clean", "doors": 2, "open": False, "since": None}
    assert told(lambda: figures) == figures


def test_it_may_be_async(told: Told) -> None:
    async def figures() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"a": 1}

    assert told(figures) == {"a": 1}


def test_it_is_not_there_when_nobody_named_one() -> None:
    before = threading.active_count()
    nothing = ExtendedSysinfo(None)
    nothing.start()
    assert (nothing.figures(), nothing.level, nothing.text) == ({}, None, "")
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    ("status", "level"),
    [(20, 20), (40, 40), ("error", 40), ("WARNING", 30), ("Critical", 50), ("bad", None), (None, None), (True, None)],
)
def test_its_status_is_a_level_or_the_name_of_one(
    told: Told, extended: ExtendedSysinfo, status: Any, level: Any
) -> None:
    told(lambda: {"status": status, "status_text": "belt"})
    assert extended.level == level
    assert extended.text == "belt"


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 7


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "fitting"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**64, "a number of 65 bits"),
        (1 << 33215, "a number of 33216 bits"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (Decimal("1.5"), "1.5"),
        (Colour.RED, "red"),
        (Level.HIGH, 7),
        (b"caf\xe9", "caf\ufffd"),
        ("nul \0", "nul \ufffd"),
        ("half \ud800", "half ?"),
        ({"b": {1}, 2: (3,)}, {"b": [1], "2": [3]}),
        ([[[["deep"]]]], [[["['deep']"]]]),
        ("x" * 5000, "x" * 999 + "…"),
        (f"ec_0123456789ab_{'3f' * 32}", "ec_0123456789ab_***"),
    ],
    ids=lambda value: type(value).__name__,  # some cannot be printed
)
def test_what_json_or_the_database_cannot_have_is_made_fit(told: Told, value: Any, fitting: Any) -> None:
    assert told(lambda: {"a": value}) == {"a": fitting}


def test_what_is_too_much_is_left_out_and_it_says_so(told: Told) -> None:
    figures = told(lambda: {f"figure {n}": n for n in range(60)})
    assert len(figures) == 51
    assert figures[ERROR].startswith("10 figures are left out")
    figures = told(lambda: {f"figure {n}": "x" * 900 for n in range(40)})
    assert "left out" in figures.pop(ERROR)
    assert 10 < len(figures) < 20


def test_what_the_agent_says_of_itself_is_not_overruled(told: Told) -> None:
    figures = told(lambda: {"not_working": "haha", "airflow_version": "9", "disk_free_gb": 3})
    assert figures.keys() == {"disk_free_gb", ERROR}


def end() -> Any:
    raise SystemExit(3)


def fail() -> Any:
    raise OSError("no such sensor")


@pytest.mark.parametrize(
    ("function", "error"),
    [
        (fail, "OSError: no such sensor"),
        (end, "SystemExit: 3"),
        (lambda: [1], "it returned list, not a dict"),
        (lambda: None, "it returned NoneType, not a dict"),
        (lambda: {"a": Unprintable()}, "RuntimeError: no"),
    ],
)
def test_its_errors_are_shown_instead(told: Told, extended: ExtendedSysinfo, function: Any, error: str) -> None:
    assert told(lambda: {"status": 40}) == {"status": 40}
    assert told(function) == {ERROR: error}
    assert extended.level is None
    assert told(lambda: {"a": 1}) == {"a": 1}


def test_a_module_or_function_that_is_not_there_is_an_error_like_any_other() -> None:
    for name in ("no_such_module:figures", "json:no_such_function"):
        extended = ExtendedSysinfo(name)
        extended.step()
        assert "no_such" in extended.figures()[ERROR]


def test_an_async_one_that_is_late_is_cancelled(told: Told) -> None:
    cancelled = []

    async def figures() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert told(figures) == {ERROR: "site_figures:figures does not answer within 0.2 s"}
    assert cancelled


@pytest.fixture
def stuck(site: types.ModuleType) -> Iterator[threading.Event]:
    released = threading.Event()
    site.figures = lambda: {"a": 1} if released.wait(30) else {}  # type: ignore[attr-defined]
    yield released
    released.set()


def test_one_that_does_not_come_back_holds_up_nobody_and_is_not_called_twice(
    extended: ExtendedSysinfo, stuck: threading.Event
) -> None:
    before = threading.active_count()
    extended.start()
    while extended._calling_since is None:
        time.sleep(0.01)
    extended._calling_since -= 60
    assert extended.figures() == {ERROR: "site_figures:figures does not answer within 0.2 s"}
    assert threading.active_count() == before + 1
    stuck.set()
    deadline = time.monotonic() + 10
    while extended.figures() != {"a": 1} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert extended.figures() == {"a": 1}


def test_only_news_are_announced(told: Told, extended: ExtendedSysinfo) -> None:
    news = []
    extended.on_change = lambda: news.append(True)
    for figures in (
        {"load": 1},
        {"load": 2},
        {"load": 2, "status": 20},
        {"load": 3, "status": 20},
        {"load": 3, "status": 40},
    ):
        told(lambda: figures)  # noqa: B023
    told(fail)
    told(fail)
    assert len(news) == 4
