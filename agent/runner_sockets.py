"""Where the runners of each system user listen, who listens there, and how those that nobody needs are told to end.

What lies in the folder of another user may be that user's doing: none of it keeps the agent from starting.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from agent.errors import BadStateDir
from agent.task_kinds import TaskKind

log = logging.getLogger("agent.runner")

CONNECT_SECONDS = 5.0
#: A socket's name may have 107 bytes on Linux and 103 on macOS.
SOCKET_NAME_LIMIT = 100
#: Begins the name of the folder for the runners of another user, in which their sockets have one of their own.
OF_USER = "runner-of-"
SOCKETS = "sockets"
#: For other users to pass, not to list.
FOLDER_MODE = 0o711


def runner_folder(state_dir: Path, kind: TaskKind) -> Path:
    """Where the runners' source and logs are. Another user passes it to its sockets, and can write nothing there."""
    if kind.account is None:
        folder = state_dir / "runner"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder
    folder = state_dir / f"{OF_USER}{kind.account.uid}"
    folder.mkdir(exist_ok=True)
    folder.chmod(FOLDER_MODE)
    return folder


def socket_folder(folder: Path, kind: TaskKind) -> Path:
    """Where the runner of this kind can make its socket: for another user, a folder that is its own."""
    if kind.account is None:
        return folder
    own = folder / SOCKETS
    own.mkdir(mode=0o700, exist_ok=True)
    os.chown(own, kind.account.uid, kind.account.gid)
    return own


def drain(sockets: Path, *, spare: Collection[Path], uid: int | None) -> list[socket.socket]:
    """Tell every runner in the folder but those at these sockets to end with its last job; return the connections."""
    told = []
    for path in sockets.glob("*.sock"):
        if path in spare:
            continue
        connection = None
        with contextlib.suppress(OSError, BadStateDir):  # whatever that user has put there
            connection = connect_to(path, uid=uid)
            if connection is None:
                path.unlink(missing_ok=True)
        if connection is None:
            continue
        with contextlib.suppress(OSError):
            connection.sendall(b'{"op": "drain"}\n')
        told.append(connection)
    return told


def drain_users(state_dir: Path, *, but: Collection[Path]) -> None:
    """Tell the runners of users as whom no task runs any more to end, by all folders of sockets but these."""
    own = state_dir / "runner"
    for sockets in {own, *state_dir.glob(f"{OF_USER}*/{SOCKETS}")} - set(but):
        with contextlib.suppress(OSError):
            uid = None if sockets == own else sockets.stat().st_uid
            for connection in drain(sockets, spare=(), uid=uid):
                connection.close()


def connect_to(path: Path, *, uid: int | None = None) -> socket.socket | None:
    """A connection to the runner at this socket, or None when nobody listens: with `uid`, nobody of that user."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_SECONDS)
    try:
        with short_name(path) as name:
            connection.connect(name)
        if uid is None or listener_of(connection) == uid:
            return connection
        log.error("%s is not listened at by the user whose runner it is", path)
    except OSError:
        pass
    connection.close()
    return None


def listener_of(connection: socket.socket) -> int:
    """The user of the process at the other end: a socket's name may be a link that leads elsewhere."""
    credentials = struct.Struct("3i")  # process, user, group
    _, uid, _ = credentials.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size))
    return int(uid)


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket that is short enough to connect to, through an open handle of its folder where need be."""
    if len(os.fsencode(path)) <= SOCKET_NAME_LIMIT:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise BadStateDir(
            f"the path of the state directory is too long for a socket: {path}; choose a shorter --state-dir"
        )
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)
