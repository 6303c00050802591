"""Whose answers are believed, and for how long one is waited for; real sockets, answers by the byte."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import requests

from agent.client import NOT_OURS, ApiError, Client
from agent.deadline import PromptResponse
from agent.transport import Transport
from tests.integration.agent.certificates import Authority, serving

PAGE = b"<html><h1>404 page not found</h1></html>"


def http(status: int, body: object, *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


class Server:
    """Answers every request with the same bytes; those from `drops_from` on come one by one."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.answer = b""
        self.drops_from: int | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(line,), daemon=True).start()

    def _answer(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), self._tls.wrap_socket(line, server_side=True) if self._tls else line as line:
            while line.recv(65536):
                line.sendall(self.answer[: self.drops_from])
                drops = b"" if self.drops_from is None else self.answer[self.drops_from :]
                for drop in drops:
                    line.sendall(bytes([drop]))
                    if self._ended.wait(0.1):
                        return

    def close(self) -> None:
        self._ended.set()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(url=server.url, token="ec_a_b", session=uuid4())


CALLS: dict[str, Callable[[Client], object]] = {
    "health": lambda client: client.health(),
    "me": lambda client: client.me(),
    "enrol": lambda client: client.enrol({}, read_seconds=5),
    "register": lambda client: client.register({}),
    "heartbeat": lambda client: client.heartbeat({}, read_seconds=5),
    "claim": lambda client: client.claim(claim_id="x", free_slots=1, wait=0, revision=1),
    "confirm": lambda client: client.confirm([]),
    "report": lambda client: client.report("x", {}),
    "log": lambda client: client.append_log("x", 1, offset=0, data=b""),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "answer",
    [
        http(404, PAGE),
        http(403, {"message": "Forbidden"}),
        http(400, {"code": 400, "detail": "bad gateway of somebody"}),
        http(404, {"code": "", "detail": ""}),
        http(302, b"", "Location: http://login.invalid/"),
        http(200, PAGE),
        http(200, {}),
        http(200, {"status_": "ok"}),
        http(200, []),
    ],
)
def test_what_a_control_plane_does_not_say_is_an_outage(
    client: Client, server: Server, call: str, answer: bytes
) -> None:
    server.answer = answer
    with pytest.raises(ApiError) as caught:
        CALLS[call](client)
    assert caught.value.repeatable
    assert caught.value.code == NOT_OURS


@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_of_the_control_plane_is_final(client: Client, server: Server, call: str) -> None:
    server.answer = http(409, {"code": "stale_attempt", "detail": "No longer yours.", "size": 7})
    with pytest.raises(ApiError) as caught:
        CALLS[call](client)
    assert not caught.value.repeatable
    assert (caught.value.status, caught.value.code, caught.value.body["size"]) == (409, "stale_attempt", 7)


def test_an_answer_has_the_keys_that_are_needed_and_any_others(client: Client, server: Server) -> None:
    server.answer = http(200, {"state": "success", "more": 1})
    assert client.report("x", {}) == {"state": "success", "more": 1}


def test_a_moment_to_come_back_counts_from_the_answers_own_clock(client: Client, server: Server) -> None:
    server.answer = http(503, b"", "Date: Sun, 22 Nov 1998 12:00:00 GMT", "Retry-After: Sun, 22 Nov 1998 12:00:07 GMT")
    with pytest.raises(ApiError) as caught:
        client.report("x", {})
    assert caught.value.retry_after == 7.0


@pytest.mark.parametrize("drops_from", [0, 40], ids=["header", "body"])
def test_an_answer_that_comes_by_drops_has_one_deadline(server: Server, drops_from: int) -> None:
    """Each byte comes well within the read timeout; all of them would take half a minute."""
    server.answer, server.drops_from = http(200, b" " * 300), drops_from
    began = time.monotonic()
    with pytest.raises(requests.RequestException), Transport().session() as session:
        session.get(server.url, timeout=(5, 1.0))
    assert time.monotonic() - began < 10


def test_a_proxys_answer_that_comes_by_drops_has_one_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer, server.drops_from = http(200, b"", "Via: " + "x" * 300), 10
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "")
    began = time.monotonic()
    with pytest.raises(requests.RequestException), Transport().session() as session:
        session.get("https://edge.test", timeout=(1.0, 30))
    assert time.monotonic() - began < 10


def test_an_answer_over_tls_that_comes_by_drops_has_one_deadline(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = Server(serving(authority.issue("plane")))
    server.answer, server.drops_from = http(200, b" " * 300), 40
    began = time.monotonic()
    with Transport(ca_bundle=authority.file).session() as session, pytest.raises(requests.RequestException):
        session.get(server.url.replace("http:", "https:"), timeout=(5, 1.0))
    assert time.monotonic() - began < 10
    server.close()


def test_a_connection_goes_on_after_an_answer_in_time(server: Server) -> None:
    server.answer = http(200, b"x")
    with Transport().session() as session:
        assert [session.get(server.url, timeout=(5, 5)).content for _ in range(3)] == [b"x"] * 3


def test_what_is_left_of_an_answers_time_is_not_the_next_requests() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(30)
        answer = PromptResponse(ours)
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        answer.begin()
        assert ours.gettimeout() == 30
        answer.close()
