"""Locks on files, by which processes of a machine know that others live; what one stands for is decided elsewhere."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

from agent.safe_files import NEVER_A_FILE, open_inside

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Linux's `struct flock`: type, whence, start, length, process.
_FLOCK = struct.Struct("@hhqqi0q")


def is_locked(path: Path, *, uid: int | None = None) -> bool:
    """Whether another process holds the lock. Takes it for an instant, so whoever locks for good tries twice.

    Raises OSError when that cannot be told now: a process must not be taken for dead because no descriptor is free.
    What a task has put in the lock's place is none.
    """
    try:
        handle = open_inside(path.parent, path.name, os.O_RDWR, uid=uid)
    except OSError as error:
        if error.errno in NEVER_A_FILE:
            return False
        raise
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def holder_of(path: Path, *, uid: int) -> int | None:
    """Which process holds the lock; None when none does, or where the kernel does not tell.

    Raises OSError when there is no file of that user's.
    """
    if sys.platform != "linux" or fcntl is None:
        return None
    handle = open_inside(path.parent, path.name, os.O_RDWR, uid=uid)
    try:
        answer = fcntl.fcntl(handle, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(handle)
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return pid if kind != fcntl.F_UNLCK and pid > 0 else None


def try_lock(handle: int) -> bool:
    """Take the lock of an open file for this process, without waiting; False when another process has it."""
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
