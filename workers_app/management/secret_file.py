"""Writes a credential into a file that only its owner can read, in one step."""

from __future__ import annotations

import os
import re
from pathlib import Path

from workers_app.management.endings import Refused

#: File systems allow 255 bytes, of which the temporary name needs some.
_LONGEST = 200


def default_path(name: str, kind: str) -> Path:
    """A file in this folder, named after the machine: `press-7.token`."""
    stem = re.sub(r"[^\w.-]+", "_", name).encode()[:_LONGEST].decode(errors="ignore")
    return Path(f"{stem}.{kind}")


def refuse_to_overwrite(path: Path, *, force: bool) -> None:
    """Raises Refused when there is such a file, unless it may be replaced."""
    if path.exists() and not force:
        raise Refused(f"{path} exists; use --force to overwrite it, or --file for another place")


def write(path: Path, text: str) -> None:
    """Replace the file in one step; nobody but its owner can ever read it. Raises OSError, and leaves nothing then."""
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as target:
            target.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
