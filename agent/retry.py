"""Which failed requests are worth repeating, and when; pure, nothing is sent or slept here."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

#: 4xx that a gateway or a busy server means for now only.
PASSING_STATUSES = frozenset({408, 425, 429})
#: No Retry-After is obeyed beyond this: a wrong header must not park an agent, and one that is idle is known to live
#: by its claims.
RETRY_AFTER_LIMIT_SECONDS = 60.0


def is_repeatable(status: int | None) -> bool:
    """Whether the same request may succeed later. None means that there was no answer at all."""
    return status is None or status in PASSING_STATUSES or status >= 500


def retry_after_seconds(header: str | None, *, date: str | None = None) -> float | None:
    """What a Retry-After header asks for, as seconds or as a date; None when it says nothing that can be read.

    A moment counts from the answer's own `Date`: the clock of this machine may be wrong.
    """
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        moment = moment_of(header)
        if moment is None:
            return None
        seconds = (moment - (moment_of(date) or datetime.now(UTC))).total_seconds()
    if seconds != seconds:  # "nan"
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_LIMIT_SECONDS)


def moment_of(header: str | None) -> datetime | None:
    try:
        moment = parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


class Backoff:
    """Growing waits between tries.

    The wait is drawn from the upper half of the step: a fleet that lost its control plane at one instant comes back
    spread out, yet nobody comes back at once.
    """

    def __init__(
        self,
        *,
        first_seconds: float = 1.0,
        most_seconds: float = 30.0,
        obey_seconds: float = RETRY_AFTER_LIMIT_SECONDS,
        rng: random.Random | None = None,
    ):
        self.first_seconds = first_seconds
        self.most_seconds = most_seconds
        self.obey_seconds = obey_seconds  # the longest wait that the server may ask for
        self.failures = 0
        self._random = rng or random.Random()  # noqa: S311

    def next_seconds(self, *, retry_after: float | None = None) -> float:
        """How long to wait after one more failure; no less than the server asked for, as far as it is obeyed."""
        step = min(self.most_seconds, self.first_seconds * 2 ** min(self.failures, 16))
        self.failures += 1
        wait = step * self._random.uniform(0.5, 1.0)
        if retry_after is not None:
            wait = max(wait, min(retry_after, self.obey_seconds) * self._random.uniform(1.0, 1.1))
        return float(wait)

    def reset(self) -> None:
        self.failures = 0
