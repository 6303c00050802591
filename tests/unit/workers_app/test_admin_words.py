from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from workers_app import admin_words
from workers_app.models import Change, Worker
from workers_app.states import Shown


@pytest.mark.parametrize("state", Shown)
def test_every_state_has_a_colour_and_a_meaning(state: Shown) -> None:
    badge = admin_words.badge(state)
    assert f"ec-state--{state.replace(' ', '-')}" in badge
    assert admin_words.MEANINGS[state]
    assert f">{state}</span>" in badge


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (timedelta(seconds=0), "0 s"),
        (timedelta(seconds=12.9), "12 s"),
        (timedelta(seconds=60), "1 min"),
        (timedelta(minutes=59, seconds=59), "59 min"),
        (timedelta(hours=1), "1 h"),
        (timedelta(hours=5, minutes=20), "5 h 20 min"),
        (timedelta(hours=47, minutes=59), "47 h"),
        (timedelta(days=40), "40 days"),
    ],
)
def test_a_length_of_time_in_words(length: timedelta, words: str) -> None:
    assert admin_words.span(length) == words


def test_a_moment_in_words_with_the_moment_itself() -> None:
    past = timezone.now() - timedelta(seconds=12)
    assert "12 s ago" in admin_words.moment(past)
    assert f"{past:%Y-%m-%d %H:%M:%S} UTC" in admin_words.moment(past)
    assert "in 2 h</time>" in admin_words.moment(timezone.now() + timedelta(hours=2))
    assert "never" in admin_words.moment(None, never="never")


@pytest.mark.parametrize(
    "sysinfo",
    [
        None,
        [],
        "x",
        {"memory_used_percent": "much"},
        {"memory_used_percent": True},
        {"disk_used_percent": float("nan")},
        {"load_per_cpu": -1},
        {"load_per_cpu": [1]},
        {"memory_used_percent": 1e300},
    ],
)
def test_figures_that_are_none_are_left_out(sysinfo: Any) -> None:
    assert admin_words.figures(sysinfo) == []
    assert admin_words.meters(sysinfo) == ""


@pytest.mark.parametrize(("percent", "tone"), [(20, "good"), (85, "warn"), (97.4, "bad")])
def test_a_figure_is_marked_when_it_is_high(percent: float, tone: str) -> None:
    (figure,) = admin_words.figures({"memory_used_percent": percent})
    assert (figure["tone"], figure["text"]) == (tone, f"{percent:.0f}%")


@pytest.mark.parametrize(
    ("sysinfo", "tone", "words"),
    [
        ({"status": 20}, "good", "well"),
        ({"status": 0, "status_text": "all belts run"}, "good", "all belts run"),
        ({"status": 30, "status_text": ""}, "warn", "warning"),
        ({"status": 40, "status_text": "the belt is torn"}, "bad", "the belt is torn"),
        ({"status": 10**40, "status_text": 7}, "bad", "error"),
        ({"status": 20, "extended_sysinfo_error": "OSError: gone"}, "warn", "does not work: OSError: gone"),
    ],
)
def test_a_machines_own_check_is_told_in_words(sysinfo: Any, tone: str, words: str) -> None:
    assert admin_words.own_check(sysinfo) == {"tone": tone, "text": words}


@pytest.mark.parametrize("sysinfo", [None, [], {}, {"status": "bad"}, {"status": True}, {"status_text": "x"}])
def test_a_machine_without_an_own_check_is_not_said_to_have_one(sysinfo: Any) -> None:
    assert admin_words.own_check(sysinfo) is None


def test_only_so_many_queues_are_named() -> None:
    tags = admin_words.queues(["a", "b", "<c>", "d", "e"], most=3)
    assert "&lt;c&gt;" in tags
    assert 'title="d, e">+2' in tags
    assert "every queue" in admin_words.queues(None)
    assert "none" in admin_words.queues([])


def test_a_wish_says_why_who_when_and_until() -> None:
    worker = Worker(
        requested="maintenance",
        requested_comment="new <disk>",
        requested_by="ops",
        requested_at=timezone.now() - timedelta(hours=2),
        requested_until=timezone.now() + timedelta(hours=1),
    )
    wish = admin_words.wish(worker)
    for part in ("new &lt;disk&gt;", "ops", "2 h ago", "ends", "in 1 h"):
        assert part in wish
    worker.requested = "shutdown"
    assert "jobs are stopped" in admin_words.wish(worker)
    worker.requested = "active"
    assert admin_words.wish(worker) == ""


def test_the_differences_of_a_change_in_words() -> None:
    change = Change(
        before={"requested": "active", "requested_comment": "", "queues_override": None, "team": None},
        after={
            "requested": "maintenance",
            "requested_comment": "new disk",
            "queues_override": ["a", "b"],
            "team": "",
            "requested_until": datetime(2026, 11, 22, 18, tzinfo=UTC).isoformat(),
        },
        comment="new disk",
    )
    assert admin_words.differences(change) == [
        ("wanted", "active", "maintenance"),
        ("queues", "-", "a, b"),
        ("until", None, "2026-11-22 18:00:00 UTC"),
    ]


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (False, "no"),
        ([], "none"),
        ({"a": [1]}, "a: 1"),
        (0, "0"),
        ("T" * 11, "T" * 11),
        ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59-23:59"),
    ],
)
def test_whatever_is_stored_can_be_said(stored: Any, words: str) -> None:
    assert admin_words.value(stored) == words


@pytest.mark.parametrize("side", [None, [], "x", 7])
def test_a_change_that_holds_something_else_has_no_differences(side: Any) -> None:
    assert admin_words.differences(Change(before=side, after=side)) == []
