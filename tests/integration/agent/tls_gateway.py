"""A gateway of a test that speaks TLS on loopback and hands the bytes on to a port that does not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading


class TlsGateway:
    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._port = port
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hand_on, args=(connection,), daemon=True).start()

    def _hand_on(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.dup() as kept:
            try:
                outside = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                linger(kept)
                raise
            with outside, socket.create_connection(("127.0.0.1", self._port)) as inside:
                threading.Thread(target=pump, args=(inside, outside), daemon=True).start()
                pump(outside, inside)


def linger(connection: socket.socket) -> None:
    """Let the last word arrive: closing while there is something to read would reset the connection."""
    connection.settimeout(5)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass


def pump(source: socket.socket, target: socket.socket) -> None:
    """Carry bytes one way until their end."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
