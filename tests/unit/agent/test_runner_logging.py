from __future__ import annotations

import contextlib
import signal
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.runner import in_order, within


def written(*stamps: Any) -> list[Any]:
    """What the last processor, the one that writes, gets to see."""
    lines: list[Any] = []
    processors = in_order((lambda logger, method, event: event, lambda logger, method, event: lines.append(event)))
    for stamp in stamps:
        event: Any = {"event": "x"} if stamp is None else {"event": "x", "timestamp": stamp}
        for process in processors:
            event = process(None, "info", event)
    return [line.get("timestamp") for line in lines]


def test_a_line_that_is_older_than_the_one_before_it_gets_that_ones_timestamp() -> None:
    assert written("2026-11-22T08:00:02Z", "2026-11-22T08:00:01.5Z", "2026-11-22T08:00:03Z") == [
        "2026-11-22T08:00:02Z",
        "2026-11-22T08:00:02Z",
        "2026-11-22T08:00:03Z",
    ]


def test_moments_and_texts_are_compared_and_other_forms_stay_as_they_are() -> None:
    later = datetime(2026, 11, 22, 9, tzinfo=UTC)
    assert written(later, "2026-11-22T08:00:00+00:00", "soon", None, 7) == [later, later, "soon", None, 7]


def test_an_upload_that_does_not_end_is_given_up_even_by_a_storage_that_tries_again() -> None:
    def hang_twice() -> None:
        for _ in range(2):
            with contextlib.suppress(Exception):
                time.sleep(60)

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match="not uploaded within"):
        within(0.05, hang_twice)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0


def test_an_upload_that_fails_says_why() -> None:
    def fail() -> None:
        raise OSError("no bucket")

    with pytest.raises(OSError, match="no bucket"):
        within(60, fail)
