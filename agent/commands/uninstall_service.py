"""`uninstall-service`: stop the agent's systemd unit and take it away."""

from __future__ import annotations

import argparse
import os
from typing import Any

from agent.commands.install_service import add_unit_flags

SUMMARY = "stop the agent's systemd unit and take it away"
DESCRIPTION = """\
Stops the agent, and removes the unit that `install-service` has written:

  python -m agent uninstall-service
  python -m agent uninstall-service --user
"""
EPILOG = """\
Tasks that run go on without the agent, and the next `python -m agent run` takes them over; for a machine without jobs,
give `python -m agent stop --wait` first. The enrolment stays: an operator removes the worker in the control plane. A
unit from somebody else is not touched.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_unit_flags(parser)


def run(flags: dict[str, Any]) -> None:
    from agent import systemd_install

    for line in systemd_install.uninstall(flags, environ=os.environ):
        print(line)  # noqa: T201
