from __future__ import annotations

from airflow_bridge.outage import Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_from_one_to_thirty_seconds() -> None:
    clock = Clock()
    outage = Outage(clock=clock)
    pauses = []
    for _ in range(8):
        outage.failed()
        start = clock.now
        while not outage.may_try():
            clock.now += 0.5
        pauses.append(clock.now - start)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_an_outage_is_said_at_once_and_then_once_a_minute() -> None:
    clock = Clock()
    outage = Outage(clock=clock)
    said = []
    for second in range(121):
        clock.now = 100.0 + second
        if outage.failed():
            said.append(second)
    assert said == [0, 60, 120]


def test_a_success_ends_the_outage_once() -> None:
    outage = Outage(clock=Clock())
    assert not outage.over()
    outage.failed()
    assert outage.lasts
    assert not outage.may_try()
    assert outage.over()
    assert outage.may_try()
    assert not outage.over()
