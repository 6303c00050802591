"""`run`: take jobs until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from agent import config
from agent.commands.texts import STATE_DIR_HELP, URL_HELP, add_certificate_flags
from agent.errors import AgentError
from agent.launch import as_typed
from agent.log_lines import set_up_logging

SUMMARY = "register this machine and run jobs until told to stop"
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
EPILOG = """\
Settings come from the flags, then the environment (EDGE_AGENT_URL for --url, and so on; EDGE_AGENT_TOKEN for the token
itself), then the TOML file of --config or EDGE_AGENT_CONFIG (url = "...", queues = ["a", "b"]), and the address and the
token at last from the machine's enrolment. A token is never given on a command line.

Signals: SIGINT (Ctrl-C) and SIGTERM drain: no new jobs, end with the last one. A second one stops the jobs: SIGTERM,
--kill-grace-seconds, SIGKILL. With --on-term leave, SIGTERM ends the agent at once; its tasks go on, and the next start
takes them over. A shutdown that an operator asks for drains as well; with a deadline, it stops the jobs that still run
then.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--url", help=URL_HELP)
    flag("--token-file", metavar="FILE", help="file with the worker's token in its first line")
    flag("--name", help="how the machine is called (default: what the token says)")
    flag("--queues", metavar="A,B", help="serve these queues (default: all that the worker is allowed)")
    flag("--concurrency", metavar="N", help="slots for jobs that run at the same time (default: 8)")
    flag("--state-dir", metavar="DIR", help=STATE_DIR_HELP)
    flag("--task-python", metavar="PYTHON", help="the interpreter that has Airflow (default: the agent's own)")
    flag("--task-start", metavar="HOW", help="'fork' from a warm process (default), or a 'fresh' interpreter per job")
    flag("--task-user", metavar="USER", help="the system user that tasks run as (default: the agent's own)")
    flag("--on-term", metavar="WHAT", help="what SIGTERM does: 'drain' (default) or 'leave'")
    flag("--kill-grace-seconds", metavar="S", help="between SIGTERM and SIGKILL of a job (default: 15)")
    add_certificate_flags(parser)
    flag("--http-port", metavar="PORT", help="serve /health, /status.json and /metrics on loopback (default: 0, off)")
    flag("--extended-sysinfo", metavar="MODULE:FUNCTION", help="a function that tells more about this machine")
    flag("--min-free-disk", metavar="ROOM", help="with less than this, such as 5%% or 2GB, rest (default: do not look)")
    flag("--min-free-memory", metavar="ROOM", help="the same for memory")
    flag("--log-level", metavar="LEVEL", help="debug, info (default), warning or error")
    flag("--log-format", metavar="FORMAT", help="text (default), or json: one object per line")
    flag("--config", metavar="FILE", help="TOML file with these settings")


def run(flags: dict[str, Any]) -> int:
    from agent.worker import Worker

    settings = config.load(flags=flags, environ=os.environ)
    set_up_logging(settings.log_level, log_format=settings.log_format)
    try:
        Worker(config=settings, environ=os.environ).run()
    except AgentError as error:
        if settings.log_format != "json":
            raise
        logging.getLogger("agent").critical("%s", as_typed(str(error)), extra={"exit_code": error.exit_code})
        return error.exit_code
    return 0
