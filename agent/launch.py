"""How this agent was started, for whoever has to start it again or tells people how; nothing is started here."""

from __future__ import annotations

import shlex
import sys
import zipfile
from pathlib import Path

#: How texts spell it.
MODULE = "python -m agent"


def command() -> list[str]:
    """The beginning of a command line that starts this agent from anywhere: its interpreter, and the file or module."""
    file = _file()
    return [sys.executable, str(file.absolute())] if file else [sys.executable, "-m", "agent"]


def as_typed(text: str) -> str:
    """The text with `python -m agent` as this agent was started: `python3 edge-agent.pyz` where it is one file."""
    file = _file()
    return text.replace(MODULE, shlex.join(["python3", str(file)])) if file else text


def _file() -> Path | None:
    started = Path(sys.argv[0])
    return started if started.suffix == ".pyz" and zipfile.is_zipfile(started) else None
