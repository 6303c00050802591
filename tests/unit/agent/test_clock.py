"""A clock that is wrong is noticed by the dates of answers, and said once."""

from __future__ import annotations

import logging
from email.utils import formatdate

import pytest

from agent.clock import Clock

NOW = 1_700_000_000.0


def heard(clock: Clock, *, dated: float, took: float = 0.2) -> int | None:
    clock.heard(formatdate(dated, usegmt=True), asked_at=NOW - took, answered_at=NOW)
    return clock.off_seconds


@pytest.mark.parametrize("off", [-3 * 86400, -600, -62, -58, 0, 58, 62, 600, 3 * 86400])
def test_more_than_a_minute_is_wrong(off: int) -> None:
    found = heard(Clock(), dated=NOW - off)
    if abs(off) < 60:
        assert found is None
    else:
        assert found is not None
        assert abs(found - off) <= 1


def test_it_is_said_once_and_when_it_is_right_again(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="agent.clock"):
        for drift in (0, 1, 2, 30):
            heard(clock, dated=NOW + 600 + drift)
        heard(clock, dated=NOW)
        heard(clock, dated=NOW)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "10 minutes behind" in caplog.text


def test_a_deviation_that_wavers_is_one_figure() -> None:
    clock = Clock()
    assert len({heard(clock, dated=NOW - 600 + waver) for waver in (0, 1, -1, 2, -3)}) == 1


def test_an_answer_that_took_long_or_has_no_date_says_nothing() -> None:
    clock = Clock()
    assert heard(clock, dated=NOW - 600, took=50.0) is None
    for date in (None, "", "yesterday"):
        clock.heard(date, asked_at=NOW, answered_at=NOW)
    assert clock.off_seconds is None
