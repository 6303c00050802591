"""The state directory is private and serves one process at a time; what lies in it is decided elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from uuid import UUID, uuid4

from agent.errors import AlreadyRunning, BadStateDir
from agent.jobs import read_json, try_lock, write


def take(folder: Path) -> int:
    """Make the directory if need be, and lock it until this process ends: two agents would start the same jobs.

    Returns the handle that bears the lock. Raises BadStateDir, or AlreadyRunning.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        handle = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        taken = try_lock(handle)
    except OSError as error:
        raise BadStateDir(
            f"cannot use the state directory {folder} ({error.strerror}); choose one with --state-dir"
        ) from None
    if not taken:
        os.close(handle)
        raise AlreadyRunning(
            f"another agent runs with the state directory {folder}: stop it, or give this one its own --state-dir"
        )
    return handle


def begin_session(folder: Path) -> tuple[UUID, UUID | None]:
    """A session for this process, and the one that the last process here had: that one is over, which the lock proves.

    Told to the control plane, so that a request of the last process that arrives late begins nothing any more. A full
    disk that forgets it costs no more than this.
    """
    session, earlier = uuid4(), None
    with contextlib.suppress(OSError, KeyError, ValueError):
        earlier = UUID(str((read_json(folder / "session") or {})["session"]))
    with contextlib.suppress(OSError):
        write(folder / "session", json.dumps({"session": str(session)}).encode())
    return session, earlier
