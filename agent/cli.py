"""The commands of the agent, and how each error becomes one line and one exit code; no command is carried out here."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from agent import PROTOCOL, __version__, config, errors

DESCRIPTION = """\
Takes jobs from an EdgeControl control plane over outbound HTTPS and runs them on this machine.

First enrol the machine, once: "Connect a machine" in the control plane's admin, or `manage.py create_enrolment_token`
there, gives a one-time enrolment token. Then run the agent:

  python -m agent enrol --url https://edge.example.com
  python -m agent run

Instead of enrolling, `manage.py create_worker_token NAME` on the control plane writes the machine's token to a file.
Bring the file here (mode 0600), and name it:

  python -m agent run --url https://edge.example.com --token-file worker.token
"""

SETTINGS = """\
Settings come from the flags, then the environment (EDGE_AGENT_URL for --url, and so on; EDGE_AGENT_TOKEN for the token
itself), then the TOML file of --config or EDGE_AGENT_CONFIG (url = "...", queues = ["a", "b"]), and the address and the
token at last from the machine's enrolment. A token is never given on a command line.

Signals: SIGINT (Ctrl-C) and SIGTERM drain: no new jobs, end with the last one. A second one stops the jobs: SIGTERM,
--kill-grace-seconds, SIGKILL. With --on-term leave, SIGTERM ends the agent at once; its tasks go on, and the next start
takes them over. A shutdown that an operator asks for drains as well; with a deadline, it stops the jobs that still run
then.
"""

ENROL_DESCRIPTION = """\
Turns a one-time enrolment token into this machine's own worker token, which `python -m agent run` then finds by itself.

The enrolment token comes from "Connect a machine" in the control plane's admin, or from
`manage.py create_enrolment_token` there. Without --enrolment-token-file or EDGE_AGENT_ENROLMENT_TOKEN you are asked for
it (it is not shown), or it is read from the first line of standard input:

  python -m agent enrol --url https://edge.example.com
  python -m agent enrol --url https://edge.example.com < enrolment.token
"""

ENROL_SETTINGS = """\
The machine makes its worker token itself; the secret never leaves it. If the command fails on its way, give it again
with the same enrolment token: on the same machine that is no second use.

Settings come from the flags, then the environment (EDGE_AGENT_URL for --url, and so on), then the TOML file of --config
or EDGE_AGENT_CONFIG. A token is never given on a command line.
"""

UNKNOWN = "unrecognized arguments: "
#: What somebody has put on the command line by mistake must not be printed as well.
TOKEN = re.compile(r"\bece?_\w+_")
URL_HELP = "address of the control plane, such as https://edge.example.com"
STATE_DIR_HELP = "where held jobs and the enrolment live (default: ~/.local/state/edgecontrol-agent)"


class Parser(argparse.ArgumentParser):
    """Refuses unknown flags with the nearest right one, in one line and with the exit code of bad settings."""

    def error(self, message: str) -> NoReturn:
        if TOKEN.search(message):
            message = "a token is never given on a command line, where others can read it: see --help"
        elif message.startswith(UNKNOWN):
            unknown = message.removeprefix(UNKNOWN).split(" ")[0].split("=")[0]
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
    lines = ["  0    drained, stopped or left, as asked; or enrolled"]
    lines += [
        f"  {error.exit_code:<4} {error.summary}" for error in sorted(errors.ALL, key=lambda error: error.exit_code)
    ]
    return "Exit codes:\n" + "\n".join(lines)


def build_parser() -> Parser:
    parser = Parser(prog="edge-agent", **texts(DESCRIPTION, exit_codes()))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    about = texts(ENROL_DESCRIPTION, ENROL_SETTINGS, exit_codes())
    add_enrol(commands.add_parser("enrol", help="make this machine known to a control plane, once", **about))
    about = texts(DESCRIPTION, SETTINGS, exit_codes())
    add_run(commands.add_parser("run", help="register this machine and run jobs until told to stop", **about))
    commands.add_parser("version", help="print the version of the agent and of its wire")
    return parser


def texts(description: str, *epilog: str) -> dict[str, Any]:
    return {
        "description": description,
        "epilog": "\n".join(epilog),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


def add_enrol(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--url", help=URL_HELP)
    flag("--enrolment-token-file", metavar="FILE", help="file with the enrolment token in its first line")
    flag(
        "--token-file",
        metavar="FILE",
        help="where the worker's token goes (default: worker.token in the state directory)",
    )
    flag("--state-dir", metavar="DIR", help=STATE_DIR_HELP)
    flag("--force", action="store_true", help="replace the token that this machine has")
    flag("--retry-seconds", metavar="S", help="how long to go on while the control plane is away (default: 60)")
    flag("--config", metavar="FILE", help="TOML file with these settings")


def add_run(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--url", help=URL_HELP)
    flag("--token-file", metavar="FILE", help="file with the worker's token in its first line")
    flag("--name", help="how the machine is called (default: what the token says)")
    flag("--queues", metavar="A,B", help="serve these queues (default: all that the worker is allowed)")
    flag("--concurrency", metavar="N", help="slots for jobs that run at the same time (default: 8)")
    flag("--state-dir", metavar="DIR", help=STATE_DIR_HELP)
    flag("--task-python", metavar="PYTHON", help="the interpreter that has Airflow (default: the agent's own)")
    flag("--task-start", metavar="HOW", help="'fork' from a warm process (default), or a 'fresh' interpreter per job")
    flag("--on-term", metavar="WHAT", help="what SIGTERM does: 'drain' (default) or 'leave'")
    flag("--kill-grace-seconds", metavar="S", help="between SIGTERM and SIGKILL of a job (default: 15)")
    flag("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    flag("--config", metavar="FILE", help="TOML file with these settings")


def set_up_logging(level: str) -> None:
    """Plain lines on standard error: time, level, where, what."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It would say every lost connection once more.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def run(flags: dict[str, Any]) -> None:
    from agent.worker import Worker

    settings = config.load(flags=flags, environ=os.environ)
    set_up_logging(settings.log_level)
    Worker(config=settings, environ=os.environ).run()


def enrol(flags: dict[str, Any]) -> None:
    from agent.enrol import enrol

    force = flags.pop("force")
    print(enrol(config.load_enrolment(flags=flags, force=force, environ=os.environ)))  # noqa: T201


def version(flags: dict[str, Any]) -> None:
    print(f"edge-agent {__version__} (wire {PROTOCOL}, Python {sys.version.split()[0]})")  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    flags = vars(build_parser().parse_args(argv))
    command = {"enrol": enrol, "run": run, "version": version}[flags.pop("command")]
    try:
        command(flags)
    except KeyboardInterrupt:
        return ended_by(errors.Interrupted("interrupted"))
    except errors.AgentError as error:
        return ended_by(error)
    return 0


def ended_by(error: errors.AgentError) -> int:
    print(f"edge-agent: {error}", file=sys.stderr)  # noqa: T201
    return error.exit_code
