"""What is installed for a task interpreter, as one word: decides when a runner has become another generation.

A runner keeps what it has imported; what its tasks import later would come from packages that have changed meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: How often is looked whether they have changed; and once they have, whether whoever changes them is done.
LOOK_SECONDS = 30.0
SETTLE_SECONDS = 5.0
#: Folders of installers. Code in other folders of the path is its site's own, and changes as it likes.
INSTALLED = frozenset({"site-packages", "dist-packages"})
#: What is made anew with every installation, even of the same version.
MARKED = (".dist-info", ".egg-info", ".egg-link", ".pth")


class Packages:
    """The packages that this interpreter finds with these variables; an interpreter that does not run has none."""

    def __init__(
        self, *, python: str, environ: Mapping[str, str], how_to_start: Mapping[str, Any] | None = None
    ) -> None:
        self._python = python
        self._folders = folders(python, environ, how_to_start)
        self._touched: list[int] = []
        self._seen = ""
        self._known = ""
        self._look_at = 0.0

    @property
    def known(self) -> bool:
        """Whether the interpreter has told where it looks for them."""
        return bool(self._folders)

    def fingerprint(self) -> str:
        """Another word after every installation, upgrade or removal."""
        self._known = self._look()
        self._look_at = time.monotonic() + LOOK_SECONDS
        return self._known

    def changed(self) -> bool:
        """Whether they are others than at the last fingerprint, for some seconds already. Looks now and then only."""
        if time.monotonic() < self._look_at:
            return False
        before = self._seen
        settled = self._look() == before
        self._look_at = time.monotonic() + (LOOK_SECONDS if settled else SETTLE_SECONDS)
        return settled and self._seen != self._known

    def _look(self) -> str:
        touched = [modified(path) for path in (self._python, *self._folders)]
        if touched != self._touched or not self._seen:
            self._touched = touched
            facts = [str(touched[0]), *(line for folder in self._folders for line in entries(folder))]
            self._seen = hashlib.sha256("\0".join(facts).encode()).hexdigest()
        return self._seen


def folders(python: str, environ: Mapping[str, str], how_to_start: Mapping[str, Any] | None = None) -> list[str]:
    """Where installers put packages for this interpreter, which runs what it finds there: as `how_to_start` says."""
    command = [python, "-c", "import json, sys; print(json.dumps(sys.path))"]
    try:
        answer = subprocess.run(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=True,
            **(how_to_start or {}),
        )
        path = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    return [entry for entry in path if Path(entry).name in INSTALLED]


def entries(folder: str) -> list[str]:
    """Every name in the folder but what Python puts there itself, with its age where that tells of an installation."""
    try:
        with os.scandir(folder) as found:
            lines = [
                f"{entry.name} {entry.stat().st_mtime_ns}" if entry.name.endswith(MARKED) else entry.name
                for entry in found
                if entry.name != "__pycache__"
            ]
    except OSError:
        return []
    return sorted(lines)


def modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 (of a string, for speed)
    except OSError:
        return 0
