"""A forward proxy of one process: tunnels, plain requests, names that it alone knows, a list of what was asked."""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class ForwardProxy:
    """Listens on loopback; `names` says where a host name leads, `refuses` is the status that it answers to all."""

    def __init__(self, *, names: dict[str, str] | None = None, password: str = "") -> None:
        self.names = names or {}
        self.password = password
        self.refuses: int | None = None
        self.asked: list[str] = []
        self._open: set[socket.socket] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _connect(self, host: str, port: int) -> socket.socket:
        return socket.create_connection((self.names.get(host, host), port), timeout=10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def refused(self) -> bool:
                proxy.asked.append(f"{self.command} {self.path}")
                wanted = "Basic " + base64.b64encode(proxy.password.encode()).decode()
                status = proxy.refuses
                if proxy.password and self.headers.get("Proxy-Authorization") != wanted:
                    status = 407
                if status is not None:
                    self.send_error(status)
                return status is not None

            def do_CONNECT(self) -> None:
                self.close_connection = True
                if self.refused():
                    return
                host, _, port = self.path.rpartition(":")
                try:
                    other = proxy._connect(host, int(port))
                except OSError:
                    self.send_error(502)
                    return
                proxy._open |= {self.connection, other}
                self.send_response(200)
                self.end_headers()
                with other, contextlib.suppress(OSError):
                    relay(self.connection, other)

            def relayed(self) -> None:
                """One plain request; the connection to the other side is not kept."""
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.refused():
                    return
                parts = urlsplit(self.path)
                path = f"{parts.path}?{parts.query}" if parts.query else parts.path
                line = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=60)
                try:
                    line.sock = proxy._connect(parts.hostname or "", parts.port or 80)
                    line.sock.settimeout(60)
                    line.request(self.command, path, body, dict(self.headers))
                    answer = line.getresponse()
                    content = answer.read()
                except OSError:
                    self.send_error(502)
                    return
                finally:
                    line.close()
                with contextlib.suppress(OSError):
                    self.send_response(answer.status)
                    for name in ("Content-Type", "Retry-After"):
                        if value := answer.headers.get(name):
                            self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = relayed

            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def relay(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side ends."""
    while True:
        for source in select.select([one, other], [], [])[0]:
            data = source.recv(65536)
            if not data:
                return
            (other if source is one else one).sendall(data)
