"""How commands on a machine speak to the agent that runs there: one question, one answer, neither waited for long.

What is asked and answered is decided elsewhere. The agent listens at a socket in its state directory, where no other
system user can reach it; where that cannot be (Windows, a path that is too long for a socket) at a port on loopback.
Either side proves in each call that it knows the key of this agent process, which only the state directory's owner can
read; the key itself never travels. A side that is frozen, or sends what is no question, costs the other a few seconds.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import state_dir as state_directory
from agent.errors import AgentError, BadStateDir, NoAnswer, NotRunning
from agent.files import read_json, write

log = logging.getLogger("agent.local")

#: In the state directory: where the agent can be asked, and its key.
FILE, SOCKET = "control.json", "control.sock"
#: Longer names do not fit the address of a socket (104 bytes on macOS).
LONGEST_SOCKET_NAME = 100
#: How long a question may take to arrive, and its answer to leave.
CALL_SECONDS = 5.0
#: How long the asking side waits for all of that.
PATIENCE_SECONDS = 10.0
#: An agent that has just been started is not to be asked yet.
STARTING_SECONDS = 2.0
MOST_BYTES = 8 << 20
#: Further calls wait until one of these has ended.
MOST_CALLS = 8

Message = dict[str, Any]


class LocalControl:
    """Answers questions in threads of its own, from `start` until `close`."""

    def __init__(self, state_dir: Path, answer: Callable[[Message], Message]) -> None:
        self._state_dir = state_dir
        self._answer = answer
        self._key = secrets.token_bytes(32)
        self._room = threading.BoundedSemaphore(MOST_CALLS)
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Be there for questions. An agent that cannot listen works all the same, and says so."""
        try:
            self._listener, address = listen(self._state_dir)
            known = {"address": address, "key": self._key.hex(), "pid": os.getpid()}
            write(self._state_dir / FILE, json.dumps(known).encode(), durable=False)
        except OSError as error:
            log.warning("commands on this machine will not find the agent: %s", error.strerror or error)
            return
        threading.Thread(target=self._accept, args=(self._listener,), name="local control", daemon=True).start()

    def close(self) -> None:
        if self._listener is None:
            return
        listener, self._listener = self._listener, None
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for name in (FILE, SOCKET):
            with contextlib.suppress(OSError):
                (self._state_dir / name).unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            self._room.acquire()
            try:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), name="local call", daemon=True).start()
            except (OSError, RuntimeError):  # closed; or no descriptor, no thread is to be had just now
                self._room.release()
                time.sleep(0.1)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                call = Call(connection, seconds=CALL_SECONDS)
                challenge = secrets.token_hex(32)
                call.send({"challenge": challenge})
                said = call.receive()
                theirs = str(said["challenge"])
                if not hmac.compare_digest(str(said["proof"]), proof(self._key, "ask", challenge, theirs)):
                    raise ValueError("a question without the key of this agent")
                answer = self._answer_safely(said["question"])
                call.again(CALL_SECONDS)
                call.send({"proof": proof(self._key, "answer", challenge, theirs), "answer": answer})
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.debug("a call on this machine failed: %s", error)
        finally:
            self._room.release()

    def _answer_safely(self, question: Message) -> Message:
        try:
            return self._answer(question)
        except Exception as error:
            log.exception("a question on this machine could not be answered")
            return {"error": f"{type(error).__name__}: {error}"}


