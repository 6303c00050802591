"""The agent's pages for its own machine, on loopback only: /health, /status.json and /metrics. They change nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import urlsplit

from agent import metrics
from agent.errors import BadConfig

log = logging.getLogger("agent.pages")

LOOPBACK = "127.0.0.1"
#: By these names this machine may ask. A page from elsewhere in its browser, whose name leads here, has another.
HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: As many requests at once; further ones are turned away.
MOST_REQUESTS = 8
#: How long the next piece of a request may take to arrive, or of its answer to leave; and how long all of it may.
PIECE_SECONDS = 5.0
REQUEST_SECONDS = 15.0

Answer = tuple[int, str, bytes]


class Pages:
    """Serves from `start` until `close`."""

    def __init__(
        self,
        port: int,
        *,
        status: Callable[[], dict[str, Any]],
        unhealthy: Callable[[], str],
        own_figures: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._port = port
        self._status = status
        self._unhealthy = unhealthy
        self._own_figures = own_figures
        self._server: Server | None = None

    def start(self) -> None:
        """Listen. Raises BadConfig when the port cannot be had."""
        try:
            self._server = Server((LOOPBACK, self._port), self.answer)
        except OSError as error:
            raise BadConfig(
                f"http_port {self._port} cannot be used on {LOOPBACK} ({error.strerror or error}): another program may "
                "have it; choose another one, or 0 for no pages"
            ) from None
        threading.Thread(target=self._server.serve_forever, name="pages", daemon=True).start()
        log.info("pages are at http://%s:%d/ (health, status.json, metrics)", LOOPBACK, self.port)

    @property
    def port(self) -> int:
        return self._server.server_address[1] if self._server is not None else self._port

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def answer(self, path: str) -> Answer:
        """Status, content type and body of a page."""
        if path == "/health":
            reason = self._unhealthy()
            return as_json({"status": "unhealthy" if reason else "ok", "reason": reason}, status=503 if reason else 200)
        if path == "/status.json":
            return as_json(self._status())
        if path == "/metrics":
            text = metrics.render(self._status(), unhealthy=self._unhealthy()) + metrics.own(self._own_figures())
            return 200, metrics.CONTENT_TYPE, text.encode()
        return as_json({"detail": "there are /health, /status.json and /metrics"}, status=404)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = os.name == "posix"  # elsewhere it would share a port that is taken
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], answer: Callable[[str], Answer]) -> None:
        self.answer = answer
        self._room = threading.BoundedSemaphore(MOST_REQUESTS)
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without asking DNS what this machine is called

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.1)
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        late = threading.Timer(REQUEST_SECONDS, hang_up, [request])
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request for a page failed", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request per connection."""

    server: Server
    server_version, sys_version = "edge-agent", ""
    timeout: ClassVar[float] = PIECE_SECONDS

    def do_GET(self) -> None:
        if host_of(self.headers.get("Host", "")) not in HOSTS:
            self._send(*as_json({"detail": "ask for localhost"}, status=421))
            return
        try:
            answer = self.server.answer(urlsplit(self.path).path)
        except Exception as error:
            log.exception("%s cannot be answered", self.path)
            answer = as_json({"detail": type(error).__name__}, status=500)
        self._send(*answer)

    do_HEAD = do_GET

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError, socket.timeout):
                self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A page that is asked for every few seconds is no news."""


def hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is over already
        connection.shutdown(socket.SHUT_RDWR)


def host_of(header: str) -> str:
    """The host of a Host header, without its port, in small letters."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.partition(":")[0]


def as_json(body: Mapping[str, Any], *, status: int = 200) -> Answer:
    return status, "application/json", json.dumps(body).encode() + b"\n"
