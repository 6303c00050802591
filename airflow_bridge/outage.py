"""When to try again after the database failed, and when to say so; pure but for the clock it is given."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
SAY_EVERY = 60.0


class _Pause:
    """Failures in a row: pauses that double from 1 to 30 s, and a complaint once a minute."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._next_try = float("-inf")
        self._next_word = float("-inf")

    def is_over(self, now: float) -> bool:
        return now >= self._next_try

    def failed(self, now: float) -> bool:
        self.seconds = min(self.seconds * 2, LONGEST_PAUSE) if self.seconds else FIRST_PAUSE
        self._next_try = now + self.seconds
        if now < self._next_word:
            return False
        self._next_word = now + SAY_EVERY
        return True


class Outage:
    """One pause for all steps while there is no connection, and one for each that fails for a reason of its own.

    So what fails for hours, such as inserting while the disk is full, keeps nothing else from being done.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._everything = _Pause()
        self._steps: defaultdict[Hashable, _Pause] = defaultdict(_Pause)

    @property
    def lasts(self) -> bool:
        """No connection could be had when one was last asked for."""
        return self._everything.seconds > 0

    def may_try(self, step: Hashable) -> bool:
        """False while pausing, so that a dead database costs the caller's loop nothing."""
        now = self._clock()
        return self._everything.is_over(now) and (step not in self._steps or self._steps[step].is_over(now))

    def failed(self, step: Hashable, *, alone: bool) -> bool:
        """Note a failure, which is this step's `alone` or everybody's; True when it is time to say so."""
        return (self._steps[step] if alone else self._everything).failed(self._clock())

    def over(self, step: Hashable) -> bool:
        """Note that the database has done this step; True when that ends an outage."""
        ended = self.lasts or step in self._steps
        self._everything = _Pause()
        self._steps.pop(step, None)
        return ended

    def forget(self, step: Hashable) -> None:
        """Note that this step is not to be done any more."""
        self._steps.pop(step, None)
