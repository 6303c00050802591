"""What is wanted on the machine holds at once, is told until it is heard, and is kept over a restart."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent import wishes
from agent.errors import BadStateDir
from agent.heartbeat import Heartbeat
from agent.held import Held
from agent.orders import Orders
from agent.wishes import Wanted, Wish, Wishes, after, by_whom, leave
from tests.unit.agent.conftest import Plane

RESTS = {name: Wanted(requested="maintenance", by=name, comment="old") for name in ("operator", "machine", "automatic")}
ACTIVE, SHUTDOWN = Wanted(), Wanted(requested="shutdown", by="operator")


@pytest.mark.parametrize(
    ("wanted", "requested", "by", "then"),
    [
        (ACTIVE, "maintenance", "machine", ("maintenance", "machine", "new")),
        (ACTIVE, "maintenance", "automatic", ("maintenance", "automatic", "new")),
        (ACTIVE, "active", "machine", ("active", "", "")),
        (SHUTDOWN, "maintenance", "machine", ("maintenance", "machine", "new")),
        (SHUTDOWN, "maintenance", "automatic", ("shutdown", "operator", "")),
        (SHUTDOWN, "active", "machine", ("shutdown", "operator", "")),
        (RESTS["operator"], "active", "machine", ("active", "machine", "")),
        (RESTS["operator"], "active", "automatic", ("maintenance", "operator", "old")),
        (RESTS["operator"], "maintenance", "automatic", ("maintenance", "operator", "old")),
        (RESTS["machine"], "active", "automatic", ("maintenance", "machine", "old")),
        (RESTS["automatic"], "active", "automatic", ("active", "automatic", "")),
        (RESTS["automatic"], "maintenance", "automatic", ("maintenance", "automatic", "new")),
        (RESTS["automatic"], "maintenance", "machine", ("maintenance", "machine", "new")),
    ],
)
def test_the_last_wish_wins_but_nothing_automatic_overrules_somebody(
    wanted: Wanted, requested: str, by: str, then: tuple[str, str, str]
) -> None:
    known = after(wanted, Wish(requested=requested, comment="new", by=by))
    assert (known.requested, known.by, known.comment) == then


def test_a_wish_is_told_until_it_was_heard_and_outlasts_the_process(tmp_path: Path) -> None:
    made = Wishes(tmp_path).wish("maintenance", "belt")
    again = Wishes(tmp_path)
    told = again.next()
    assert told is not None
    assert 0 <= told.pop("age_seconds") < 60
    assert told == {"id": made.id, "requested": "maintenance", "comment": "belt", "by": "machine"}
    assert not again.taken("another")
    assert again.next() is not None
    assert not again.taken(made.id)
    assert again.next() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("restarted", "clock", "age"),
    [
        (False, 0.0, 40.0),
        (False, -9e9, 40.0),  # the clock was set, and the machine was not restarted
        (False, 9e9, 40.0),
        (True, 0.0, 3600.0),  # off for a while
        (True, -9e9, 1000.0),  # since the start of the machine at least
        (True, 9e9, 1000.0),
    ],
)
def test_a_clock_that_is_set_makes_no_wish_older_or_younger(
    monkeypatch: pytest.MonkeyPatch, restarted: bool, clock: float, age: float
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(wishes.time, "time", lambda: now + clock)
    monkeypatch.setattr(wishes, "up_seconds", lambda: 1000.0)
    boot = "another" if restarted else wishes.sysinfo.boot_id(None)
    made_at, up = (now - 3600.0, 50.0) if restarted else (now - 40.0, 960.0)
    wish = Wish(requested="active", comment="", by="machine", made_at=made_at, boot_id=boot, up_seconds=up)
    assert wish.age_seconds() == age


def test_what_somebody_wants_makes_everything_before_it_pointless(tmp_path: Path) -> None:
    pending = Wishes(tmp_path)
    pending.wish("maintenance", "disk", by="automatic")
    pending.wish("maintenance", "memory", by="automatic")
    assert (pending.next() or {})["comment"] == "memory"
    mine = pending.wish("active", "all is well")
    assert (pending.next() or {})["id"] == mine.id
    pending.wish("maintenance", "disk", by="automatic")
    assert pending.upon(RESTS["operator"]).by == "automatic", "one after the other"
    assert pending.taken(mine.id), "another is still to be told"
    assert (pending.next() or {})["comment"] == "disk"


def test_the_same_wish_again_is_the_same(tmp_path: Path) -> None:
    pending = Wishes(tmp_path)
    assert pending.wish("maintenance", "disk", by="automatic") is pending.wish("maintenance", "disk", by="automatic")


@pytest.mark.parametrize("left", ["", "{", "[]", '{"wishes": 7}', '{"wishes": [{}]}', '{"wishes": [7]}'])
def test_what_cannot_be_read_is_no_wish(tmp_path: Path, left: str) -> None:
    (tmp_path / wishes.FILE).write_text(left)
    assert Wishes(tmp_path).next() is None


def test_a_full_disk_costs_only_the_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wishes, "write", full)
    pending = Wishes(tmp_path)
    pending.wish("maintenance", "disk", by="automatic")
    assert pending.upon(ACTIVE).requested == "maintenance"
    with pytest.raises(BadStateDir, match="No space left"):
        leave(tmp_path, "maintenance")


def test_a_wish_is_left_for_the_owner_of_the_directory_only(tmp_path: Path) -> None:
    leave(tmp_path, "maintenance", "belt")
    assert stat.S_IMODE((tmp_path / wishes.FILE).stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root could")
def test_root_writes_nothing_where_another_user_may_have_laid_links(tmp_path: Path) -> None:
    place, precious = tmp_path / "state", tmp_path / "precious"
    precious.write_text("precious")
    place.mkdir()
    for name in (wishes.FILE, wishes.FILE + ".tmp"):
        (place / name).symlink_to(precious)
    os.chown(place, 65534, 65534)
    with pytest.raises(BadStateDir, match="belongs to"):
        leave(place, "maintenance")
    assert precious.read_text() == "precious"
    assert precious.stat().st_uid == 0


def test_the_maintenance_that_the_control_plane_wants_is_known_at_the_next_start(tmp_path: Path) -> None:
    def started() -> Orders:
        pending = Wishes(tmp_path)
        orders = Orders(concurrency=4, wishes=pending)
        pending.on_change = orders.wished
        pending.reload()
        return orders

    heard = {"requested": "maintenance", "requested_by": "operator", "requested_by_name": "anna", "comment": "disk"}
    started().apply(heard | {"wish_taken": None})
    again = started()
    assert (again.requested, again.requested_by_name, again.comment) == ("maintenance", "anna", "disk")
    again.apply({"requested": "shutdown", "wish_taken": None})
    assert started().requested == "active"
    assert not list(tmp_path.iterdir())


def test_a_later_wish_of_an_operator_wins_at_an_older_control_plane_too(orders: Orders, pending: Wishes) -> None:
    orders.apply({"requested": "maintenance", "revision": 1})
    pending.wish("active", "go on")
    orders.apply({"requested": "maintenance", "revision": 1})
    assert orders.requested == "active"
    orders.apply({"requested": "active", "revision": 2})
    orders.apply({"requested": "maintenance", "revision": 3})
    assert orders.requested == "maintenance"


# --- what the agent makes of it


@pytest.fixture
def pending(tmp_path: Path) -> Wishes:
    return Wishes(tmp_path)


@pytest.fixture
def orders(pending: Wishes) -> Orders:
    orders = Orders(concurrency=4, wishes=pending)
    pending.on_change = orders.wished
    return orders


def test_a_wish_holds_at_once_and_wants_a_heartbeat(orders: Orders, pending: Wishes) -> None:
    pending.wish("maintenance", "belt")
    assert (orders.requested, orders.requested_by, orders.comment) == ("maintenance", "machine", "belt")
    assert orders.resting
    assert orders.resting_untold
    assert orders.heartbeat_wanted()


def test_an_answer_that_was_on_its_way_does_not_undo_it(orders: Orders, pending: Wishes) -> None:
    made = pending.wish("maintenance", "belt")
    orders.apply({"requested": "active", "revision": 1})
    assert orders.requested == "maintenance"
    heard = {"requested": "maintenance", "requested_by": "machine", "requested_by_name": "press-7", "comment": "belt"}
    orders.apply({**heard, "wish_taken": made.id})
    assert not orders.resting_untold
    assert pending.next() is None
    orders.apply({"requested": "active", "requested_by": "operator", "requested_by_name": "anna"})
    assert (orders.requested, orders.requested_by, orders.requested_by_name) == ("active", "operator", "anna")


def test_the_answer_decides_what_became_of_a_wish(orders: Orders, pending: Wishes) -> None:
    made = pending.wish("active", "go on")
    orders.apply({"requested": "maintenance", "requested_by": "operator", "wish_taken": made.id})
    assert orders.requested == "maintenance", "somebody has wished otherwise since"


def test_an_older_control_plane_is_told_and_obeyed_in_everything_else(orders: Orders, pending: Wishes) -> None:
    pending.wish("maintenance", "belt")
    orders.apply({"requested": "active", "revision": 1})
    assert not orders.heartbeat_wanted(), "telling it again at once would never end"
    assert orders.requested == "maintenance"
    orders.apply({"requested": "shutdown", "revision": 2})
    assert orders.draining, "somebody has wished otherwise since"
    pending.wish("active", "go on")
    assert orders.draining


def test_the_second_of_two_wishes_follows_the_first_at_once(orders: Orders, pending: Wishes) -> None:
    first = pending.wish("active", "go on")
    pending.wish("maintenance", "disk", by="automatic")
    orders.apply({"requested": "active", "wish_taken": first.id})
    assert orders.heartbeat_wanted()
    assert orders.requested == "maintenance"


def test_every_heartbeat_tells_the_wish_until_it_was_heard(
    plane: Plane, held: Held, orders: Orders, pending: Wishes
) -> None:
    heartbeat = Heartbeat(
        client=plane,  # type: ignore[arg-type]
        held=held,
        orders=orders,
        interval_seconds=30.0,
        concurrency=4,
        queues=None,
        ready=lambda: True,
        sysinfo=dict,
        on_gone=lambda key, reason: None,
        wish=pending.next,
    )
    made = pending.wish("maintenance", "belt")
    usual = {"requested": "active", "revision": 1, "gone": []}
    plane.answers["heartbeat"] = [usual, {**usual, "requested": "maintenance", "wish_taken": made.id}, usual]
    for _ in range(3):
        heartbeat.send("idle")
    assert [(body["wish"] or {}).get("id") for body in plane.said("heartbeat")] == [made.id, made.id, None]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("operator", " by operator anna"),
        ("machine", " by somebody at the machine"),
        ("automatic", " by the machine itself (automatic)"),
        ("a word of a newer control plane", " by a word of a newer control plane"),
        ("", ""),
    ],
)
def test_people_are_told_by_whom_something_is_wanted(kind: str, words: str) -> None:
    assert by_whom(kind, "anna" if kind == "operator" else "") == words
