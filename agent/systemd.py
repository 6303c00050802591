"""What is said to systemd: that the agent is up, what it does, that it lives, that it goes; nothing is ended here.

The watchdog asks one thing: do the agent's own loops still come round? A control plane that is away for hours is no
reason to kill an agent, and a restart would not bring it back: requests have their own time limits, loops go on trying,
and so the loops come round. What is fed upon is that every loop is alive and none has been inside one step for longer
than any step may take, and that the main thread has looked up as well. What is left is what a restart mends: a
deadlock, or a thread that died or hangs in a call that never returns. Tasks outlive such a restart.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent.attention import Attention
from agent.client import Client
from agent.loop import Loop

log = logging.getLogger("agent.systemd")

#: No step takes so long, unless it never ends: requests wait 75 s at most, and steps that make many give up early.
STUCK_SECONDS = 900.0
#: How often the status is looked at where no watchdog wants to be fed.
STATUS_SECONDS = 30.0


class Notifier:
    """Speaks the protocol of `sd_notify(3)`. Where nobody listens, everything here does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = address_of(environ.get("NOTIFY_SOCKET", ""))
        self._status = ""
        self._ready = False
        self.watchdog_seconds = watchdog_seconds(environ) if self._address else None

    def ready(self, status: str) -> None:
        """Say once that the agent is up: it works, or waits for a control plane that it knows."""
        if not self._ready:
            self._ready = True
            self._send("READY=1")
        self.status(status)

    def status(self, text: str) -> None:
        """What `systemctl status` shows; told when it changes."""
        text = " ".join(text.split())
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """Say that the process ends within seconds: from here on systemd counts the time of a stop."""
        self._send("STOPPING=1")
        self.status(status)

    @property
    def listening(self) -> bool:
        """Whether somebody does."""
        return self._address is not None

    def _send(self, line: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
                connection.settimeout(1.0)
                connection.sendto(line.encode(), self._address)
        except OSError as error:  # a manager that restarts; the next word may get through
            log.debug("systemd does not listen: %s", error)


def address_of(name: str) -> bytes | None:
    """A path, or an abstract name that begins with '@'; None for what is neither."""
    if not hasattr(socket, "AF_UNIX") or name[:1] not in ("/", "@"):
        return None
    address = os.fsencode(name)
    return b"\0" + address[1:] if name.startswith("@") else address


def watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Within which time the watchdog wants to be fed; None when it does not ask this process."""
    with contextlib.suppress(ValueError):
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            return int(environ["WATCHDOG_USEC"]) / 1e6 if environ.get("WATCHDOG_USEC") else None
    return None


def in_words(said: dict[str, Any]) -> str:
    """What `status` knows, as one line of `systemctl status`."""
    jobs = len(said["jobs"])
    name = f"{said['name']}: " if said["name"] else ""
    trouble = f"; {said['not_working']}" if said["not_working"] else ""
    return f"{name}{said['state']}, holds {jobs} job{'' if jobs == 1 else 's'}{trouble}"


class Watchdog:
    """Feeds systemd's watchdog while the agent's own loops come round, and tells it what the agent does."""

    def __init__(
        self,
        *,
        notifier: Notifier,
        loops: Callable[[], Iterable[Loop]],
        attention: Attention,
        client: Client,
        grace_seconds: float,
        doing: Callable[[], str],
    ) -> None:
        """`grace_seconds` is how much longer the main thread may be waiting for jobs that it has stopped."""
        self._notifier = notifier
        self._loops = loops
        self._attention = attention
        self._client = client
        self._grace_seconds = grace_seconds
        self._doing = doing
        self._said = ""

    def step(self) -> float:
        """Feed it, or say why not. Returns when it is due again: three times as often as need be."""
        stuck = self.stuck()
        if stuck and stuck != self._said:
            log.critical("%s: systemd's watchdog is fed no more, and will restart the agent; its tasks go on", stuck)
        self._said = stuck
        if stuck:
            self._notifier.status(stuck)
        else:
            self._notifier.alive()
            self._notifier.status(self._doing())
        asked = self._notifier.watchdog_seconds
        return STATUS_SECONDS if asked is None else asked / 3

    def stuck(self) -> str:
        """What does not come round any more; empty when all does."""
        now = time.monotonic()
        for loop in self._loops():
            if loop.ended:
                continue
            if not loop.is_alive():
                return f"the loop {loop.name} has died"
            # A step may have a hundred requests to make; each of them ends.
            since = None if loop.began_at is None else max(loop.began_at, self._client.tried_at.get(loop.ident, 0.0))
            if since is not None and now - since > STUCK_SECONDS:
                return f"the loop {loop.name} has been stuck for {now - since:.0f} s"
        since = self._attention.waited_at
        if now - since > STUCK_SECONDS + self._grace_seconds:
            return f"the main thread has been stuck for {now - since:.0f} s"
        return ""
