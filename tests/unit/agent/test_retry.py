from __future__ import annotations

import random

import pytest

from agent.retry import RETRY_AFTER_LIMIT_SECONDS, Backoff, is_repeatable, retry_after_seconds

DATE = "Sun, 22 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize("status", [None, 408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_repeated(status: int | None) -> None:
    assert is_repeatable(status)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 426])
def test_what_will_not_pass_is_final(status: int) -> None:
    assert not is_repeatable(status)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("nan", None),
        ("soon", None),
        ("86400", RETRY_AFTER_LIMIT_SECONDS),
        ("inf", RETRY_AFTER_LIMIT_SECONDS),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, date=DATE) == seconds


def test_waits_grow_to_their_limit_and_start_anew() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=8.0, rng=random.Random(1))  # noqa: S311
    waits = [backoff.next_seconds() for _ in range(6)]
    for wait, step in zip(waits, [1, 2, 4, 8, 8, 8], strict=True):
        assert step / 2 <= wait <= step
    backoff.reset()
    assert backoff.next_seconds() <= 1.0


def test_a_wait_is_never_shorter_than_the_server_asked_for() -> None:
    assert Backoff().next_seconds(retry_after=12.0) >= 12.0


def test_a_server_cannot_ask_for_a_longer_wait_than_its_caller_can_afford() -> None:
    assert Backoff(obey_seconds=30.0).next_seconds(retry_after=300.0) <= 33.0


@pytest.mark.parametrize("date", [None, "soon"])
def test_without_a_date_of_its_own_an_answer_is_from_now(date: str | None) -> None:
    assert retry_after_seconds("Sun, 22 Nov 1998 12:00:30 GMT", date=date) == 0.0


def test_agents_that_failed_together_do_not_come_back_together() -> None:
    waits = {Backoff(rng=random.Random(seed)).next_seconds() for seed in range(20)}  # noqa: S311
    assert len(waits) == 20
