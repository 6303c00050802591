"""How the commands end: one line on stderr and an exit code, the numbers of `manage.py`; never a stack trace."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import NoReturn


class Code(IntEnum):
    DONE = 0
    REFUSED = 1
    WRONG_USAGE = 2
    SKIPPED = 3
    INTERRUPTED = 130


#: One line each, for docs/airflow-cli.md.
MEANINGS = {
    Code.DONE: "all done",
    Code.REFUSED: "refused or failed, for the reason in the one line on stderr",
    Code.WRONG_USAGE: "wrong usage: an argument is missing, unknown or wrong",
    Code.SKIPPED: "done but for some, which were skipped; the table says why",
    Code.INTERRUPTED: "interrupted by Ctrl-C; the line on stderr says when something may have been changed",
}


class Failed(Exception):
    """The text says what is wrong and what to do."""

    def __init__(self, text: str, code: Code = Code.REFUSED) -> None:
        super().__init__(text)
        self.code = code


def run(command: Callable[[], Code]) -> NoReturn:
    """Run it to its end, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a worker's name is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = command()
        sys.stdout.flush()
    except Failed as failed:
        note(f"airflow edgecontrol: {failed}")
        code = failed.code
    except KeyboardInterrupt:
        note("airflow edgecontrol: interrupted")
        code = Code.INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough, as `head` does; nor must the interpreter complain when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Code.REFUSED
    sys.exit(int(code))


def note(text: str, *, ending: str = "\n") -> None:
    """For people, on stderr: stdout is for what the command found or did."""
    sys.stderr.write(shown(text) + ending)
    sys.stderr.flush()


def shown(text: str) -> str:
    """Without control characters but line breaks: what machines and people wrote must not steer a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
