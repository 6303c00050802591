from __future__ import annotations

import pytest

from workers_app.states import Reported, Requested, Shown, shown_state

# Written by hand from the design, not from the code: requested, reported, shown while heard, shown when silent.
TABLE = """
active      | starting            | starting            | unknown
active      | idle                | idle                | unknown
active      | running             | running             | unknown
active      | maintenance_pending | maintenance exit    | offline maintenance
active      | maintenance         | maintenance exit    | offline maintenance
active      | terminating         | terminating         | unknown
active      | offline             | offline             | offline
maintenance | starting            | maintenance request | offline maintenance
maintenance | idle                | maintenance request | offline maintenance
maintenance | running             | maintenance request | offline maintenance
maintenance | maintenance_pending | maintenance pending | offline maintenance
maintenance | maintenance         | maintenance mode    | offline maintenance
maintenance | terminating         | terminating         | offline maintenance
maintenance | offline             | offline maintenance | offline maintenance
shutdown    | starting            | shutdown request    | unknown
shutdown    | idle                | shutdown request    | unknown
shutdown    | running             | shutdown request    | unknown
shutdown    | maintenance_pending | shutdown request    | offline maintenance
shutdown    | maintenance         | shutdown request    | offline maintenance
shutdown    | terminating         | terminating         | unknown
shutdown    | offline             | offline             | offline
"""
ROWS = [tuple(cell.strip() for cell in line.split("|")) for line in TABLE.strip().splitlines()]
TRIPLES = [
    (requested, reported, silent, shown)
    for requested, reported, heard, unheard in ROWS
    for silent, shown in ((False, heard), (True, unheard))
]

# The graph of Airflow's edge provider, each edge as a change of what is wanted or of what the agent says.
EDGES = [
    ("starting", "idle", ("active", "starting"), ("active", "idle")),
    ("idle", "running", ("active", "idle"), ("active", "running")),
    ("running", "idle", ("active", "running"), ("active", "idle")),
    ("idle", "maintenance request", ("active", "idle"), ("maintenance", "idle")),
    ("running", "maintenance request", ("active", "running"), ("maintenance", "running")),
    ("maintenance request", "maintenance pending", ("maintenance", "running"), ("maintenance", "maintenance_pending")),
    ("maintenance request", "maintenance mode", ("maintenance", "idle"), ("maintenance", "maintenance")),
    (
        "maintenance pending",
        "maintenance mode",
        ("maintenance", "maintenance_pending"),
        ("maintenance", "maintenance"),
    ),
    (
        "maintenance pending",
        "maintenance exit",
        ("maintenance", "maintenance_pending"),
        ("active", "maintenance_pending"),
    ),
    ("maintenance mode", "maintenance exit", ("maintenance", "maintenance"), ("active", "maintenance")),
    ("maintenance exit", "running", ("active", "maintenance_pending"), ("active", "running")),
    ("maintenance exit", "idle", ("active", "maintenance"), ("active", "idle")),
    ("idle", "offline", ("active", "idle"), ("active", "offline")),
    ("running", "terminating", ("active", "running"), ("active", "terminating")),
    ("terminating", "offline", ("active", "terminating"), ("active", "offline")),
]


def shown(requested: str, reported: str, *, silent: bool = False) -> str:
    return shown_state(requested=Requested(requested), reported=Reported(reported), silent=silent).value


def test_the_table_of_this_test_has_every_triple_once() -> None:
    triples = {(requested, reported, silent) for requested, reported, silent, _ in TRIPLES}
    assert len(TRIPLES) == len(triples) == len(Requested) * len(Reported) * 2


@pytest.mark.parametrize(("requested", "reported", "silent", "expected"), TRIPLES)
def test_the_shown_state_is_the_one_of_the_design(requested: str, reported: str, silent: bool, expected: str) -> None:
    assert shown(requested, reported, silent=silent) == expected


def test_every_state_that_users_know_can_be_shown() -> None:
    assert {expected for *_, expected in TRIPLES} == {state.value for state in Shown}
    assert len(Shown) == 12


@pytest.mark.parametrize(("before", "after", "axes_before", "axes_after"), EDGES)
def test_each_edge_of_the_state_graph_is_one_change_of_one_axis(
    before: str, after: str, axes_before: tuple[str, str], axes_after: tuple[str, str]
) -> None:
    assert shown(*axes_before) == before
    assert shown(*axes_after) == after
    assert sum(old != new for old, new in zip(axes_before, axes_after, strict=True)) == 1


@pytest.mark.parametrize("reported", ["starting", "idle", "running"])
def test_a_shutdown_wish_shows_until_the_agent_obeys_and_then_until_it_is_gone(reported: str) -> None:
    seen = [shown("shutdown", word) for word in (reported, "terminating", "offline")]
    assert seen == ["shutdown request", "terminating", "offline"]
