"""edge-agent.pyz for this machine, made without a package registry: of the packages that are installed here."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

from deploy.agent_file import __main__ as agent_file

NEEDED = ("certifi", "charset-normalizer", "idna", "psutil", "requests", "urllib3")


def make_one_file(folder: Path) -> Path:
    """Return the file; what it was packed from stays beside it in `stage`."""
    for name in NEEDED:
        for file in metadata.files(name) or ():
            if file.parts[0] != "..":
                agent_file.copy(Path(str(file.locate())), folder / "installed" / file)
    machine = f"{sys.platform}-{os.uname().machine}"
    agent_file.gather(folder / "installed", folder / "stage", machine=machine)
    agent_file.add_agent(folder / "stage")
    agent_file.pack(folder / "stage", folder / "edge-agent.pyz")
    return folder / "edge-agent.pyz"
