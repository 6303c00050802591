"""Whether this machine's clock agrees with the control plane's; what happens by time never depends on it."""

from __future__ import annotations

import logging
import threading

from agent.retry import moment_of

log = logging.getLogger("agent.clock")

WRONG_SECONDS = 60.0
#: An answer that took longer may have been dated at any moment of its way.
QUICK_SECONDS = 5.0
#: A deviation that changes by less is told as it was.
STEP_SECONDS = 10.0


class Clock:
    """Compares the dates of answers with the time of this machine, and says once when it is wrong."""

    def __init__(self) -> None:
        #: How far this machine is ahead (behind: less than 0); None while that is less than a minute.
        self.off_seconds: int | None = None
        self._lock = threading.Lock()

    def heard(self, date: str | None, *, asked_at: float, answered_at: float) -> None:
        """Judge by the date of one answer, and by this machine's times before and after."""
        moment = moment_of(date)
        if moment is None or not 0 <= answered_at - asked_at <= QUICK_SECONDS:
            return
        dated_at = moment.timestamp() + 0.5  # dates are whole seconds
        off = (asked_at + answered_at) / 2 - dated_at
        with self._lock:
            before = self.off_seconds
            if abs(off) < WRONG_SECONDS:
                self.off_seconds = None
            elif before is None or abs(off - before) >= STEP_SECONDS:
                self.off_seconds = round(off)
            now = self.off_seconds
        if now is not None and before is None:
            log.warning(
                "this machine's clock is %s the control plane's: its logs carry wrong times, and certificates may seem "
                "to be out of date; set it",
                f"{in_words(now)} ahead of" if now > 0 else f"{in_words(-now)} behind",
            )
        elif now is None and before is not None:
            log.info("this machine's clock agrees with the control plane's again")


def in_words(seconds: int) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} seconds"
