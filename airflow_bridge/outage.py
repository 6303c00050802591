"""When to try again after the database failed, and when to say so; pure but for the clock it is given."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
SAY_EVERY = 60.0


class Outage:
    """Failures in a row: pauses that double from 1 to 30 s, and a complaint once a minute."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = 0.0
        self._next_try = float("-inf")
        self._next_word = float("-inf")

    @property
    def lasts(self) -> bool:
        """The last attempt failed."""
        return self._pause > 0

    def may_try(self) -> bool:
        """False while pausing, so that a dead database costs the caller's loop nothing."""
        return self._clock() >= self._next_try

    def failed(self) -> bool:
        """Note a failure; True when it is time to say so."""
        now = self._clock()
        self._pause = min(self._pause * 2, LONGEST_PAUSE) if self._pause else FIRST_PAUSE
        self._next_try = now + self._pause
        if now < self._next_word:
            return False
        self._next_word = now + SAY_EVERY
        return True

    def over(self) -> bool:
        """Note a success; True when it ends an outage."""
        ended = self.lasts
        self._pause = 0.0
        self._next_try = self._next_word = float("-inf")
        return ended
