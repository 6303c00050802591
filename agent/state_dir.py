"""The state directory is private and serves one process at a time; what lies in it is decided elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from agent.errors import AlreadyRunning, BadStateDir
from agent.jobs import try_lock


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
