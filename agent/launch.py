"""How this agent was started, for whoever has to start it again or tells people how; nothing is started here."""

from __future__ import annotations

import shlex
import sys
import zipfile
from pathlib import Path


def command() -> list[str]:
    """The beginning of every command line of this agent: its interpreter, and the file or module that it runs."""
    started = Path(sys.argv[0])
    if started.suffix == ".pyz" and zipfile.is_zipfile(started):
        return [sys.executable, str(started.absolute())]
    return [sys.executable, "-m", "agent"]


def words(*rest: str) -> str:
    """The same for people to type, with what follows: `python -m agent run`, or `python3 edge-agent.pyz run`."""
    _, *what = command()
    return shlex.join(["python3" if what[0] != "-m" else "python", *what, *rest])
