"""How signals and threads reach the main thread: a pair of sockets, since a signal handler must not take a lock."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time


class Attention:
    """Wakes the main thread. Python itself writes to it when a signal arrives."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        #: When the main thread last waited here: it comes back here all the time.
        self.waited_at = time.monotonic()
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def call(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake already
            self._writer.send(b"!")

    def wait(self, seconds: float) -> None:
        """Until called, but no longer than that."""
        try:
            if select.select([self._reader], [], [], seconds)[0]:
                with contextlib.suppress(BlockingIOError):
                    while self._reader.recv(4096):
                        pass
        finally:
            self.waited_at = time.monotonic()
