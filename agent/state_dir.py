"""The state directory is private and serves one process at a time; what lies in it is decided elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from uuid import UUID, uuid4

from agent.errors import AlreadyRunning, BadStateDir
from agent.files import read_json, write
from agent.jobs import PLACES, PLACES_MODE
from agent.locks import is_locked, try_lock


def take(folder: Path, *, passable: bool = False) -> int:
    """Make the directory if need be, and lock it until this process ends: two agents would start the same jobs.

    `passable` lets other users, as whom tasks run, through to what is theirs in it: they can list nothing. Returns the
    handle that bears the lock. Raises BadStateDir, or AlreadyRunning.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never taken from a task that still runs.
        folder.chmod(PLACES_MODE if passable or (folder / PLACES).is_dir() else 0o700)
        handle = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
        taken = lock_soon(handle)
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


def lock_soon(handle: int) -> bool:
    """Take the lock; `in_use` may have it for an instant."""
    for _ in range(5):
        if try_lock(handle):
            return True
        time.sleep(0.05)
    return False


def in_use(folder: Path) -> bool:
    """Whether an agent runs with this state directory now. Raises BadStateDir when that cannot be told."""
    try:
        return is_locked(folder / "agent.lock")
    except PermissionError:
        raise BadStateDir(not_ours(folder)) from None
    except OSError as error:
        raise BadStateDir(f"cannot look into the state directory {folder}: {error.strerror}") from None


def is_ours(folder: Path) -> bool:
    """Whether the directory is this user's. Raises OSError when that cannot be told."""
    return not hasattr(os, "geteuid") or folder.stat().st_uid == os.geteuid()


def not_ours(folder: Path) -> str:
    """What to do about a state directory that another system user has."""
    owner = "another user"
    with contextlib.suppress(OSError, KeyError, NotImplementedError):
        owner = folder.owner()
    return (
        f"the state directory {folder} belongs to {owner}: give this command as that user, with `sudo -u` for instance"
    )


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
