"""How the agent's own files are read and written: each is replaced in one step, or stays as it was."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None when it is missing or broken. Raises OSError when it cannot be read now."""
    return object_in(path.read_bytes)


def object_in(read: Callable[[], bytes]) -> dict[str, Any] | None:
    """The JSON object in what is read; None when nothing is there, or something else. Raises OSError as that does."""
    try:
        content = json.loads(read())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def write(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Replace the file in one step, readable by this user only; `durable` waits for the disk."""
    temporary = path.with_name(path.name + ".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while content:  # a disk that is nearly full takes a part without an error
            content = content[os.write(handle, content) :]
        if durable:
            os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(path)


def sync(folder: Path) -> None:
    """Make a rename in the folder durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
