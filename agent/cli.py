"""The commands of the agent, and how each error becomes one line and one exit code; no command is carried out here."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, Protocol

from agent import errors
from agent.commands import doctor, enrol, install_service, maintenance, run, status, stop, uninstall_service, version
from agent.launch import as_typed


class Command(Protocol):
    """A module of `agent.commands`, named after the command."""

    #: One line for the list of commands.
    SUMMARY: str
    DESCRIPTION: str
    EPILOG: str

    def add_flags(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, flags: dict[str, Any]) -> int | None:
        """Carry it out. Returns an exit code other than 0, or raises the AgentError that has it."""


#: In the order of the help.
COMMANDS: dict[str, Command] = {
    "enrol": enrol,
    "run": run,
    "status": status,
    "stop": stop,
    "maintenance": maintenance,
    "doctor": doctor,
    "install-service": install_service,
    "uninstall-service": uninstall_service,
    "version": version,
}
#: As argparse says it.
UNKNOWN = "unrecognized arguments: "
NO_COMMAND = "the following arguments are required: COMMAND"
WRONG_COMMAND = re.compile(r"argument COMMAND: invalid choice: '?([^' ]*)'?")
#: What somebody has put on the command line by mistake must not be printed as well.
TOKEN = re.compile(r"\bece?_\w+_")


class Parser(argparse.ArgumentParser):
    """Refuses unknown flags with the nearest right one, in one line and with the exit code of bad settings."""

    def error(self, message: str) -> NoReturn:
        if TOKEN.search(message):
            message = "a token is never given on a command line, where others can read it: see --help"
        elif message == NO_COMMAND:
            message = f"which command? There are {', '.join(COMMANDS)}: see --help"
        elif wrong := WRONG_COMMAND.match(message):
            message = f"there is no command {wrong[1]}{nearest(wrong[1], COMMANDS)}"
        elif message.startswith(UNKNOWN):
            unknown = message.removeprefix(UNKNOWN).split(" ")[0].split("=")[0]
            known = self.flags()
            message = f"{unknown} is not known{nearest(unknown, known)}"
            if unknown in known:
                message = f"{unknown} is a flag of {', '.join(known[unknown])}, not of this command: see --help"
        print(f"edge-agent: {message}", file=sys.stderr)  # noqa: T201
        raise SystemExit(errors.BadConfig.exit_code)

    def flags(self) -> dict[str, list[str]]:
        """Every flag, and the commands that have it."""
        known: dict[str, list[str]] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for command, parser in action.choices.items():
                    for flag in parser._option_string_actions:
                        known.setdefault(flag, []).append(command)
        return known


def nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ": see --help"


def exit_codes() -> str:
    lines = ["  0    drained, stopped or left, as asked; or enrolled"]
    lines += [
        f"  {error.exit_code:<4} {error.summary}" for error in sorted(errors.ALL, key=lambda error: error.exit_code)
    ]
    return "Exit codes:\n" + "\n".join(lines)


def build_parser() -> Parser:
    parser = Parser(prog="edge-agent", **texts(run.DESCRIPTION, exit_codes()))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about = texts(command.DESCRIPTION, command.EPILOG, exit_codes())
        command.add_flags(commands.add_parser(name, help=command.SUMMARY, **about))
    return parser


def texts(description: str, *epilog: str) -> dict[str, Any]:
    return {
        "description": as_typed(description),
        "epilog": as_typed("\n".join(epilog)),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command; returns the exit code."""
    flags = vars(build_parser().parse_args(argv))
    command = COMMANDS[flags.pop("command")]
    try:
        return command.run(flags) or 0
    except KeyboardInterrupt:
        return ended_by(errors.Interrupted("interrupted"))
    except errors.AgentError as error:
        return ended_by(error)


def ended_by(error: errors.AgentError) -> int:
    print(f"edge-agent: {as_typed(str(error))}", file=sys.stderr)  # noqa: T201
    return error.exit_code
