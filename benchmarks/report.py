"""What every benchmark prints: the machine's facts, a table for people, and the same figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg

_Value = TypeVar("_Value")


def say(text: str) -> None:
    """One line of progress, on stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr, flush=True)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


def comma_list(kind: Callable[[str], _Value]) -> Callable[[str], list[_Value]]:
    """For argparse: `1,100` as [1, 100]."""

    def read(text: str) -> list[_Value]:
        return [kind(part) for part in text.split(",") if part]

    read.__name__ = f"comma-separated {kind.__name__}"
    return read


def machine() -> dict[str, Any]:
    """What the figures depend on, but for PostgreSQL: see `postgresql`."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def postgresql(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """Its version, and the settings that decide what a commit costs."""
    names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
    return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in names}  # type: ignore[index]


def command() -> str:
    """The command line as typed, without this machine's paths."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]


def table(rows: Sequence[Sequence[object]], *, head: Sequence[str]) -> str:
    """Text columns to the left, figures to the right."""
    cells = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    numeric = [all(not isinstance(row[index], str) for row in rows) for index in range(len(head))]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells)])


def table_of(
    lines: Sequence[dict[str, Any]], columns: dict[str, str], *, shown: Callable[[object], object] = lambda value: value
) -> str:
    """A table of figures: `columns` says for each heading which of a line's figures stands there."""
    return table([[shown(line.get(key)) for key in columns.values()] for line in lines], head=list(columns))


def facts(values: dict[str, Any]) -> str:
    """One line each, for below the table."""
    width = max(map(len, values))
    return "\n".join(f"{name.replace('_', ' ').ljust(width)}  {_shown(value)}" for name, value in values.items())


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
        say(f"figures written to {path}")


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
