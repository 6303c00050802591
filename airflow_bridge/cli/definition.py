"""Which commands `airflow edgecontrol` has and what each takes; what they do is loaded only when one is called.

Every list and every operation comes out of the table; the rest are those that hand out a credential, and the way here
from edge3.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable
from typing import Any

from airflow.cli.cli_config import ARG_OUTPUT, ARG_YES, ActionCommand, Arg, GroupCommand, lazy_load_command

from airflow_bridge.cli.table import Filter, Operation, kinds

_COMMANDS = "airflow_bridge.cli.commands"
ARG_URL = Arg(("--url",), help="the control plane's address (default: \\[edgecontrol] control_plane_url)")
ARG_TOKEN_FILE = Arg(
    ("--token-file",),
    metavar="FILE",
    help="file with a personal token (default: EDGECONTROL_TOKEN_FILE, then \\[edgecontrol] api_token_file)",
)
ACCESS = (ARG_URL, ARG_TOKEN_FILE)
_HELP = "EdgeControl: look after edge machines, their jobs and queues"
_DESCRIPTION = (
    "What operators do with EdgeControl's control plane, from wherever Airflow is installed; it needs no access to any "
    "database. `whoami` tries the address and the token."
)


def get_commands() -> list[GroupCommand]:
    """Airflow calls this, named in the provider info, whenever it parses a command line."""
    found = [*_lists(), *_operations(), *_single(), *_migration()]
    return [GroupCommand(name="edgecontrol", help=_HELP, description=_DESCRIPTION, subcommands=found)]


def _lists() -> Iterable[ActionCommand]:
    for kind in kinds():
        default = "all" if kind.countable else "50"
        yield ActionCommand(
            name=f"list-{kind.path}",
            help=f"List {kind.many}",
            func=_calling("show_list", kind),
            args=(
                *(_filter(each) for each in kind.filters),
                Arg(("--limit",), type=_count, help=f"so many at most (default: {default})", metavar="N"),
                ARG_OUTPUT,
                *ACCESS,
            ),
        )


def _operations() -> Iterable[ActionCommand]:
    for kind in kinds():
        for operation in kind.operations:
            yield ActionCommand(
                name=operation.name.replace("_", "-"),
                help=_text(operation.help),
                func=_calling("operate", kind, operation),
                args=(
                    Arg(
                        ("names",),
                        nargs="*",
                        metavar="NAME" if kind.named_by == "name" else kind.named_by.upper(),
                        help=_text(kind.names),
                    ),
                    *(_filter(each) for each in kind.choices),
                    Arg(("--all",), action="store_true", help=f"all {kind.many}"),
                    *_parameters(operation),
                    ARG_YES,
                    ARG_OUTPUT,
                    *ACCESS,
                ),
            )


def _single() -> Iterable[ActionCommand]:
    queues = Arg(("--queues",), metavar="QUEUES", help="queues it may serve, separated by commas (default: every one)")
    team = Arg(("--team",), default="", help="Airflow team that it works for")
    file = Arg(("--file",), metavar="FILE", help="write the token to this new file, which only you can read")
    yield ActionCommand(
        name="whoami",
        help="Say as whom the control plane knows you, and what you may do",
        func=lazy_load_command(f"{_COMMANDS}.whoami"),
        args=(ARG_OUTPUT, *ACCESS),
    )
    yield ActionCommand(
        name="create-enrolment-token",
        help="Make a one-time token by which a machine becomes a worker host, and print it this once",
        func=lazy_load_command("airflow_bridge.cli.machines.create_enrolment_token"),
        args=(
            Arg(("name",), metavar="NAME", help="how the machine will be called"),
            queues,
            team,
            Arg(("--minutes",), type=_count, default=15, help="how long the token can be used (default: 15)"),
            Arg(
                ("--replace",),
                action="store_true",
                help="the machine exists and was set up anew: it keeps its queues and team, its older tokens end",
            ),
            file,
            *ACCESS,
        ),
    )
    yield ActionCommand(
        name="create-worker",
        help="Make a worker host with a token of its own, which is written to a file",
        func=lazy_load_command("airflow_bridge.cli.machines.create_worker"),
        args=(
            Arg(("name",), metavar="NAME", help="how the machine is called"),
            queues,
            team,
            Arg(("--concurrency",), type=_count, metavar="N", help="slots that it may fill (default: its agent says)"),
            Arg(("--maintenance",), metavar="COMMENT", help="it shall rest at first, and why"),
            Arg(("--days",), type=_count, metavar="N", help="days until the token expires (default: never)"),
            Arg(
                ("--file",),
                required=True,
                metavar="FILE",
                help="write the token to this new file, which only you can read",
            ),
            *ACCESS,
        ),
    )


def _migration() -> Iterable[ActionCommand]:
    yield ActionCommand(
        name="import-edge3",
        help="Make a worker host for each worker of Airflow's own Edge provider",
        description=(
            "Reads edge3's workers from Airflow's database and makes each a worker host with its name, queues, team, "
            "slots and maintenance. Those that exist are left as they are; edge3 itself is not changed."
        ),
        func=lazy_load_command("airflow_bridge.cli.import_edge3.import_edge3"),
        args=(
            Arg(("--dry-run",), action="store_true", help="only say what would be done"),
            Arg(
                ("--tokens",),
                metavar="FOLDER",
                help="write each worker's token to a file in this folder, which only you can read "
                "(default: each machine is enrolled when its turn comes)",
            ),
            Arg(("--pattern",), metavar="GLOB", help="only those with such a name, as 'press-*'"),
            Arg(("--queue",), metavar="QUEUE", help="only those that serve this queue, or every queue"),
            ARG_OUTPUT,
            *ACCESS,
        ),
    )


def _calling(function: str, *given: Any) -> Callable[[argparse.Namespace], None]:
    """Like Airflow's own lazy loading, for a function that also needs to know what it is about."""
    load = lazy_load_command(f"{_COMMANDS}.{function}")

    def command(args: argparse.Namespace) -> None:
        load(args, *given)

    return command


def _filter(each: Filter) -> Arg:
    flag, help_text = f"--{each.name.replace('_', '-')}", _text(each.help)
    if each.yes_or_no:
        return Arg((flag,), action=argparse.BooleanOptionalAction, default=None, help=help_text)
    if each.several:
        known = f" One of {_text(', '.join(each.choices))}; may be repeated."
        return Arg((flag,), action="append", type=_one_of(each), metavar=each.name.upper(), help=help_text + known)
    return Arg((flag,), metavar=each.name.upper(), help=help_text)


def _parameters(operation: Operation) -> Iterable[Arg]:
    for each in operation.parameters:
        yield Arg(
            (f"--{each.name.replace('_', '-')}",),
            required=each.must_be_said,
            metavar=each.kind.upper(),
            help=_text(each.help),
        )


def _one_of(each: Filter) -> Callable[[str], str]:
    """The value as the API spells it; `maintenance_mode` and `maintenance-mode` need no quotes."""
    spelt = {re.sub("[ -]", "_", choice): choice for choice in each.choices}

    def read(text: str) -> str:
        choice = spelt.get(re.sub("[ -]", "_", text))
        if choice is None:
            raise argparse.ArgumentTypeError(f"{text} is none of {', '.join(each.choices)}")
        return choice

    return read


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)


def _text(text: str) -> str:
    """For Airflow's help, which takes % for a variable and a word in brackets for a colour."""
    return re.sub(r"\[(?=[a-z#/@])", r"\\[", text.replace("%", "%%"))
