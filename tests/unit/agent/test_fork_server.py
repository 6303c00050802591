from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.runner import ForkServer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    monkeypatch.chdir(tmp_path)
    server = ForkServer(path=Path("runner.sock"), idle_seconds=60)
    yield server
    server.withdraw()
    server.listener.close()


def connect(server: ForkServer) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(str(server.path))
    server.step(timeout=1)
    assert json.loads(agent.recv(65536))["event"] == "state"
    return agent


def test_the_last_order_of_an_agent_that_has_gone_is_obeyed(server: ForkServer) -> None:
    agent = connect(server)
    (there,) = server.agents
    agent.sendall(b'{"op": "drain"}\n')
    agent.close()
    # A job ends before the order is read; there is nobody left to tell.
    server._say(there, {"event": "ended"})
    server.step(timeout=1)
    assert server.draining
    assert server.finished()
    assert not server.agents


def test_orders_may_come_in_pieces(server: ForkServer) -> None:
    agent = connect(server)
    agent.sendall(b'{"op": "dr')
    server.step(timeout=1)
    assert not server.draining
    agent.sendall(b'ain"}\n')
    server.step(timeout=1)
    assert server.draining
    agent.close()


def test_a_draining_server_is_found_no_more_and_leaves_a_successors_socket_alone(server: ForkServer) -> None:
    connect(server).sendall(b'{"op": "drain"}\n')
    server.step(timeout=1)
    assert not server.path.exists()
    server.path.write_text("the successor's")
    server.withdraw()
    assert server.path.exists()
