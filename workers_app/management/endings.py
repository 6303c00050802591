"""How commands end: one exit code each, the same for every command; nothing is printed here.

Django prints the name and the text of the exceptions below as one line, without a stack trace.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import IntEnum

from django.core.management import CommandError


class Code(IntEnum):
    DONE = 0
    REFUSED = 1
    WRONG_USAGE = 2
    SKIPPED = 3
    UNFINISHED = 4
    INTERRUPTED = 130


#: One line each, for `--help` and docs/operate.md.
MEANINGS = {
    Code.DONE: "all done",
    Code.REFUSED: "refused or failed, for the reason in the one line on stderr",
    Code.WRONG_USAGE: "wrong usage: an argument is missing, unknown or wrong",
    Code.SKIPPED: "done but for some, which were skipped; each has its line on stderr",
    Code.UNFINISHED: "asked for, but `--wait SECONDS` was too short to see it done",
    Code.INTERRUPTED: "interrupted by Ctrl-C; the line on stderr says whether the request stands",
}


class Refused(CommandError):
    """It was refused, or failed."""

    def __init__(self, text: str) -> None:
        super().__init__(text, returncode=Code.REFUSED)


class Unfinished(CommandError):
    """It was asked for, and is not there yet."""

    def __init__(self, text: str) -> None:
        super().__init__(text, returncode=Code.UNFINISHED)


class Interrupted(CommandError):
    """Somebody pressed Ctrl-C."""

    def __init__(self, text: str) -> None:
        super().__init__(text, returncode=Code.INTERRUPTED)


def unknown(what: str, names: Sequence[str], known: Iterable[str]) -> Refused:
    """The refusal for names that do not exist, each with the nearest one that does."""
    candidates, said = list(known), []
    for name in names:
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
        said.append(f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name))
    return Refused(f"there is no {what} {', '.join(said)}")
