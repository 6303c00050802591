"""One question, one answer: nobody else gets in, and nobody who is frozen keeps anybody waiting."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import local_control, state_dir
from agent.errors import AgentError, NoAnswer, NotRunning
from agent.local_control import FILE, SOCKET, LocalControl, ask, connect

NOBODY = 65534


def echo(question: dict[str, Any]) -> dict[str, Any]:
    return {"asked": question}


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s")  # short: the name of a socket in it has to fit
    folder.chmod(0o700)
    return folder


@pytest.fixture
def serve(place: Path) -> Iterator[Callable[..., LocalControl]]:
    started = []

    def serve(answer: Callable[[dict[str, Any]], dict[str, Any]] = echo, *, at: Path = place) -> LocalControl:
        control = LocalControl(at, answer)
        control.start()
        started.append(control)
        return control

    yield serve
    for control in started:
        control.close()


def known(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / FILE).read_bytes())
    return found


def in_another_process(call: Callable[[], object]) -> str:
    """What the call raises, as another system user if that can be: root may look everywhere."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            call()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return said


def test_a_question_is_answered(serve: Callable[..., LocalControl], place: Path) -> None:
    serve()
    question = {"op": "status", "text": "\u00fc\n" * 100_000}
    assert ask(place, question) == {"asked": question}
    assert ask(place, question) == {"asked": question}


def test_key_and_socket_are_for_the_owner_only(serve: Callable[..., LocalControl], place: Path) -> None:
    serve()
    assert (place / FILE).stat().st_mode & 0o777 == 0o600
    assert (place / SOCKET).stat().st_mode & 0o777 == 0o600


def test_each_agent_process_has_a_key_of_its_own(serve: Callable[..., LocalControl], place: Path) -> None:
    serve().close()
    assert not list(place.iterdir())
    serve()
    first = known(place)["key"]
    serve()
    assert known(place)["key"] != first


def test_a_path_that_is_too_long_for_a_socket_is_no_hindrance(serve: Callable[..., LocalControl], place: Path) -> None:
    deep = place / ("x" * 120)
    deep.mkdir()
    serve(at=deep)
    assert known(deep)["address"][0] == "127.0.0.1"
    assert ask(deep, {"op": 1}) == {"asked": {"op": 1}}


def test_another_system_user_does_not_get_in(serve: Callable[..., LocalControl], place: Path) -> None:
    serve()
    address, owner = known(place)["address"], place.owner()
    if os.getuid() != 0:
        place.chmod(0o000)
    try:
        assert in_another_process(lambda: connect(address, seconds=2)).startswith("PermissionError")
        assert in_another_process(lambda: ask(place, {})).startswith("BadStateDir: the state directory")
    finally:
        place.chmod(0o700)
    assert owner in state_dir.not_ours(place)


def test_without_the_key_nothing_is_answered(serve: Callable[..., LocalControl], place: Path) -> None:
    asked = []
    serve(lambda question: asked.append(question) or {})
    (place / FILE).write_text(json.dumps({**known(place), "key": "00" * 32}))
    with pytest.raises(NotRunning):  # nobody holds the lock in this test
        ask(place, {"op": "stop"})
    assert not asked


def test_somebody_else_at_the_address_of_a_killed_agent_is_not_taken_for_it(place: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    (place / FILE).write_text(json.dumps({"address": listener.getsockname()[:2], "key": "00" * 32, "pid": 1}))
    heard = []

    def pretend() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b'{"challenge": "x"}\n')
            heard.append(connection.recv(65536))
            connection.sendall(b'{"proof": "' + b"0" * 64 + b'", "answer": {"state": "idle"}}\n')

    threading.Thread(target=pretend, daemon=True).start()
    with pytest.raises(NotRunning):
        ask(place, {"op": "status"})
    assert b"00" * 32 not in heard[0], "the key never travels"
    listener.close()


@pytest.mark.parametrize(
    "left", [None, "", "{}", '{"address": 7, "key": "zz"}', '{"address": "/nowhere", "key": "00"}']
)
def test_what_a_killed_agent_leaves_behind_is_no_agent(place: Path, left: str | None) -> None:
    if left is not None:
        (place / FILE).write_text(left)
    with pytest.raises(NotRunning, match=str(place)):
        ask(place, {})


def test_an_agent_that_holds_its_lock_and_cannot_be_asked_is_said_to_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_control, "STARTING_SECONDS", 0.1)
    monkeypatch.setattr(state_dir, "in_use", lambda folder: True)
    with pytest.raises(NoAnswer, match="cannot be asked"):
        ask(place, {})


def test_a_frozen_agent_is_not_waited_for(place: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place / "s"))
    listener.listen(1)
    (place / FILE).write_text(json.dumps({"address": str(place / "s"), "key": "00" * 32, "pid": 1}))
    for _ in range(4):  # as many as wait in line, and more
        with pytest.raises(NoAnswer, match="does not answer"):
            ask(place, {}, seconds=0.2)
    listener.close()


@pytest.mark.parametrize(
    "said", [b"", b"{", b"x\n", b"[]\n", b"{}\n", b'{"challenge": "x", "proof": "y", "question": {}}\n']
)
def test_frozen_and_senseless_clients_keep_nobody_out(
    serve: Callable[..., LocalControl], place: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(local_control, "CALL_SECONDS", 0.2)
    serve()
    address = known(place)["address"]
    bad = [connect(address, seconds=5) for _ in range(2 * local_control.MOST_CALLS)]
    for connection in bad:
        connection.sendall(said)
    assert ask(place, {"op": 1}) == {"asked": {"op": 1}}
    for connection in bad:
        connection.close()


def test_a_message_without_end_is_cut_off(
    serve: Callable[..., LocalControl], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_control, "MOST_BYTES", 100_000)
    serve()
    with connect(known(place)["address"], seconds=5) as connection, pytest.raises((BrokenPipeError, ConnectionError)):
        connection.sendall(b"x" * (64 << 20))


def test_an_answer_that_fails_is_told_and_the_next_one_comes(serve: Callable[..., LocalControl], place: Path) -> None:
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        return {"quotient": 1 / question["by"]}

    serve(answer)
    with pytest.raises(AgentError, match="ZeroDivisionError"):
        ask(place, {"by": 0})
    assert ask(place, {"by": 2}) == {"quotient": 0.5}


def test_an_agent_that_cannot_listen_works_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    control = LocalControl(tmp_path / "missing", echo)
    control.start()
    control.close()
    assert "will not find the agent" in caplog.text


def test_whether_an_agent_runs_is_told_by_its_lock(place: Path) -> None:
    assert not state_dir.in_use(place)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        state_dir.take(place)
        os.write(writer, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    assert state_dir.in_use(place)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not state_dir.in_use(place)


def test_there_is_no_agent_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotRunning):
        ask(tmp_path / "file", {})
