"""The local pages: what they say, to whom they answer, and what they cannot be made to do."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from agent import pages
from agent.errors import BadConfig
from agent.pages import MOST_REQUESTS, Pages
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane, Refusal
from tests.unit.agent.test_metrics import checked, parse, status

Ask = Callable[..., tuple[int, Any, str]]


class Served:
    def __init__(self) -> None:
        self.reason = ""
        self.status: Callable[[], dict[str, Any]] = status
        self.pages = Pages(
            0, status=lambda: self.status(), unhealthy=lambda: self.reason, own_figures=lambda: {"belts": 2}
        )
        self.pages.start()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    served = Served()
    yield served
    served.pages.close()


@pytest.fixture
def served(server: Served) -> Served:
    server.reason, server.status = "", status
    return server


@pytest.fixture
def ask(served: Served) -> Ask:
    def ask(path: str, *, host: str | None = None, method: str = "GET") -> tuple[int, Any, str]:
        connection = http.client.HTTPConnection("127.0.0.1", served.pages.port, timeout=10)
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer, answer.read().decode()

    return ask


def test_health_says_whether_contact_is_fresh(served: Served, ask: Ask) -> None:
    code, answer, body = ask("/health")
    assert (code, json.loads(body)) == (200, {"status": "ok", "reason": ""})
    assert answer.headers["Cache-Control"] == "no-store"
    served.reason = "no answer of https://edge.example.com for 130 s"
    code, _, body = ask("/health?x=1")
    assert (code, json.loads(body)) == (503, {"status": "unhealthy", "reason": served.reason})


def test_the_status_is_that_of_the_command(ask: Ask) -> None:
    code, answer, body = ask("/status.json")
    assert (code, answer.headers["Content-Type"], json.loads(body)) == (200, "application/json", status())


def test_metrics_are_prometheus_text(ask: Ask) -> None:
    code, answer, body = ask("/metrics")
    assert (code, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert parse(body)["edgecontrol_agent_extended_sysinfo"] == {(("figure", "belts"),): 2}


def test_other_pages_say_what_there_is(ask: Ask) -> None:
    for path in ("/", "/../etc/passwd", "//health/"):
        code, _, body = ask(path)
        assert (code, "/status.json" in body) == (404, True)


def test_only_this_machine_can_ask(served: Served) -> None:
    assert pages.LOOPBACK == "127.0.0.1"
    assert served.pages._server is not None
    assert served.pages._server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example.com", "evil.example.com:80", "", "127.0.0.1.evil.example", "[::2]"])
def test_a_name_that_was_made_to_lead_here_reads_nothing(ask: Ask, host: str) -> None:
    code, _, body = ask("/status.json", host=host)
    assert code == 421
    assert "press" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9100", "127.0.0.1:1", "[::1]:80", "[::1]"])
def test_this_machines_own_names_may_ask(ask: Ask, host: str) -> None:
    assert ask("/health", host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(ask: Ask, method: str) -> None:
    assert ask("/status.json", method=method)[0] == 501


def test_head_has_no_body(ask: Ask) -> None:
    code, answer, body = ask("/health", method="HEAD")
    assert (code, body) == (200, "")
    assert int(answer.headers["Content-Length"]) > 0


def test_a_status_that_fails_is_an_answer_too(served: Served, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> dict[str, Any]:
        raise KeyError("x")

    served.status = fail
    assert ask("/status.json")[0] == 500
    served.status = status
    assert ask("/status.json")[0] == 200


def test_only_so_many_are_answered_at_once(served: Served, ask: Ask) -> None:
    let = threading.Event()
    began = threading.Semaphore(0)

    def slow() -> dict[str, Any]:
        began.release()
        assert let.wait(20)
        return status()

    served.status = slow
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(ask("/status.json")[0])) for _ in range(MOST_REQUESTS)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert began.acquire(timeout=20)
    assert ask("/status.json")[0] == 503
    let.set()
    for thread in threads:
        thread.join(20)
    assert codes == [200] * MOST_REQUESTS
    assert ask("/health")[0] == 200


def test_who_asks_nothing_is_not_waited_for_long(served: Served, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.Handler, "timeout", 0.1)
    mute = [socket.create_connection(("127.0.0.1", served.pages.port), timeout=10) for _ in range(MOST_REQUESTS)]
    for connection in mute:
        assert connection.recv(1) == b""  # closed from the other side
        connection.close()
    assert ask("/health")[0] == 200


def test_who_asks_drop_by_drop_is_not_waited_for_long_either(
    served: Served, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", served.pages.port), timeout=10) as dripping:

        def drip() -> None:
            for _ in range(500):
                dripping.sendall(b"x")
                time.sleep(0.02)

        with pytest.raises(ConnectionError):
            drip()
    assert ask("/health")[0] == 200


def test_a_port_that_is_taken_is_one_line(served: Served) -> None:
    another = Pages(served.pages.port, status=status, unhealthy=str)
    with pytest.raises(BadConfig) as said:
        another.start()
    assert f"http_port {served.pages.port} cannot be used" in str(said.value)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def page(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


def test_a_running_agent_can_be_watched(plane: ControlPlane, start_agent: Callable[..., Agent], port: int) -> None:
    plane.fault = lambda path, number: Refusal(503, "unavailable") if path == "workers/register" else None
    agent = start_agent("--http-port", str(port))
    plane.wait_for(lambda: page(port, "/health")[0] == 503)
    assert "not registered yet" in page(port, "/health")[1]
    plane.fault = lambda path, number: None
    job = plane.add({"seconds": 60})
    plane.wait_for(agent.starts)
    assert page(port, "/health")[0] == 200
    said = json.loads(page(port, "/status.json")[1])
    assert [one["id"] for one in said["jobs"]] == [job.id]
    assert said["versions"]["server"] == "0.1.0"
    samples = checked(page(port, "/metrics")[1])
    assert sum(samples["edgecontrol_agent_jobs"].values()) == 1
    assert samples["edgecontrol_agent_healthy"] == {(): 1}


def test_without_the_setting_nothing_listens(plane: ControlPlane, start_agent: Callable[..., Agent]) -> None:
    agent = start_agent()
    plane.wait_for(lambda: plane.parked)
    listening = [one for one in psutil.Process(agent.process.pid).net_connections() if one.status == psutil.CONN_LISTEN]
    assert listening == []


def test_a_port_that_is_taken_ends_the_agent_with_one_line(
    plane: ControlPlane, start_agent: Callable[..., Agent]
) -> None:
    agent = start_agent("--http-port", str(plane.port))
    assert agent.wait() == 2
    assert agent.stderr.splitlines()[-1].startswith(f"edge-agent: http_port {plane.port} cannot be used")
