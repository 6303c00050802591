"""`status`: what the agent of this machine is, does and holds."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

from agent import config
from agent.commands.doctor import is_coloured
from agent.commands.texts import add_place_flags, jobs
from agent.errors import AgentError, NoAnswer, NotRunning
from agent.local_control import ask
from agent.status import active, on_disk, whose

SUMMARY = "show what the agent of this machine does, its jobs, and why it takes none"
DESCRIPTION = """\
Shows the agent that runs on this machine: its state, what is wanted of it and by whom, its jobs and how far their logs
have arrived, what is still to be delivered, and why it takes no work if so.

  python -m agent status
  python -m agent status --json | jq .jobs

Without a running agent it shows what is on disk: the jobs that it has left, and what the control plane has not got yet.
Give the command as the user that the agent runs as, or as root.
"""
EPILOG = """\
The exit code is 0 when an agent runs and answers, 12 when none runs, 15 when it runs and does not answer.

Colours are for terminals only, and never where NO_COLOR is set. Into a pipe go whole lines.
"""
GOOD, WARN, BAD, BOLD = "32", "33", "31", "1"
TONES = {"idle": GOOD, "running": GOOD, "success": GOOD, "failed": BAD, "not running": BAD, "not answering": BAD}
COLUMNS = ("JOB", "ATTEMPT", "QUEUE", "SLOTS", "STATE", "FOR", "LOG", "TASK")

Known = dict[str, Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_place_flags(parser)


def run(flags: dict[str, Any]) -> None:
    as_json = flags.pop("json")
    place = config.find_state_dir(flags=flags, environ=os.environ)
    without: AgentError | None = None
    try:
        known = ask(place, {"op": "status"})
    except NotRunning as error:
        known, without = on_disk(place), error
    except NoAnswer as error:
        known, without = {**on_disk(place), "state": "not answering", "not_working": str(error)}, error
    if as_json:
        print(json.dumps(known, indent=2))  # noqa: T201
    else:
        show(known)
    if without is not None:
        raise without


def show(known: Known) -> None:
    coloured = is_coloured()
    widest = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line, tone in lines(known):
        # What others have written, a comment or a task's name, must not speak to the terminal.
        text = "".join(character if character.isprintable() else "?" for character in line)
        cut = text if widest is None or len(text) <= widest else text[: widest - 1] + "…"
        print(f"\x1b[{tone}m{cut}\x1b[0m" if coloured and tone else cut)  # noqa: T201


def lines(known: Known) -> Iterator[tuple[str, str]]:
    """Each line, and its colour."""
    where = f" at {known['url']}" if known["url"] else ""
    yield f"{known['name'] or 'this machine'}{where}", BOLD
    for label, text, tone in facts(known):
        if text:
            yield f"  {label:<13} {text}", tone
    if known["jobs"]:
        yield "", ""
        yield from table(known["jobs"])


def facts(known: Known) -> Iterator[tuple[str, str, str]]:
    running, tone = len(active(known)), TONES.get(known["state"], WARN)
    slots = f", {known['slots']['used']} of {known['slots']['of']} slots" if known["slots"]["of"] is not None else ""
    since = f", for {span(known['since_seconds'])}" if known["since_seconds"] is not None else ""
    process = f" (process {known['pid']})" if known["pid"] else ""
    yield "state", f"{known['state'].replace('_', ' ')}: {jobs(running)}{slots}{since}{process}", tone
    comment = f": {known['comment']}" if known["comment"] else ""
    untold = ", which the control plane has not heard yet" if known["wish_untold"] else ""
    asked = known["requested"] != "active" or untold
    yield "wanted", f"{known['requested']}{whose(known)}{untold}{comment}" if asked else "", WARN
    yield "not working", known["not_working"] if known["pid"] else "", BAD
    if known["pid"]:
        last = known["last_contact_seconds"]
        yield "last contact", "never" if last is None else f"{span(last)} ago", ""
    versions = known["versions"]
    told = [f"agent {versions['agent']}", f"Airflow {versions['airflow']}", f"control plane {versions['server']}"]
    yield "versions", ", ".join(text for text in told if not text.endswith(" ")), ""
    wrong = versions["verdict"] not in ("ok", "")
    yield "", f"{versions['verdict']}: {versions['text']}" if wrong else "", WARN
    reports, log_bytes = known["undelivered"]["reports"], known["undelivered"]["log_bytes"]
    parts = [f"{reports} report{'' if reports == 1 else 's'}"] * bool(reports) + [size(log_bytes) + " of logs"] * bool(
        log_bytes
    )
    yield "undelivered", ", ".join(parts), WARN if reports else ""
    yield "state in", known["state_dir"], ""


def table(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    cells = [COLUMNS, *(row_of(job) for job in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    for row, tone in zip(cells, [BOLD, *(TONES.get(job["state"], "") for job in rows)], strict=True):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield f"  {line}".rstrip(), tone


def row_of(job: dict[str, Any]) -> tuple[str, ...]:
    arrived = "sent" if job["log_shipped"] >= job["log_bytes"] else f"{size(job['log_shipped'])} sent"
    return (
        job["id"],
        str(job["attempt"]),
        job["queue"],
        str(job["slots"]),
        job["state"],
        "" if job["since_seconds"] is None else span(job["since_seconds"]),
        f"{size(job['log_bytes'])}, {arrived}" if job["log_bytes"] else "",
        job["task"],
    )


def span(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
