"""At which pace the fault cases run: intervals at a tenth, or with FULL=1 the real ones; and the seed of their dice."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

FULL = os.environ.get("FULL") == "1"
#: The same seed throws the same dice; which request they hit also depends on who comes first.
SEED = int(os.environ.get("SEED") or "1")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Intervals in seconds, as the control plane's settings name them."""

    heartbeat: int
    silent: int
    patience: int
    release: int
    claim_wait: int
    housekeeping: int

    @property
    def environ(self) -> dict[str, str]:
        """The control plane's settings."""
        return {
            "EDGECONTROL_HEARTBEAT_SECONDS": str(self.heartbeat),
            "EDGECONTROL_SILENT_AFTER_SECONDS": str(self.silent),
            "EDGECONTROL_OUTAGE_PATIENCE_SECONDS": str(self.patience),
            "EDGECONTROL_RELEASE_AFTER_SECONDS": str(self.release),
            "EDGECONTROL_CLAIM_WAIT_SECONDS": str(self.claim_wait),
            "EDGECONTROL_HOUSEKEEPING_SECONDS": str(self.housekeeping),
        }


REAL = Pace(heartbeat=30, silent=100, patience=240, release=30, claim_wait=50, housekeeping=5)
TENTH = Pace(heartbeat=3, silent=10, patience=24, release=3, claim_wait=5, housekeeping=1)
PACE = REAL if FULL else TENTH


def seconds(real: float) -> float:
    """A time span of the real world, at this run's pace."""
    return real if FULL else real / 10


def times(fast: int, *, full: int) -> int:
    """How many, in a fast run and in a full one."""
    return full if FULL else fast


def dice(name: str) -> random.Random:
    """Dice of their own for each purpose, so that one more throw here changes nothing there."""
    return random.Random(f"{SEED}:{name}")  # noqa: S311
