"""What the agent makes of runners that are former ones, silent or talk nonsense."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import fresh_runner, runner_link
from agent.errors import NoAirflow
from agent.fresh_runner import FreshRunner
from agent.runner import listen
from agent.runner_link import ForkRunner, RunnerAway
from agent.task_kinds import TaskKind

KIND = TaskKind(python=sys.executable, given={})


@pytest.fixture
def runner(tmp_path: Path) -> ForkRunner:
    return ForkRunner(kind=KIND, state_dir=tmp_path, environ=dict(os.environ))


@pytest.fixture
def current(runner: ForkRunner) -> Iterator[socket.socket]:
    """The other end of the connection to the runner in use."""
    runner._socket, theirs = socket.socketpair()
    runner._socket.setblocking(False)
    yield theirs
    runner.close(drain=False)
    theirs.close()


@pytest.fixture
def former(runner: ForkRunner) -> Iterator[socket.socket]:
    """The other end of the connection to a runner that drains."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    runner._former[ours] = b""
    yield theirs
    ours.close()
    theirs.close()


def test_a_draining_runner_tells_of_ends_only(
    runner: ForkRunner, current: socket.socket, former: socket.socket
) -> None:
    said = [{"event": "ended", "job": "a.1"}, {"event": "started", "job": "b.1", "pid": 1}]
    former.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in said) + b'{"event"')
    assert runner.events(timeout=1.0) == said[:1]
    former.sendall(b': "ended", "job": "c.1"}\n')
    assert runner.events(timeout=1.0) == [{"event": "ended", "job": "c.1"}]


@pytest.mark.parametrize(
    "nonsense",
    [b"no JSON\n", b"[]\n", b"{}\n", b"7\n", b"[" * 60_000 + b"\n"],
    ids=["text", "list", "nothing", "number", "nested"],
)
def test_a_draining_runner_that_talks_nonsense_costs_its_own_connection_only(
    runner: ForkRunner, current: socket.socket, former: socket.socket, nonsense: bytes
) -> None:
    former.sendall(nonsense)
    current.sendall(b'{"event": "ended", "job": "a.1"}\n')
    said: list[dict[str, Any]] = []
    for _ in range(3):
        said += runner.events(timeout=0.05)
    assert said == [{"event": "ended", "job": "a.1"}]
    assert runner.alive
    assert not runner._former


def test_a_line_without_end_fills_no_memory(
    runner: ForkRunner, current: socket.socket, former: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_link, "MOST_BYTES", 100_000)
    for _ in range(4):
        former.sendall(b"x" * 30_000)
        assert runner.events(timeout=1.0) == []
    assert not runner._former
    assert runner.alive


def test_a_silent_runner_is_waited_for_at_length_once(runner: ForkRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is waited for, nobody hears of the ends of other runners' jobs."""
    now = [0.0]

    def events(*, timeout: float) -> list[dict[str, Any]]:
        now[0] += timeout
        return []

    monkeypatch.setattr(runner_link.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(runner, "events", events)
    runner.renew()
    waited = []
    with listen(runner.socket_path):
        for _ in range(3):
            began = now[0]
            with pytest.raises(RunnerAway, match="does not answer"):
                runner.connect()
            waited.append(now[0] - began)
            runner.close(drain=False)
    assert waited[0] > runner_link.ANSWER_SECONDS
    assert max(waited[1:]) < runner_link.SILENT_SECONDS + 1


@pytest.mark.parametrize("make", [ForkRunner, FreshRunner])
def test_an_upgrade_or_removal_of_the_agents_files_leaves_a_running_agent_its_runner(
    make: Callable[..., ForkRunner | FreshRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = TaskKind(python=str(tmp_path / "python"), given={})
    runner = make(kind=kind, state_dir=tmp_path, environ=dict(os.environ))
    runner.renew()
    before = runner.socket_path
    for module in (runner_link, fresh_runner):
        monkeypatch.setattr(module, "SOURCE", tmp_path / "no longer there")
    runner.renew()
    assert runner.socket_path == before
    if isinstance(runner, FreshRunner):
        with pytest.raises(NoAirflow):
            runner.connect()
        assert (tmp_path / "runner/runner.py").stat().st_size > 10_000
