"""How single settings are read; which settings there are is `agent.config`'s. Each reader raises ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.tokens import looks_like_a_token

#: The agent's own variables, which tasks never see.
PREFIX = "EDGE_AGENT_"
ROOM = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>%|[KMGT]B)", re.IGNORECASE)
UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Room:
    """How much must be free: a share of the whole, or so many bytes."""

    share: float = 0.0
    bytes: int = 0

    def needed(self, total: int) -> float:
        """In bytes, of so many."""
        return max(self.share * total, self.bytes)

    def is_left(self, *, free: int, total: int) -> bool:
        return free >= self.needed(total)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    return value.strip()


def file(value: Any) -> str:
    name = text(value)
    if looks_like_a_token(name):  # it must be neither shown nor become the name of a file
        raise ValueError("must name a file, not be a token itself")
    return name


def names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be names, separated by commas")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def whole(value: Any) -> int | None:
    """The whole number that it is, or is written as; None for everything else, True and False too."""
    try:
        return None if isinstance(value, bool) else int(str(value))
    except ValueError:
        return None


def positive(value: Any) -> int:
    number = whole(value)
    if number is None or number < 1:
        raise ValueError("must be a whole number from 1")
    return number


def seconds(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf") or isinstance(value, bool):
        raise ValueError("must be a number of seconds from 0")
    return number


def port(value: Any) -> int:
    number = whole(value)
    if number is None or not 0 <= number <= 65535:
        raise ValueError("must be a port, or 0 for none")
    return number


def room(value: Any) -> Room:
    found = ROOM.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or (found["unit"] == "%" and float(found["number"]) > 100):
        raise ValueError("must be a share such as 5% or an amount such as 2GB")
    number, unit = float(found["number"]), found["unit"].upper()
    return Room(share=number / 100) if unit == "%" else Room(bytes=int(number * UNITS[unit]))


def function(value: Any) -> str:
    if not isinstance(value, str) or not FUNCTION.fullmatch(value.strip()):
        raise ValueError("must name a function as module:function")
    return value.strip()


def environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("must be a table of variables and their texts")
    for name in value:
        if not name or "=" in name or name.startswith(PREFIX):
            raise ValueError(f"cannot set {name or 'a variable without a name'} for tasks")
    return dict(value)


def one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return str(value)

    return read
