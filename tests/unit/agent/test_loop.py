from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.client import ApiError
from agent.errors import AgentError, SessionReplaced
from agent.loop import Loop
from agent.retry import Backoff


class Pauses(Backoff):
    """Notes how many failures in a row each pause is for, and asks for none."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def next_seconds(self, *, retry_after: float | None = None) -> float:
        self.failures += 1
        self.asked.append(self.failures)
        return 0.001


def failures_in_a_row(*, tries: int, answered_at: Callable[[], float]) -> list[int]:
    """What a loop of which every step fails counts."""
    done = threading.Event()
    pauses = Pauses()

    def step() -> float:
        if len(pauses.asked) >= tries:
            done.set()
        raise ApiError("no answer")

    loop = Loop(name="test", step=step, on_fatal=lambda error: None, answered_at=answered_at)
    loop._backoff = pauses
    loop.start()
    assert done.wait(10)
    loop.end()
    loop.join(10)
    return pauses.asked[:tries]


def test_pauses_grow_while_nobody_answers() -> None:
    assert failures_in_a_row(tries=4, answered_at=lambda: 0.0) == [1, 2, 3, 4]


def test_pauses_do_not_grow_while_others_are_answered() -> None:
    assert failures_in_a_row(tries=4, answered_at=time.monotonic) == [1, 1, 1, 1]


def test_only_what_must_end_the_agent_is_handed_on() -> None:
    handed: list[AgentError] = []
    errors: list[Exception] = [ValueError("a bug"), ApiError("no answer"), SessionReplaced("a newer one")]
    done = threading.Event()

    def step() -> float:
        if errors:
            raise errors.pop(0)
        done.set()
        return 60.0

    loop = Loop(name="test", step=step, on_fatal=handed.append)
    loop._backoff = Pauses()
    loop.start()
    assert done.wait(10)
    loop.end()
    loop.join(10)
    assert [type(error) for error in handed] == [SessionReplaced]
