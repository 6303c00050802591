"""Tables for a terminal, made to fit its width; nothing is read or decided here.

Columns in which nothing stands are left out. The last column holds sentences: it takes the rest of the line, or
lines of its own. Without a terminal nothing is cut, so that other programs find everything on one line.
"""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

GAP = "  "
_NARROWEST = 8
#: Sentences that have less room than this stand beneath their row.
_ROOM_FOR_SENTENCES = 30
_INDENT = "    "


@dataclass(frozen=True)
class Column:
    title: str
    #: Never cut: it is there to be copied.
    whole: bool = False
    #: Left out first where the terminal is narrow.
    optional: bool = False


@dataclass(frozen=True)
class Painted:
    """A cell with a colour: a function that puts it around the text."""

    text: str
    paint: Callable[[str], str]


Cell = str | Painted


def lines(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], *, width: int | None) -> Iterator[str]:
    """The lines of the table, at most `width` wide where that is possible; None is any width."""
    cells = [[_painted(cell) for cell in row] for row in rows]
    shown = [i for i in range(len(columns)) if any(row[i].text for row in cells)]
    sentences = len(columns) - 1
    fixed = [i for i in shown if i != sentences]
    widths = {
        i: max(display_width(text) for text in [columns[i].title, *(row[i].text for row in cells)]) for i in fixed
    }
    if width is not None:
        _narrow(widths, columns, width)
        fixed = [i for i in fixed if i in widths]
    used = sum(widths.values()) + len(GAP) * len(fixed)
    has_sentences = sentences in shown
    beneath = width is not None and has_sentences and width - used < _ROOM_FOR_SENTENCES
    titles = [_fit(columns[i].title, widths[i]) for i in fixed]
    yield GAP.join([*titles, columns[sentences].title] if has_sentences and not beneath else titles).rstrip()
    for row in cells:
        start = GAP.join(row[i].paint(_fit(row[i].text, widths[i])) for i in fixed)
        said = row[sentences].text if has_sentences else ""
        if beneath:
            yield start.rstrip()
            yield from (_INDENT + line for line in _wrapped(said, max(_NARROWEST, (width or 0) - len(_INDENT))) if line)
        else:
            first, *more = _wrapped(said, None if width is None else width - used)
            yield (start + GAP + first).rstrip()
            yield from (" " * used + line for line in more)


def clean(text: str) -> str:
    """Without line breaks and control characters: what machines and people wrote must not steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def terminal_width(stream: object) -> int | None:
    """Columns of the terminal behind the stream; None when there is none."""
    isatty = getattr(stream, "isatty", None)
    return shutil.get_terminal_size().columns if isatty and isatty() else None


def ago(moment: datetime | None, now: datetime) -> str:
    """How long ago, in its largest unit."""
    if moment is None:
        return ""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def display_width(text: str) -> int:
    """Columns that the text takes: wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(char) else 2 if _is_wide(char) else 1 for char in text)


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in "WF"


def _painted(cell: Cell) -> Painted:
    text, paint = (cell, str) if isinstance(cell, str) else (cell.text, cell.paint)
    return Painted(clean(text), paint)


def _narrow(widths: dict[int, int], columns: Sequence[Column], width: int) -> None:
    """Leave out columns, then cut the widest, until the rest fits."""

    def too_wide() -> bool:
        return sum(widths.values()) + len(GAP) * (len(widths) - 1) > width

    for i in [i for i in widths if columns[i].optional]:
        if too_wide():
            del widths[i]
    while too_wide():
        able = [i for i in widths if not columns[i].whole and widths[i] > _NARROWEST]
        if not able:
            return
        widths[max(able, key=widths.__getitem__)] -= 1


def _fit(text: str, width: int) -> str:
    """The text in exactly so many columns."""
    if display_width(text) > width:
        while text and display_width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - display_width(text))


def _wrapped(text: str, width: int | None) -> list[str]:
    return [text] if width is None or not text else textwrap.wrap(text, width)
