"""`install-service`: have systemd run the agent, from now on and after every start of the machine."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

SUMMARY = "have systemd run the agent, now and after every start of the machine"
DESCRIPTION = """\
Writes a systemd unit for the agent and starts it. Enrol the machine first, then, as root:

  python -m agent install-service --run-as edge --state-dir /var/lib/edgecontrol-agent
  python -m agent install-service --config /etc/edgecontrol-agent.toml
  python -m agent install-service --dry-run

Without root, for a service of your own (and `loginctl enable-linger` to keep it when you log out):

  python -m agent install-service --user
"""
EPILOG = """\
The unit stops and restarts the agent alone: its tasks go on, and the next start takes them over. It is restarted when
it fails or hangs, but not after exit codes that somebody has to see to (8, 10). It has no token in it: that stays in
its file, or in the file of --environment-file (EDGE_AGENT_TOKEN=..., mode 0600).

Settings come from the enrolment, --config and --environment-file, and are checked before anything is written. Of your
shell's variables, HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY are kept for the service, in a file beside the unit
that nobody else can read and that a shell without them leaves as it is; no other one reaches it.

Own changes go into a drop-in: `systemctl edit edgecontrol-agent`.

Give the command again after an upgrade or with other flags: it replaces its own unit, and refuses to touch another.
"""
UNIT = "edgecontrol-agent"


def add_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    add_unit_flags(parser)
    flag(
        "--run-as", metavar="USER", help="the system user of the agent and its tasks (default: who gives this command)"
    )
    flag("--config", metavar="FILE", help="TOML file with the agent's settings")
    flag("--environment-file", metavar="FILE", help="file with variables for the agent, such as HTTPS_PROXY=...")
    flag("--state-dir", metavar="DIR", help="where the machine's enrolment is (default: in the home of --run-as)")
    flag("--allow-sudo", action="store_true", help="let tasks gain privileges: leaves out what would keep sudo from it")
    flag("--dry-run", action="store_true", help="print the unit, and do nothing")


def add_unit_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--unit", metavar="NAME", default=UNIT, help=f"what the unit is called (default: {UNIT})")
    flag("--user", action="store_true", help="a unit of your own manager instead of the machine's")


def run(flags: dict[str, Any]) -> None:
    from agent import systemd_install, systemd_unit

    service = systemd_install.service_of(flags, environ=os.environ)
    if flags["dry_run"]:
        sys.stdout.write(systemd_unit.text(service))
        return
    for line in systemd_install.install(service):
        print(line)  # noqa: T201
    if service.run_as == "root":
        print("the agent runs as root, and so do its tasks: --run-as USER gives them less")  # noqa: T201
    print(f"see how it does: {' '.join([*service.systemctl, 'status', service.name])}")  # noqa: T201
