"""The commands of the agent, and how each error becomes one line and one exit code; no command is carried out here."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from agent import PROTOCOL, __version__, config, errors

DESCRIPTION = """\
Takes jobs from an EdgeControl control plane over outbound HTTPS and runs them on this machine.

Two settings are enough: the control plane's address and a token. The token stands for this machine; have one made with
`manage.py create_worker_token NAME` on the control plane, and copy the file here (mode 0600).

  python -m agent run --url https://edge.example.com --token-file worker.token
"""

SETTINGS = """\
Settings come from the flags, then the environment (EDGE_AGENT_URL for --url, and so on; EDGE_AGENT_TOKEN for the token
itself), then the TOML file of --config or EDGE_AGENT_CONFIG (url = "...", queues = ["a", "b"]). A token is never given
on a command line.

Signals: SIGINT (Ctrl-C) and SIGTERM drain: no new jobs, end with the last one. A second one stops the jobs: SIGTERM,
--kill-grace-seconds, SIGKILL. With --on-term leave, SIGTERM ends the agent at once; its tasks go on, and the next start
takes them over.
"""


class Parser(argparse.ArgumentParser):
    """Refuses unknown flags with the nearest right one, in one line and with the exit code of bad settings."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0].split("=")[0]
        if unknown != message:
            near = difflib.get_close_matches(unknown, self.flags(), n=1, cutoff=0.5)
            message = f"{unknown} is not known" + (f": did you mean {near[0]}?" if near else ": see --help")
        print(f"edge-agent: {message}", file=sys.stderr)  # noqa: T201
        raise SystemExit(errors.BadConfig.exit_code)

    def flags(self) -> list[str]:
        known = [flag for action in self._actions for flag in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known += [flag for parser in action.choices.values() for flag in parser.flags()]
        return known


def exit_codes() -> str:
    lines = ["  0    drained, stopped or left, as asked"]
    lines += [
        f"  {error.exit_code:<4} {error.summary}" for error in sorted(errors.ALL, key=lambda error: error.exit_code)
    ]
    return "Exit codes:\n" + "\n".join(lines)


def build_parser() -> Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog="edge-agent", description=DESCRIPTION, epilog=exit_codes(), formatter_class=raw, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="register this machine and run jobs until told to stop",
        description=DESCRIPTION,
        epilog=f"{SETTINGS}\n{exit_codes()}",
        formatter_class=raw,
        allow_abbrev=False,
    )
    flag = run.add_argument
    flag("--url", help="address of the control plane, such as https://edge.example.com")
    flag("--token-file", metavar="FILE", help="file with the worker's token in its first line")
    flag("--name", help="how the machine is called (default: what the token says)")
    flag("--queues", metavar="A,B", help="serve these queues (default: all that the worker is allowed)")
    flag("--concurrency", metavar="N", help="slots for jobs that run at the same time (default: 8)")
    flag("--state-dir", metavar="DIR", help="where held jobs live (default: ~/.local/state/edgecontrol-agent)")
    flag("--task-python", metavar="PYTHON", help="the interpreter that has Airflow (default: the agent's own)")
    flag("--task-start", metavar="HOW", help="'fork' from a warm process (default), or a 'fresh' interpreter per job")
    flag("--on-term", metavar="WHAT", help="what SIGTERM does: 'drain' (default) or 'leave'")
    flag("--kill-grace-seconds", metavar="S", help="between SIGTERM and SIGKILL of a job (default: 15)")
    flag("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    flag("--config", metavar="FILE", help="TOML file with these settings")
    commands.add_parser("version", help="print the version of the agent and of its wire")
    return parser


def set_up_logging(level: str) -> None:
    """Plain lines on standard error: time, level, where, what."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It would say every lost connection once more.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def run(arguments: argparse.Namespace) -> None:
    from agent.worker import Worker

    flags = {name: value for name, value in vars(arguments).items() if name != "command"}
    settings = config.load(flags=flags, environ=os.environ)
    set_up_logging(settings.log_level)
    Worker(config=settings, environ=os.environ).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "version":
        print(f"edge-agent {__version__} (wire {PROTOCOL}, Python {sys.version.split()[0]})")  # noqa: T201
        return 0
    try:
        run(arguments)
    except errors.AgentError as error:
        print(f"edge-agent: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0
