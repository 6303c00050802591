"""Maintenance that begins and ends by itself: with hysteresis, and never against what somebody asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import config, thresholds
from agent.extended_sysinfo import ExtendedSysinfo
from agent.orders import Orders
from agent.thresholds import CALM_SECONDS, LOOK_SECONDS, Threshold, Thresholds, room
from agent.values import Room
from agent.wishes import Wishes

GB = 1 << 30


class Machine:
    """A disk and a memory of 100 GB each, a status, a clock, and a control plane that takes every wish."""

    def __init__(self, tmp_path: Path) -> None:
        self.now = 1000.0
        self.disk = self.memory = 100 * GB
        self.level: int | None = None
        self.text = ""
        self.wishes = Wishes(tmp_path)
        self.orders = Orders(concurrency=1, wishes=self.wishes)
        self.wishes.on_change = self.orders.wished
        self.told: list[tuple[str, str]] = []
        self.start()

    def start(self) -> None:
        self.thresholds = Thresholds(
            thresholds=[
                Threshold(room(Room(bytes=10 * GB), lambda: (self.disk, 100 * GB), where="on the disk of /s")),
                Threshold(room(Room(share=0.05), lambda: (self.memory, 100 * GB), where="of the memory"), looks=2),
                Threshold(lambda _: thresholds.status(self)),  # type: ignore[arg-type]
            ],
            orders=self.orders,
            wishes=self.wishes,
        )

    def look(self, *, times: int = 1) -> None:
        for _ in range(times):
            assert self.thresholds.step() == LOOK_SECONDS
            self.now += LOOK_SECONDS
            while (wish := self.wishes.next()) is not None:
                assert wish["by"] == "automatic"
                self.told.append((wish["requested"], wish["comment"]))
                self.operator(wish["requested"], by="automatic", comment=wish["comment"], wish_taken=wish["id"])

    def operator(self, requested: str, *, by: str = "operator", **more: Any) -> None:
        self.orders.apply({"requested": requested, "requested_by": by, **more})

    @property
    def rests(self) -> bool:
        return self.orders.resting


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    clock: list[Machine] = []
    monkeypatch.setattr(thresholds.time, "monotonic", lambda: clock[0].now if clock else 1000.0)
    clock.append(Machine(tmp_path))
    return clock[0]


CALM_LOOKS = int(CALM_SECONDS / LOOK_SECONDS) + 1


def full(machine: Machine) -> None:
    machine.disk = 9 * GB


def short(machine: Machine) -> None:
    machine.memory = 4 * GB


def ill(machine: Machine) -> None:
    machine.level, machine.text = 40, "the belt is torn"


TROUBLES = [
    (full, "only 9.0 GB of 100.0 GB are free on the disk of /s, less than 10.0 GB"),
    (short, "only 4.0 GB of 100.0 GB are free of the memory, less than 5.0 GB"),
    (ill, "its own check says: the belt is torn"),
]


@pytest.mark.parametrize(("happens", "reason"), TROUBLES)
def test_a_machine_in_trouble_rests_says_why_and_works_again_when_it_has_been_well_for_a_while(
    machine: Machine, happens: Callable[[Machine], None], reason: str
) -> None:
    machine.look(times=3)
    assert not machine.rests
    happens(machine)
    machine.look(times=3)
    assert machine.rests
    assert machine.told == [("maintenance", reason)]
    machine.disk = machine.memory = 100 * GB
    machine.level = 20
    machine.look(times=CALM_LOOKS - 1)
    assert machine.rests
    machine.look()
    assert not machine.rests
    assert machine.told[1:] == [("active", "what it rested for has passed")]
    happens(machine)
    machine.look(times=2)
    assert machine.rests


def test_memory_that_is_short_for_a_moment_is_no_trouble(machine: Machine) -> None:
    for _ in range(5):
        short(machine)
        machine.look()
        machine.memory = 100 * GB
        machine.look()
    assert machine.told == []


def test_at_the_threshold_it_neither_rests_nor_works_in_turns(machine: Machine) -> None:
    for _ in range(4 * CALM_LOOKS):
        machine.disk = 11 * GB if machine.disk < 10 * GB else 9 * GB
        machine.look()
    machine.disk = 11 * GB  # enough to work, not enough to begin again
    machine.look(times=2 * CALM_LOOKS)
    assert [requested for requested, _ in machine.told] == ["maintenance"]
    machine.disk = 12 * GB
    machine.look(times=CALM_LOOKS)
    assert not machine.rests


def test_a_disk_that_can_never_have_the_margin_can_still_be_free_enough() -> None:
    look = room(Room(share=0.9), lambda: (96, 100), where="x")
    assert (look(False), look(True)) == ("", "")


def test_a_disk_of_which_nothing_is_known_changes_nothing() -> None:
    def away() -> tuple[int, int]:
        raise OSError

    assert room(Room(bytes=1), away, where="x")(False) is None


def test_a_function_that_says_nothing_any_more_does_not_end_what_it_began(machine: Machine) -> None:
    ill(machine)
    machine.look()
    machine.level = None
    machine.look(times=2 * CALM_LOOKS)
    assert machine.rests


def test_a_further_reason_is_told_as_well(machine: Machine) -> None:
    full(machine)
    machine.look()
    ill(machine)
    machine.look()
    assert [comment for _, comment in machine.told] == [TROUBLES[0][1], f"{TROUBLES[0][1]}; {TROUBLES[2][1]}"]


def test_maintenance_that_somebody_asked_for_is_neither_explained_nor_ended(machine: Machine) -> None:
    machine.operator("maintenance", comment="new lens")
    full(machine)
    machine.look(times=CALM_LOOKS)
    machine.disk = 100 * GB
    machine.look(times=2 * CALM_LOOKS)
    assert machine.told == []
    assert machine.orders.comment == "new lens"


def test_the_end_of_maintenance_that_somebody_asked_for_shows_what_it_hid(machine: Machine) -> None:
    machine.operator("maintenance", comment="new lens")
    full(machine)
    machine.look(times=3)
    machine.operator("active")
    machine.look()
    assert machine.rests


def test_an_operator_who_ends_it_has_the_last_word_until_the_trouble_comes_again(machine: Machine) -> None:
    full(machine)
    machine.look()
    machine.operator("active")
    machine.look(times=CALM_LOOKS)
    assert not machine.rests
    machine.disk = 100 * GB
    machine.look(times=CALM_LOOKS)
    full(machine)
    machine.look()
    assert machine.rests


def test_a_restarted_agent_goes_on_where_the_last_one_was(machine: Machine) -> None:
    full(machine)
    machine.look()
    machine.start()
    machine.look(times=2 * CALM_LOOKS)
    assert machine.rests
    machine.disk = 11 * GB  # the margin counts for it too
    machine.start()
    machine.look(times=2 * CALM_LOOKS)
    assert machine.rests
    machine.disk = 100 * GB
    machine.start()
    machine.look(times=CALM_LOOKS + 1)
    assert not machine.rests


def test_a_threshold_that_is_no_longer_asked_for_ends_what_it_began(machine: Machine) -> None:
    full(machine)
    machine.look()
    machine.thresholds = Thresholds(thresholds=[], orders=machine.orders, wishes=machine.wishes)
    machine.look(times=CALM_LOOKS)
    machine.thresholds.step()
    assert not machine.rests
    assert machine.thresholds.step() == CALM_SECONDS


def test_only_what_is_asked_for_is_looked_at(tmp_path: Path) -> None:
    extended = ExtendedSysinfo("json:loads")
    token = tmp_path / "token"
    token.write_text(f"ec_0123456789ab_{'3f' * 32}")
    token.chmod(0o600)

    def because(**settings: str) -> str:
        flags = {"url": "http://localhost", "token_file": str(token), "state_dir": str(tmp_path), **settings}
        wishes = Wishes(tmp_path / "nowhere")
        orders = Orders(concurrency=1, wishes=wishes)
        wishes.on_change = orders.wished
        looking = thresholds.make_thresholds(
            config.load(flags=flags, environ={}), extended=extended, orders=orders, wishes=wishes
        )
        looking.step()
        looking.step()
        return orders.comment

    assert because() == ""
    assert "less than 1000000.0 TB" in because(min_free_disk="1000000TB")
    assert "of the memory" in because(min_free_memory="100%")
    assert because(extended_sysinfo="json:loads") == ""
    extended.figures = lambda: {"status": 50}  # type: ignore[method-assign]
    assert because(extended_sysinfo="json:loads") == "its own check says: status 50"
