"""What the terminal shows: one line for each finished step, and on a terminal one living line below."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TextIO

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Screen:
    """Writes lines; plain ones when the output is a file or a pipe."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self.output = output
        self.is_terminal = output.isatty() and os.environ.get("TERM") != "dumb"
        self.has_colour = self.is_terminal and "NO_COLOR" not in os.environ
        self.started_at = time.monotonic()
        unicode = (output.encoding or "").lower().replace("-", "") == "utf8"
        self.tick, self.cross = ("✓", "✗") if unicode else ("ok", "failed")

    def line(self, text: str = "") -> None:
        """Write a line that stays."""
        self._clear()
        print(text, file=self.output, flush=True)

    def done(self, what: str, seconds: float) -> None:
        """Tick a step off."""
        at = time.monotonic() - self.started_at
        self.line(f"{self._paint(self.tick, 32)} {what:<36} {seconds:5.1f} s  {self._paint(f'at {at:5.1f} s', 2)}")

    def failed(self, text: str) -> None:
        """Say what went wrong."""
        self.line(f"{self._paint(self.cross, 31)} {text}")

    def now(self, text: str) -> None:
        """Show what goes on at this moment; on a terminal only, and gone with the next line."""
        if self.is_terminal:
            at = time.monotonic() - self.started_at
            spin = _SPINNER[int(at * 10) % len(_SPINNER)] if self.tick == "✓" else "-"
            width = shutil.get_terminal_size().columns
            self.output.write(f"\r\x1b[2K{spin} {text}"[: width + 4])
            self.output.flush()

    def _clear(self) -> None:
        if self.is_terminal:
            self.output.write("\r\x1b[2K")

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colour else text
