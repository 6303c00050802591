"""What `airflow edgecontrol` does when one of its commands is called: lists, operations, and who is asking.

Whom an operation is for is found out here; what it does, and to whom it can be done, is decided by the control plane.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from airflow_bridge.cli import access, display
from airflow_bridge.cli.display import Row
from airflow_bridge.cli.endings import Code, Failed, note, run
from airflow_bridge.cli.fleet_api import Answer, FleetApi
from airflow_bridge.cli.table import Filter, Kind, Operation

#: Of lists that only grow, unless somebody wants more.
NEWEST = 50
#: As many as are shown in a question.
NAMES_SHOWN = 20
#: Among so many names the nearest to a wrong one is looked for.
MOST_COMPARED = 5000


def show_list(args: argparse.Namespace, kind: Kind) -> None:
    """`airflow edgecontrol list-...`."""

    def command(api: FleetApi) -> Code:
        most = args.limit or (None if kind.countable else NEWEST)
        found = api.rows(kind, _asked(args, kind.filters))
        rows = list(islice(found, most))
        display.show(rows, args.output, display.COLUMNS[kind.path])
        if most and len(rows) == most and next(found, None) is not None:
            note(f"there are more than these {len(rows)}: --limit N shows more of them")
        return Code.DONE

    with_api(args, command)


def operate(args: argparse.Namespace, kind: Kind, operation: Operation) -> None:
    """`airflow edgecontrol <operation>`: to those that are named, or to all that the filters choose."""

    def command(api: FleetApi) -> Code:
        names = _chosen(api, args, kind, operation)
        said = {each.name: text for each in operation.parameters if (text := getattr(args, each.name)) is not None}
        found = Answer([], [])
        try:
            for answer in api.operate(kind, operation.name, names, said):
                found.done.extend(answer.done)
                found.skipped.extend(answer.skipped)
        except Failed:
            # Of more than one request has names for, some may have been done.
            if found.done:
                display.show_outcome(found, args.output)
            raise
        unknown = [name for name, why in found.skipped if why == kind.unknown]
        if unknown and len(unknown) == len(names):
            raise Failed(f"there is no {kind.one} {', '.join(_nearest(api, kind, unknown))}")
        display.show_outcome(found, args.output)
        return Code.SKIPPED if found.skipped else Code.DONE

    with_api(args, command)


def whoami(args: argparse.Namespace) -> None:
    """`airflow edgecontrol whoami`."""

    def command(api: FleetApi) -> Code:
        display.show([{**api.get("me"), "control_plane": api.access.url}], args.output, display.CALLER)
        return Code.DONE

    with_api(args, command)


def with_api(args: argparse.Namespace, command: Callable[[FleetApi], Code]) -> None:
    """Run it with the control plane that the flags and settings name, and exit with its code."""

    def all_of_it() -> Code:
        # It would tell each request.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        with FleetApi(access.flags(args)) as api:
            return command(api)

    run(all_of_it)


# -- whom it is for ---------------------------------------------------------------


def _chosen(api: FleetApi, args: argparse.Namespace, kind: Kind, operation: Operation) -> list[str]:
    """The names, given or found. Raises Failed when it is not clear who is meant, or nobody is."""
    names, asked = list(dict.fromkeys(args.names)), _asked(args, kind.choices)
    ways = [bool(names), bool(asked), args.all]
    if sum(ways) != 1:
        flags = ", ".join(f"--{each.name.replace('_', '-')}" for each in kind.choices)
        what = "they exclude each other" if any(ways) else f"say which {kind.many}"
        raise Failed(f"{what}: names, or one or more of {flags}, or --all", Code.WRONG_USAGE)
    if names:
        return names
    rows = list(api.rows(kind, {**kind.meant, **asked}))
    if not rows:
        raise Failed(f"no {kind.one} is like that")
    if (len(rows) > 1 or operation.grave) and not args.yes:
        _ask(rows, kind, operation)
    return [str(row[kind.named_by]) for row in rows]


def _asked(args: argparse.Namespace, filters: Sequence[Filter]) -> dict[str, str]:
    """The filters that were given, as the API's query."""
    asked = {}
    for each in filters:
        value = getattr(args, each.name)
        if isinstance(value, bool):
            asked[each.name] = str(value).lower()
        elif value is not None:
            asked[each.name] = ",".join(value) if each.several else value
    return asked


def _ask(rows: Sequence[Row], kind: Kind, operation: Operation) -> None:
    number = f"{len(rows)} {kind.many if len(rows) > 1 else kind.one}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failed(f"this would change {number}, and there is no terminal to ask at: repeat it with --yes")
    note(f"{operation.label}. {operation.help}")
    for row in rows[:NAMES_SHOWN]:
        note(f"  {row[kind.named_by]}  {row.get('state', '')}")
    if len(rows) > NAMES_SHOWN:
        note(f"  and {len(rows) - NAMES_SHOWN} more")
    note(f"Go on with {number}? [y/N] ", ending="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Failed("nothing was changed")


def _nearest(api: FleetApi, kind: Kind, names: Sequence[str]) -> Iterator[str]:
    """Each with the nearest that exists, if one is near."""
    known = [str(row[kind.named_by]) for row in islice(api.rows(kind, {}), MOST_COMPARED)]
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        yield f"{name!r} (did you mean {near[0]!r}?)" if near else repr(name)
