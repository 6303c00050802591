"""`enrol`: make this machine known to a control plane, once."""

from __future__ import annotations

import argparse
import os
from typing import Any

from agent import config
from agent.commands.texts import STATE_DIR_HELP, URL_HELP, add_certificate_flags
from agent.launch import as_typed

SUMMARY = "make this machine known to a control plane, once"
DESCRIPTION = """\
Turns a one-time enrolment token into this machine's own worker token, which `python -m agent run` then finds by itself.

The enrolment token comes from "Connect a machine" in the control plane's admin, or from
`manage.py create_enrolment_token` there. Without --enrolment-token-file or EDGE_AGENT_ENROLMENT_TOKEN you are asked for
it (it is not shown), or it is read from the first line of standard input:

  python -m agent enrol --url https://edge.example.com
  python -m agent enrol --url https://edge.example.com < enrolment.token
"""
EPILOG = """\
The machine makes its worker token itself; the secret never leaves it. If the command fails on its way, give it again
with the same enrolment token: on the same machine that is no second use.

The way out may be a proxy (HTTPS_PROXY, NO_PROXY). What --ca-bundle and --client-certificate name is remembered for
`run`.

Settings come from the flags, then the environment (EDGE_AGENT_URL for --url, and so on), then the TOML file of --config
or EDGE_AGENT_CONFIG. A token is never given on a command line.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
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
    add_certificate_flags(parser)
    flag("--config", metavar="FILE", help="TOML file with these settings")


def run(flags: dict[str, Any]) -> None:
    from agent.enrol import enrol

    force = flags.pop("force")
    print(as_typed(enrol(config.load_enrolment(flags=flags, force=force, environ=os.environ))))  # noqa: T201
