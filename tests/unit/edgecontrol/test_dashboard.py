from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from edgecontrol.attention import Notice
from edgecontrol.dashboard import MOST_COUNTED, ORDER, Fleet, Home, Work
from edgecontrol.throughput import MINUTE, MINUTES, Ended, by_ten_minutes, chart, round_up, total
from workers_app.states import Shown

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def minutes(*counts: Ended) -> list[tuple[datetime, Ended]]:
    return [(NOON + at * MINUTE, count) for at, count in enumerate(counts)]


def work(**values: object) -> Work:
    return Work(**{"now": NOON, "waiting": 0, "oldest": None, "held_slots": 0, "taken": 0} | values)  # type: ignore[arg-type]


def fleet(**values: object) -> Fleet:
    return Fleet(**{"states": [], "total": 1, "live": 1, "capacity": 0, "notices": []} | values)  # type: ignore[arg-type]


def test_all_twelve_states_are_shown_and_the_silent_ones_come_first() -> None:
    assert set(ORDER) == set(Shown)
    assert len(ORDER) == len(Shown)
    assert ORDER[0] is Shown.UNKNOWN
    assert ORDER[-1] is Shown.IDLE


@pytest.mark.parametrize(
    ("number", "top"), [(0, 1), (1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (49, 50), (51, 100), (1000, 1000)]
)
def test_a_chart_ends_at_a_round_number_above_its_highest_bar(number: int, top: int) -> None:
    assert round_up(number) == top


def test_a_chart_draws_each_minute_in_proportion_and_says_what_it_was() -> None:
    drawn = chart(minutes(Ended(3, 1, 0), Ended(), Ended(5, 0, 0)), value="all", words="finished")
    assert drawn.top == 5
    assert [(bar.x, bar.height, bar.y) for bar in drawn.bars] == [(0, 80, 20), (2, 100, 0)]
    assert chart(minutes(Ended(30)), value="all", words="finished").top == 50
    assert drawn.bars[0].says == "12:00 UTC: 4 finished"


def test_a_chart_without_anything_is_empty_and_not_an_error() -> None:
    drawn = chart(minutes(Ended(), Ended()), value="went_wrong", words="failed")
    assert (drawn.bars, drawn.top) == ([], 5)


def test_a_single_failure_does_not_fill_the_chart() -> None:
    (bar,) = chart(minutes(Ended(0, 1, 0)), value="went_wrong", words="failed").bars
    assert bar.height == 20


def test_lost_jobs_count_as_gone_wrong() -> None:
    assert Ended(succeeded=5, failed=2, lost=1).went_wrong == 3
    assert Ended(succeeded=5, failed=2, lost=1).all == 8


def test_the_table_adds_up_ten_minutes_each_and_loses_none() -> None:
    counts = [(NOON + at * MINUTE, Ended(1, at % 2, 0)) for at in range(MINUTES)]
    table = by_ten_minutes(counts)
    assert len(table) == MINUTES / 10
    assert table[1] == (NOON + 10 * MINUTE, Ended(10, 5, 0))
    assert total([ended for _, ended in table]) == Ended(MINUTES, MINUTES // 2, 0)


def test_a_backlog_beyond_the_bound_is_called_more() -> None:
    assert work(waiting=MOST_COUNTED).waiting_in_words == "10,000"
    assert work(waiting=MOST_COUNTED + 1).waiting_in_words == "10,000+"


def test_the_oldest_wait_is_said_in_words() -> None:
    assert work(oldest=(uuid4(), NOON - timedelta(minutes=12, seconds=5))).oldest_wait.startswith("12 min")
    assert work().oldest_wait == ""


def test_slots_of_workers_that_take_no_jobs_are_used_but_never_free() -> None:
    # Five slots are held, two of them on a worker in maintenance; the others offer eight.
    page = Home(as_of=NOON, fleet=fleet(capacity=8), work=work(held_slots=5, taken=3))
    assert page.slots == {"used": 5, "free": 5, "all": 10, "percent": 50}


def test_more_held_than_offered_is_no_negative_number_of_free_slots() -> None:
    page = Home(as_of=NOON, fleet=fleet(capacity=1), work=work(held_slots=3, taken=3))
    assert page.slots == {"used": 3, "free": 0, "all": 3, "percent": 100}


def test_slots_need_both_sides() -> None:
    assert Home(as_of=NOON, fleet=fleet()).slots is None
    assert Home(as_of=NOON, work=work()).slots is None


def test_news_are_no_trouble() -> None:
    news = Notice(about="maintenance", tone="rest", icon="build", text="ends soon", url="")
    trouble = Notice(about="silent", tone="bad", icon="x", text="silent", url="")
    assert Home(as_of=NOON, notices=[news, trouble]).urgent == [trouble]


def test_a_fleet_is_empty_only_when_it_was_looked_at() -> None:
    assert Home(as_of=NOON, fleet=fleet(total=0)).empty
    assert not Home(as_of=NOON, fleet=fleet()).empty
    assert not Home(as_of=NOON).empty
