"""What the control plane and the people at the machine want from this agent; pure state, nothing is sent here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Orders:
    """The newest orders. Every thread reads them; `on_change` tells the loops."""

    def __init__(self, *, concurrency: int) -> None:
        self.requested = "active"
        self.comment = ""
        self.revision = 0
        self.concurrency = concurrency
        #: Set by a signal or a shutdown order: take no more, end when the last job has.
        self.draining = False
        #: Set by a second signal: the jobs are being stopped.
        self.terminating = False
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._wanted_at: float | None = None

    def apply(self, answer: dict[str, Any]) -> None:
        """Take the orders out of an answer to register or heartbeat."""
        with self._lock:
            self.requested = str(answer.get("requested", self.requested))
            self.comment = str(answer.get("comment") or "")
            self.revision = int(answer.get("revision", self.revision))
            self.concurrency = max(0, int(answer.get("concurrency") or self.concurrency))
            self._wanted_at = None
            if self.requested == "shutdown":
                self.draining = True
        self.on_change()

    @property
    def resting(self) -> bool:
        """Whether no work may be taken, whatever is free."""
        return self.draining or self.requested != "active"

    def reported(self, *, jobs: int, ready: bool) -> str:
        """The state that this agent reports of itself."""
        if self.draining:
            return "terminating"
        if self.requested == "maintenance":
            return "maintenance_pending" if jobs else "maintenance"
        if jobs:
            return "running"
        return "idle" if ready else "starting"

    def want_heartbeat(self) -> None:
        """The control plane has news: a heartbeat is due at once."""
        with self._lock:
            if self._wanted_at is None:
                self._wanted_at = time.monotonic()
        self.on_change()

    def heartbeat_wanted(self, *, within_seconds: float = float("inf")) -> bool:
        """Whether a wanted heartbeat is still to come, and was asked for within that time."""
        with self._lock:
            return self._wanted_at is not None and time.monotonic() - self._wanted_at < within_seconds
