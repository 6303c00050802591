from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from workers_app import selection
from workers_app.models import Worker
from workers_app.selection import InvalidPattern

Make = Callable[..., Any]

NAMES = [
    "press-1",
    "press-2",
    "press-10",
    "Press-1",
    "a.b",
    "axb",
    "a*b",
    "a[1]b",
    "a\\b",
    "a^b",
    "a]b",
    "a%b",
    "Halle \u00dc \U0001f98a",
    "x" * 253,
]


def test_whoever_serves_a_queue_is_found_by_it_and_nobody_else(make_worker: Make) -> None:
    lists = [None, [], ["a"], ["b"], ["a", "b"]]
    for queues, allowed, override in itertools.product(lists, repeat=3):
        make_worker(queues=queues, allowed_queues=allowed, queues_override=override)
    workers = list(Worker.objects.all())
    for queue in ("a", "b", "c", "A", "a,b", ""):
        serve = {w.pk for w in workers if w.effective_queues is None or queue in w.effective_queues}
        assert set(Worker.objects.filter(selection.serving(queue)).values_list("pk", flat=True)) == serve
    assert len(workers) == 125


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("press-1", ["press-1"]),
        ("press-*", ["press-1", "press-10", "press-2"]),
        ("press-?", ["press-1", "press-2"]),
        ("press-[2-9]*", ["press-2"]),
        ("press-[!2-9]*", ["press-1", "press-10"]),
        ("?ress-1", ["Press-1", "press-1"]),
        ("a.b", ["a.b"]),
        ("a[*]b", ["a*b"]),
        ("a[[]1]b", ["a[1]b"]),
        ("a[]]b", ["a]b"]),
        ("a[\\]b", ["a\\b"]),
        ("a\\b", ["a\\b"]),
        ("a[\\^]b", ["a\\b", "a^b"]),
        ("a[^x]b", ["a^b", "axb"]),
        ("a[.-.]b", ["a.b"]),
        ("a[%_]b", ["a%b"]),
        ("a%b", ["a%b"]),
        ("a[1]b", []),
        ("*\u00dc *", ["Halle \u00dc \U0001f98a"]),
        ("Halle \u00dc ?", ["Halle \u00dc \U0001f98a"]),
        ("x*x", ["x" * 253]),
        ("*x*" * 80 + "y", []),
        ("[", []),
        ("a[", []),
        ("(?i)press-1", []),
        ("***", sorted(NAMES)),
    ],
)
def test_a_pattern_chooses_as_in_a_shell(make_worker: Make, pattern: str, names: list[str]) -> None:
    for name in NAMES:
        make_worker(name)
    found = Worker.objects.filter(selection.like(pattern)).values_list("name", flat=True)
    assert sorted(found) == names


@pytest.mark.parametrize("pattern", ["", "a\nb", "a\0", "\ud800", "[z-a]", "x" * 1001])
def test_a_pattern_that_means_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        selection.like(pattern)


def test_silence_is_neither_a_goodbye_nor_maintenance_that_is_heard(make_worker: Make) -> None:
    make_worker("gone", state="unknown", reported="running")
    make_worker("rested, gone", state="offline maintenance", reported="maintenance")
    make_worker("said goodbye", state="offline", reported="offline")
    make_worker("rested, said goodbye", state="offline maintenance", reported="offline")
    make_worker("rests", state="maintenance mode", reported="maintenance")
    make_worker("there")
    found = Worker.objects.filter(selection.silent()).values_list("name", flat=True)
    assert set(found) == {"gone", "rested, gone"}
