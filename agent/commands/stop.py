"""`stop`: let the agent of this machine end."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from agent import config, state_dir
from agent.commands.texts import add_place_flags, jobs
from agent.files import read_json
from agent.local_control import FILE, ask
from agent.status import active

SUMMARY = "let the agent of this machine finish its jobs and end"
DESCRIPTION = """\
Lets the agent that runs on this machine end: it takes no more jobs, and ends with the last one that it has.

  python -m agent stop                   # returns at once
  python -m agent stop --wait            # returns when the agent has ended
  python -m agent stop --force --wait    # stops the jobs: SIGTERM, --kill-grace-seconds of `run`, SIGKILL

Airflow retries the tasks of stopped jobs, if they have retries left. Give the command as the user that the agent runs
as, or as root. Where systemd starts the agent, `systemctl stop` leaves the tasks running for the next start instead.
"""
EPILOG = """\
The exit code is 0 when the agent was told (with --wait: has ended), 12 when none runs. Ctrl-C ends the waiting only.
"""
LOOK_SECONDS = 0.2


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="return when the agent has ended")
    parser.add_argument("--force", action="store_true", help="do not wait for the jobs: stop them")
    add_place_flags(parser)


def run(flags: dict[str, Any]) -> None:
    wait, force = flags.pop("wait"), flags.pop("force")
    place = config.find_state_dir(flags=flags, environ=os.environ)
    known = ask(place, {"op": "stop", "force": force})
    left = active(known)
    after = f", stops {jobs(len(left))} and ends" if force else f" and ends with the last of {jobs(len(left))}"
    if left and not force and not known["registered"]:
        after = f" and ends; the next start takes {jobs(len(left))} over, since the control plane cannot be told"
    print(f"the agent takes no more jobs{after if left else ' and ends'}", flush=True)  # noqa: T201
    if wait:
        while not has_ended(place, pid=known["pid"]):
            time.sleep(LOOK_SECONDS)
        print("the agent has ended")  # noqa: T201


def has_ended(place: Path, *, pid: int) -> bool:
    """Whether that process is gone, also if another agent uses the directory by now."""
    return not state_dir.in_use(place) or (read_json(place / FILE) or {}).get("pid", pid) != pid
