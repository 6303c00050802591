from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from workers_app.management import tables
from workers_app.management.tables import Cell, Column, Painted

COLUMNS = (Column("NAME"), Column("STATE", whole=True), Column("TEAM", optional=True), Column("WHY"))
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def table(*rows: tuple[Cell, ...], width: int | None = None) -> list[str]:
    return list(tables.lines(COLUMNS, rows, width=width))


def test_columns_stand_under_their_titles() -> None:
    assert table(("press-1", "idle", "red", "x"), ("p", "maintenance mode", "", "")) == [
        "NAME     STATE             TEAM  WHY",
        "press-1  idle              red   x",
        "p        maintenance mode",
    ]


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    assert table(("press-1", "idle", "", "")) == ["NAME     STATE", "press-1  idle"]


def test_without_a_terminal_nothing_is_cut_and_each_row_is_one_line() -> None:
    name, why = "n" * 300, "because " * 50
    assert table((name, "idle", "", why))[1] == f"{name}  idle   {why.strip()}"


@pytest.mark.parametrize("width", [40, 60, 79, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    rows = [("n" * 90, "running", "team", "because of this and that " * 5), ("漢字" * 40, "idle", "t" * 50, "")]
    assert all(tables.display_width(line) <= width for line in table(*rows, width=width))


def test_where_it_is_narrow_the_optional_column_goes_first_then_the_widest_is_cut() -> None:
    rows = ("press-1234567890", "idle", "red", "")
    assert table(rows, width=30)[1] == "press-1234567890  idle   red"
    assert table(rows, width=24)[1] == "press-1234567890  idle"
    assert table(rows, width=18)[1] == "press-1234…  idle"
    assert table(rows, width=17)[1] == "press-123…  idle"


def test_what_is_there_to_be_copied_is_never_cut() -> None:
    assert "maintenance mode" in table(("n" * 50, "maintenance mode", "", ""), width=10)[1]


def test_sentences_take_the_rest_of_the_line_and_go_on_below_it() -> None:
    why = "no worker host serves the queue of this job"
    assert table(("press-1", "idle", "", why), width=50) == [
        "NAME     STATE  WHY",
        "press-1  idle   no worker host serves the queue of",
        "                this job",
    ]


def test_sentences_without_room_beside_their_row_stand_beneath_it() -> None:
    assert table(("press-1", "maintenance mode", "", "no worker host serves it"), width=40) == [
        "NAME     STATE",
        "press-1  maintenance mode",
        "    no worker host serves it",
    ]


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert [tables.display_width(text) for text in ("abc", "漢字", "🦊", "e\u0301")] == [3, 4, 2, 1]
    assert table(("漢字", "idle", "", ""), ("abcd", "idle", "", ""))[1:] == ["漢字  idle", "abcd  idle"]


def test_a_colour_takes_no_room() -> None:
    rows = [("a", Painted("idle", lambda text: f"<{text}>"), "", ""), ("b", "maintenance mode", "", "")]
    assert table(*rows)[1] == "a     <idle            >"


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\nb", "a\tb", "a\x00b", "a\u202eb"])
def test_what_somebody_wrote_does_not_steer_the_terminal(text: str) -> None:
    assert tables.clean(text).isprintable()
    assert tables.clean(text)[0] + tables.clean(text)[-1] == "ab"


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=90), "90 s"),
        (timedelta(minutes=2), "2 min"),
        (timedelta(minutes=119), "119 min"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=3, hours=5), "3 d"),
    ],
)
def test_a_time_is_told_in_its_largest_unit(ago: timedelta, text: str) -> None:
    assert tables.ago(NOW - ago, NOW) == text


def test_a_time_that_never_was_is_empty() -> None:
    assert tables.ago(None, NOW) == ""
