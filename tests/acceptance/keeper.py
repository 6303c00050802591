"""Keeps the bytes that tasks wrote on their machine, since an agent drops a log that has arrived."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from uuid import UUID


class Keeper(threading.Thread):
    """Gives each log file in the agents' spools a second name, in `kept`, until `end`."""

    def __init__(self, *spools: Path, kept: Path, every_seconds: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.spools, self.kept, self.every_seconds = list(spools), kept, every_seconds
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(self.every_seconds):
            for spool in list(self.spools):
                with contextlib.suppress(FileNotFoundError):  # forgotten while we look; the next look sees the others
                    self._look(spool)

    def end(self) -> None:
        self._ended.set()
        if self.is_alive():
            self.join()

    def logs(self) -> dict[tuple[UUID, int], bytes]:
        """Return the agent's file for each (job, attempt), as it is now."""
        pairs = {path: path.name.rpartition(".") for path in self.kept.iterdir()}
        return {(UUID(job_id), int(attempt)): path.read_bytes() for path, (job_id, _, attempt) in pairs.items()}

    def _look(self, spool: Path) -> None:
        for log in spool.glob("[!.]*.*/log/**/*.log"):  # what is being removed has a dot
            name = self.kept / log.relative_to(spool).parts[0]
            if not name.exists():
                name.hardlink_to(log)