def ask(state_dir: Path, question: Message, *, seconds: float = PATIENCE_SECONDS) -> Message:
    """Ask the agent that uses this state directory.

    Raises NotRunning when there is none, NoAnswer when it does not answer within the time, BadStateDir when the
    directory is not ours to look into.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        try:
            answer = converse(state_dir, question, seconds=seconds)
        except TimeoutError:
            raise NoAnswer(
                f"the agent of {state_dir} does not answer within {seconds:.0f} s: it may be stopped or overloaded"
            ) from None
        except (OSError, ValueError, KeyError, TypeError):
            # Nobody listens, or somebody else where an agent did before it was killed: its lock tells.
            if not state_directory.in_use(state_dir):
                raise NotRunning(f"no agent runs with the state directory {state_dir}") from None
            if time.monotonic() > deadline:
                raise NoAnswer(
                    f"the agent of {state_dir} runs and cannot be asked: its log says why (it may be an older version)"
                ) from None
            time.sleep(0.1)
        else:
            if "error" in answer:
                raise AgentError(f"the agent of {state_dir} says: {answer['error']}")
            return answer


def converse(state_dir: Path, question: Message, *, seconds: float) -> Message:
    """One call. Raises BadStateDir, TimeoutError, or whatever is wrong with the other side."""
    known = read_or_refuse(state_dir)
    key = bytes.fromhex(str(known["key"]))
    with connect(known["address"], seconds=seconds) as connection:
        call = Call(connection, seconds=seconds)
        theirs, ours = str(call.receive()["challenge"]), secrets.token_hex(32)
        # The other side is not proven yet; a question is no secret.
        call.send({"challenge": ours, "proof": proof(key, "ask", theirs, ours), "question": question})
        said = call.receive()
        if not hmac.compare_digest(str(said["proof"]), proof(key, "answer", theirs, ours)):
            raise ValueError("not the agent")
        answer: Message = said["answer"]
        return answer


def read_or_refuse(state_dir: Path) -> Message:
    """Where the agent is to be asked. Raises BadStateDir, or FileNotFoundError."""
    try:
        known = read_json(state_dir / FILE)
    except PermissionError:
        raise BadStateDir(state_directory.not_ours(state_dir)) from None
    if known is None:
        raise FileNotFoundError
    return known


def proof(key: bytes, role: str, *challenges: str) -> str:
    """Shows knowledge of the key; of no use in another call, nor for the other side."""
    return hmac.new(key, "|".join((role, *challenges)).encode(), "sha256").hexdigest()


def listen(state_dir: Path) -> tuple[socket.socket, str | tuple[str, int]]:
    """A listening socket, and what another process has to connect to."""
    path = state_dir / SOCKET
    in_directory = hasattr(socket, "AF_UNIX") and len(os.fsencode(path)) <= LONGEST_SOCKET_NAME
    listener = socket.socket(socket.AF_UNIX if in_directory else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if in_directory:
            path.unlink(missing_ok=True)  # of a killed agent: there is no other in this directory
            listener.bind(str(path))
            path.chmod(0o600)
        else:
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows: nobody may take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            listener.bind(("127.0.0.1", 0))
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener, listener.getsockname()


def connect(address: Any, *, seconds: float) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(seconds)
    try:
        connection.connect(address if isinstance(address, str) else tuple(address))
    except BaseException as error:
        connection.close()
        if isinstance(error, BlockingIOError):  # as many wait already as may
            raise TimeoutError from None
        raise
    return connection


class Call:
    """One connection: messages of one line each, which all have to pass before the deadline."""

    def __init__(self, connection: socket.socket, *, seconds: float) -> None:
        self._socket = connection
        self._read = b""
        self.again(seconds)

    def again(self, seconds: float) -> None:
        """The time counts anew."""
        self._deadline = time.monotonic() + seconds

    def send(self, message: Message) -> None:
        left = memoryview(json.dumps(message).encode() + b"\n")
        while left:
            self._obey_deadline()
            left = left[self._socket.send(left) :]

    def receive(self) -> Message:
        while b"\n" not in self._read:
            self._obey_deadline()
            data = self._socket.recv(65536)
            self._read += data
            if not data or len(self._read) > MOST_BYTES:
                raise ConnectionAbortedError("the message did not end")
        line, self._read = self._read.split(b"\n", 1)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError("no message")
        return message

    def _obey_deadline(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
