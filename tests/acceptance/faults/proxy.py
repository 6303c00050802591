"""A gateway between two programs that breaks what its rules say, and counts it; it never invents a success."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.acceptance.faults.pace import dice

#: Headers that speak of one connection, not of the request.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})
UPSTREAM_SECONDS = 120.0
#: What gateways answer by themselves: a page for people, not the JSON of the server behind them.
PAGE = b"<html><head><title>gateway</title></head><body><h1>the gateway is unhappy</h1></body></html>"


class Fault(Enum):
    LOSE_REQUEST = "request lost"  #: the connection breaks before the server hears anything
    LOSE_ANSWER = "answer lost"  #: the server has done it, and nobody hears of that
    CUT = "answer cut in mid-body"
    TRICKLE = "answer trickles"  #: in small pieces, over `seconds`
    DELAY = "request delayed"  #: by up to `seconds`
    DELAY_ANSWER = "answer delayed"
    DUPLICATE = "request sent twice"  #: the second answer is the one that is given
    REFUSE = "answered by the gateway"  #: with `status`, `headers` and a page


@dataclass
class Rule:
    """Which requests a fault hits: of those that fit `path`, every n-th, or a share by dice."""

    fault: Fault
    #: Searched in "METHOD /path".
    path: str = ""
    every: int = 1
    share: float = 1.0
    #: After so many injections the rule rests.
    most: int | None = None
    seconds: float = 0.0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    injected: int = 0

    @property
    def name(self) -> str:
        return f"{self.status}" if self.fault is Fault.REFUSE else self.fault.value


class FaultProxy:
    """Start it before `target` or after; `url` leads through it. Every method may be called while requests run."""

    def __init__(self, *, target: str, name: str = "proxy") -> None:
        self.target = target.rstrip("/")
        #: Faults by name, as often as they were injected.
        self.injected: Counter[str] = Counter()
        #: A larger body is answered 413, as nginx does it.
        self.body_limit: int | None = None
        #: Called with "METHOD /path" when a request has arrived, and when its answer has, before it is passed on.
        self.on_request: Callable[[str], None] = lambda request: None
        self.on_answer: Callable[[str], None] = lambda request: None
        self._rules: list[Rule] = []
        self._dice = dice(name)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._server: ThreadingHTTPServer | None = self._listen(0)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def add(self, fault: Fault, path: str = "", **options: object) -> Rule:
        """Put a rule in force. The first rule that hits a request decides."""
        rule = Rule(fault, path, **options)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Let everything through again; what was injected stays counted."""
        with self._lock:
            self._rules.clear()
        self.body_limit = None
        self.thaw()
        self.reopen()

    def refuse_connections(self) -> None:
        """As a server that is down: open connections break, new ones are refused."""
        if self._server is None:
            return
        self._count("connection refused")
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        self._break_connections()

    def reopen(self) -> None:
        """Take connections again, at the same port."""
        if self._server is None:
            self._server = self._listen(self.port)

    def freeze(self) -> None:
        """As a line that swallows everything: whoever asks waits in vain."""
        self._count("line dead")
        self._flowing.clear()

    def thaw(self) -> None:
        """End that. What was swallowed stays lost."""
        if not self._flowing.is_set():
            self._break_connections()
            self._flowing.set()

    def close(self) -> None:
        self._flowing.set()
        self.refuse_connections()

    @property
    def faults(self) -> int:
        return sum(self.injected.values())

    # --- one request

    def decide(self, request: str) -> Rule | None:
        """The rule that hits this request."""
        with self._lock:
            for rule in self._rules:
                if not re.search(rule.path, request) or (rule.most is not None and rule.injected >= rule.most):
                    continue
                rule.seen += 1
                if rule.seen % rule.every == 0 and self._dice.random() < rule.share:
                    rule.injected += 1
                    self.injected[rule.name] += 1
                    return rule
        return None

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
        """Send it to the target. Raises OSError or HTTPException when that fails."""
        parts = urlsplit(self.target)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=UPSTREAM_SECONDS)
        try:
            connection.request(method, parts.path + path, body=body or None, headers=dict(headers))
            response = connection.getresponse()
            return Answer(response.status, list(response.getheaders()), response.read())
        finally:
            connection.close()

    def swallowed(self) -> bool:
        """Wait while the line is dead; True when it was."""
        if self._flowing.is_set():
            return False
        self._flowing.wait(UPSTREAM_SECONDS * 20)
        return True

    def pause(self, rule: Rule) -> None:
        with self._lock:
            seconds = self._dice.uniform(0, rule.seconds)
        time.sleep(seconds)

    def _count(self, name: str) -> None:
        with self._lock:
            self.injected[name] += 1

    def _break_connections(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _listen(self, port: int) -> ThreadingHTTPServer:
        proxy = self

        class Gate(Handler):
            gateway = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        server = Server(("127.0.0.1", port), Gate)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class Broken(Exception):
    """The client's connection ends here, without another word."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: FaultProxy

    def setup(self) -> None:
        super().setup()
        with self.gateway._lock:
            self.gateway._open.add(self.connection)

    def finish(self) -> None:
        with self.gateway._lock:
            self.gateway._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError, Broken):
            super().handle()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.gateway.swallowed():
            raise Broken
        self.gateway.on_request(f"{self.command} {self.path}")
        limit = self.gateway.body_limit
        rule = self.gateway.decide(f"{self.command} {self.path}")
        if limit is not None and len(body) > limit:
            self.gateway._count("413")
            self._page(413, {})
        elif rule is None:
            self._give(self._forward(body))
        else:
            self._break(rule, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = pass_on

    def _break(self, rule: Rule, body: bytes) -> None:
        match rule.fault:
            case Fault.REFUSE:
                self._page(rule.status, rule.headers)
            case Fault.LOSE_REQUEST:
                raise Broken
            case Fault.LOSE_ANSWER:
                self._forward(body)
                raise Broken
            case Fault.DUPLICATE:
                self._forward(body)
                self._give(self._forward(body))
            case Fault.DELAY:
                self.gateway.pause(rule)
                self._give(self._forward(body))
            case Fault.DELAY_ANSWER:
                answer = self._forward(body)
                self.gateway.pause(rule)
                self._give(answer)
            case Fault.CUT:
                answer = self._forward(body)
                self._head(answer)
                self.wfile.write(answer.body[: len(answer.body) // 2])
                raise Broken
            case Fault.TRICKLE:
                answer = self._forward(body)
                self._head(answer)
                pieces = [answer.body[at : at + 16] for at in range(0, len(answer.body), 16)][:200]
                for piece in pieces:
                    self.wfile.write(piece)
                    time.sleep(rule.seconds / len(pieces))
                self.wfile.write(answer.body[200 * 16 :])

    def _forward(self, body: bytes) -> Answer:
        headers = [(name, value) for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP]
        try:
            answer = self.gateway.forward(self.command, self.path, headers, body)
        except ConnectionRefusedError:
            return Answer(502, [("Content-Type", "text/html")], PAGE)
        except (OSError, http.client.HTTPException):
            raise Broken from None  # the server behind died over it
        if self.gateway.swallowed():
            raise Broken
        self.gateway.on_answer(f"{self.command} {self.path}")
        return answer

    def _page(self, status: int, headers: dict[str, str]) -> None:
        self._give(Answer(status, [("Content-Type", "text/html"), *headers.items()], PAGE))

    def _give(self, answer: Answer) -> None:
        self._head(answer)
        self.wfile.write(answer.body)

    def _head(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
