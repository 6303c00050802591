from __future__ import annotations

import pytest

from airflow_bridge.outage import Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("alone", [True, False])
def test_pauses_double_from_one_to_thirty_seconds(alone: bool) -> None:
    clock = Clock()
    outage = Outage(clock=clock)
    pauses = []
    for _ in range(8):
        outage.failed("store", alone=alone)
        start = clock.now
        while not outage.may_try("store"):
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize("alone", [True, False])
def test_an_outage_is_said_at_once_and_then_once_a_minute(alone: bool) -> None:
    clock = Clock()
    outage = Outage(clock=clock)
    said = []
    for second in range(121):
        clock.now = 100.0 + second
        if outage.failed("store", alone=alone):
            said.append(second)
    assert said == [0, 60, 120]


def test_a_step_that_fails_alone_pauses_alone() -> None:
    outage = Outage(clock=Clock())
    outage.failed("store", alone=True)
    assert not outage.may_try("store")
    assert outage.may_try("tell")
    assert not outage.lasts
    assert not outage.over("tell")
    assert not outage.may_try("store")
    assert outage.over("store")
    assert outage.may_try("store")


def test_without_a_connection_everything_pauses_and_one_success_ends_that() -> None:
    outage = Outage(clock=Clock())
    outage.failed("store", alone=False)
    assert outage.lasts
    assert not outage.may_try("tell")
    assert outage.over("tell")
    assert not outage.lasts
    assert outage.may_try("store")
    assert not outage.over("store")
