"""When this machine rests by itself and when it works again: by its disk, its memory, and its own function's status.

It asks for maintenance as anybody at the machine would, so that the reason is seen centrally and one place decides: it
never overrules what somebody asked for, and does not ask again for the same reason once an operator has ended it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from agent.config import Config
from agent.extended_sysinfo import ExtendedSysinfo
from agent.orders import Orders
from agent.values import Room
from agent.wishes import ACTIVE, AUTOMATIC, MAINTENANCE, Wishes

log = logging.getLogger("agent.thresholds")

LOOK_SECONDS = 5.0
#: How often in a row memory must be short: it comes and goes.
MEMORY_LOOKS = 2
#: Work goes on when all has been well for so long, with this much more room than it takes to rest.
CALM_SECONDS = 60.0
MARGIN = 1.2
#: The status, as a level of Python's logging, from which on the machine rests.
ERROR_LEVEL = 40

Space = tuple[int, int]
#: Given whether there has to be the margin as well: the trouble, "" when there is none, None when nobody knows.
Look = Callable[[bool], str | None]


class Threshold:
    """One reason to rest. It holds from so many bad looks in a row until all has been well for `CALM_SECONDS`."""

    def __init__(self, look: Look, *, looks: int = 1) -> None:
        self._look = look
        self._looks = looks
        self._bad = 0
        self._well_since: float | None = None
        #: The trouble as it began; empty when there is none.
        self.because = ""

    def step(self, *, now: float, resting: bool) -> None:
        said = self._look(resting or bool(self.because))
        if said is None:
            return
        if said:
            self._bad, self._well_since = self._bad + 1, None
            if self._bad >= self._looks:
                self.because = self.because or said
            return
        self._bad = 0
        self._well_since = now if self._well_since is None else self._well_since
        if now - self._well_since >= CALM_SECONDS:
            self.because = ""


class Thresholds:
    """Looks again and again, and wishes for maintenance or its end."""

    def __init__(self, *, thresholds: list[Threshold], orders: Orders, wishes: Wishes) -> None:
        self._thresholds = thresholds
        self._orders = orders
        self._wishes = wishes
        self._began_at = time.monotonic()
        self._wished = ""

    def step(self) -> float:
        """Look once. Returns when to look again."""
        now, orders = time.monotonic(), self._orders
        resting = orders.requested == MAINTENANCE and orders.requested_by == AUTOMATIC
        for threshold in self._thresholds:
            threshold.step(now=now, resting=resting)
        because = "; ".join(threshold.because for threshold in self._thresholds if threshold.because)
        if because and because != self._wished and (resting or orders.requested == ACTIVE):
            log.warning("this machine rests: %s", because)
            self._wishes.wish(MAINTENANCE, because, by=AUTOMATIC)
            self._wished = because
        # An earlier agent process may have begun it; what it saw may not have been seen again yet.
        if not because and now - self._began_at >= CALM_SECONDS:
            if resting:
                log.info("this machine works again: what it rested for has passed")
                self._wishes.wish(ACTIVE, "what it rested for has passed", by=AUTOMATIC)
            self._wished = ""
        return LOOK_SECONDS if self._thresholds or resting else CALM_SECONDS


def make_thresholds(config: Config, *, extended: ExtendedSysinfo, orders: Orders, wishes: Wishes) -> Thresholds:
    """Look at what the settings ask for."""
    disk_of = f"on the disk of {config.state_dir}"
    found = []
    if config.min_free_disk is not None:
        found.append(Threshold(room(config.min_free_disk, lambda: disk(config.state_dir), where=disk_of)))
    if config.min_free_memory is not None:
        found.append(Threshold(room(config.min_free_memory, memory, where="of the memory"), looks=MEMORY_LOOKS))
    if config.extended_sysinfo is not None:
        found.append(Threshold(lambda _: status(extended)))
    return Thresholds(thresholds=found, orders=orders, wishes=wishes)


def room(least: Room, space: Callable[[], Space], *, where: str) -> Look:
    def look(with_margin: bool) -> str | None:
        try:
            free, total = space()
        except OSError:
            return None
        needed = least.needed(total)
        # Of a disk that can never have so much more, half of what it could have does.
        enough = min(needed * MARGIN, (needed + total) / 2) if with_margin else needed
        if free >= enough:
            return ""
        return f"only {amount(free)} of {amount(total)} are free {where}, less than {amount(needed)}"

    return look


def status(extended: ExtendedSysinfo) -> str | None:
    level = extended.level
    if level is None:
        return None
    return f"its own check says: {extended.text or f'status {level}'}" if level >= ERROR_LEVEL else ""


def disk(folder: Path) -> Space:
    usage = psutil.disk_usage(str(folder))
    return usage.free, usage.total


def memory() -> Space:
    usage = psutil.virtual_memory()
    return usage.available, usage.total


def amount(count: float) -> str:
    """`1.2 GB`, in the same units as the settings have."""
    for unit, size in (("TB", 1 << 40), ("GB", 1 << 30)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / (1 << 20):.0f} MB"
