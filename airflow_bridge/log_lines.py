"""From stored bytes to the lines that Airflow's log reader wants; pure, and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

#: A longer line is shown in pieces, so that one endless line cannot fill an api-server.
LONGEST_LINE = 4 * 1024 * 1024


def split_lines(chunks: Iterable[bytes], *, longest: int = LONGEST_LINE) -> Iterator[str]:
    """Lines without their ends. Chunks may end anywhere, also inside a character.

    Bytes that are not UTF-8 become U+FFFD: a task may print anything, and its log must stay readable.
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
        while len(rest) > longest:
            cut = _character_border(rest, longest)
            yield rest[:cut].decode("utf-8", "replace")
            rest = rest[cut:]
    if rest:
        yield rest.decode("utf-8", "replace")


def _character_border(text: bytes, position: int) -> int:
    """The last place at or before `position` where a character begins, within UTF-8's four bytes."""
    for border in range(position, position - 4, -1):
        if text[border] & 0xC0 != 0x80:
            return border
    return position
