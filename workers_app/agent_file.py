"""The agent in one file, as this control plane hands it out: where it is, and its SHA-256.

Everybody may fetch it: it is the published program, with no secret in it, and the machine that needs it has no
credential yet. Against a forged one helps the sum that the admin shows to somebody who has logged in.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from django.conf import settings

from workers_app.errors import Refusal

NAME = "edge-agent.pyz"
#: Below the control plane's address.
ADDRESS = f"/agent/{NAME}"
#: Where `make agent` puts it, and a wheel that was made afterwards has it.
BUILT = Path(__file__).parent / "downloads" / NAME


class NotBuilt(Refusal):
    """This control plane has no edge-agent.pyz: `make agent` in a checkout builds it, and EDGECONTROL_AGENT_FILE names
    one that is elsewhere. Without it, install the agent with `pip install 'edgecontrol[agent]'`."""

    code = "agent_not_built"


@dataclass(frozen=True)
class AgentFile:
    sha256: str
    bytes: int

    @property
    def sum_line(self) -> str:
        """What `sha256sum --check` reads."""
        return f"{self.sha256}  {NAME}"


def open_file() -> tuple[BufferedReader, AgentFile]:
    """The file, open, with what was read from this very handle: it may be replaced at any moment. Raises NotBuilt."""
    path = Path(settings.EDGECONTROL.agent_file or BUILT)
    try:
        file = path.open("rb")
    except OSError:
        raise NotBuilt from None
    try:
        facts = os.fstat(file.fileno())
        sha256 = _sum(file, version=(facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size))
    except OSError:  # a directory has this name, or the disk is gone
        file.close()
        raise NotBuilt from None
    return file, AgentFile(sha256=sha256, bytes=facts.st_size)


def look() -> AgentFile | None:
    """What would be handed out now."""
    try:
        file, found = open_file()
    except NotBuilt:
        return None
    file.close()
    return found


#: Of the one file that was there last: what tells it from another, and its sum.
_last: dict[tuple[int, ...], str] = {}


def _sum(file: BufferedReader, *, version: tuple[int, ...]) -> str:
    if (known := _last.get(version)) is not None:
        return known
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    _last.clear()
    _last[version] = found
    return found
