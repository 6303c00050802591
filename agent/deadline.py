"""Sessions whose read timeout counts for the whole answer: what comes drop by drop must not hold up a loop for hours.

Without this, requests waits that long for each single byte. Nothing else about a connection is decided here.
"""

from __future__ import annotations

import io
import socket
import time
from http.client import HTTPResponse
from typing import Any

import requests


class UntilDeadline(io.RawIOBase):
    """The bytes of one answer, until the time has passed that its socket has for a single read."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._socket = sock
        self._seconds = sock.gettimeout()
        self._deadline = None if self._seconds is None else time.monotonic() + self._seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the answer did not end in time")
            self._socket.settimeout(left)
        try:
            count: int | None = self._raw.readinto(buffer)
        finally:
            self._socket.settimeout(self._seconds)  # the next request of this connection has its own time
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class PromptResponse(HTTPResponse):
    """An answer of which the header counts too."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(UntilDeadline(self.fp.detach(), sock))


class PromptAdapter(requests.adapters.HTTPAdapter):
    """Has every connection, a proxy's too, make its answers so."""

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **options)
        if pool.ConnectionCls.response_class is not PromptResponse:
            pool.ConnectionCls = type("Prompt", (pool.ConnectionCls,), {"response_class": PromptResponse})
        return pool
