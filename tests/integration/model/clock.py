"""The time and the ids of one example: both the same whenever it is replayed."""

from __future__ import annotations

import time
from itertools import count
from uuid import UUID


class Clock:
    """`now` moves by `pass_seconds` alone; `monotonic` also with real time, as the database's does."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.now


class Ids:
    """Ids in the order in which they are made."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def new(self) -> UUID:
        return UUID(int=next(self._numbers) << 64)
