"""`maintenance`: let this machine rest, or take work again."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from agent import config, sysinfo
from agent.commands.texts import add_place_flags, jobs
from agent.errors import BadConfig, BadStateDir, NotRunning, Overruled
from agent.local_control import ask
from agent.status import RUNNING, active, on_disk, whose
from agent.wishes import ACTIVE, MAINTENANCE, leave

SUMMARY = "let this machine finish its jobs and rest, or take work again"
DESCRIPTION = """\
Takes this machine out of service, or back: with `on` it finishes the jobs that it has and takes no more.

  python -m agent maintenance on --comments "new belt" --wait    # returns when the last job has ended
  python -m agent maintenance off

It holds at once, also while the control plane is away, which hears of it as soon as it answers. Operators see it, with
the comment, and may end it as you may end theirs: the last wish wins. It outlasts a restart of the agent and of the
machine. Give the command as the user that the agent runs as, or as root. Without a running agent the wish is kept for
its next start; root cannot leave one for another user then.
"""
EPILOG = """\
The exit code is 0 when the wish holds (with --wait: when no job runs any more), 17 when somebody wanted something else
while you waited. Ctrl-C ends the waiting, not the maintenance.
"""
LONGEST_COMMENT = 1000
LOOK_SECONDS = 0.3
#: How long the control plane may take to hear of it before we say that it has not.
TELLING_SECONDS = 2.0

Known = dict[str, Any]


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("wanted", choices=("on", "off"), metavar="on|off", help="rest, or take work")
    parser.add_argument("--comments", metavar="TEXT", help="why, for operators (default: who asked for it)")
    parser.add_argument("--wait", action="store_true", help="return when no job runs any more; with off, when it works")
    add_place_flags(parser)


def run(flags: dict[str, Any]) -> None:
    wanted = MAINTENANCE if flags.pop("wanted") == "on" else ACTIVE
    comment, wait = comment_of(flags.pop("comments")), flags.pop("wait")
    place = config.find_state_dir(flags=flags, environ=os.environ)
    known = wish(place, wanted, comment)
    print(sentence(known), flush=True)  # noqa: T201
    if wait:
        while not is_reached(known, wanted):
            time.sleep(LOOK_SECONDS)
            known = look(place)
        if known["pid"] is not None or wanted == MAINTENANCE:
            print("no job runs" if wanted == MAINTENANCE else takes(known))  # noqa: T201


def comment_of(given: str | None) -> str:
    """What is said of it; who asked, unless somebody says more. Raises BadConfig for what could not be stored."""
    text = (given or "").strip()
    if len(text) > LONGEST_COMMENT or "\0" in text or text.encode(errors="replace").decode() != text:
        raise BadConfig(f"--comments has more than {LONGEST_COMMENT} characters, or one that cannot be stored")
    return text or f"asked for on the machine by {sysinfo.user()}"


def wish(place: Path, wanted: str, comment: str) -> Known:
    """Tell the agent, or leave it for its next start. Returns what is known then."""
    question = {"op": "maintenance", "requested": wanted, "comment": comment}
    try:
        return told(place, ask(place, question))
    except NotRunning:
        if not place.is_dir():
            raise BadStateDir(
                f"there is no state directory {place}: no agent has been enrolled or run with it (see --state-dir)"
            ) from None
        leave(place, wanted, comment)
    try:
        # One that has just started may have read its wishes before.
        return told(place, ask(place, question))
    except NotRunning:
        return on_disk(place)


def told(place: Path, known: Known) -> Known:
    """What is known once the control plane has heard it, or after a moment."""
    deadline = time.monotonic() + TELLING_SECONDS
    while known["wish_untold"] and known["pid"] is not None and time.monotonic() < deadline:
        time.sleep(0.1)
        known = look(place)
    return known


def look(place: Path) -> Known:
    try:
        return ask(place, {"op": "status"})
    except NotRunning:
        return on_disk(place)


def sentence(known: Known) -> str:
    """What holds now."""
    if known["pid"] is None:
        return f"no agent runs; {known['requested']} is wanted from its next start on"
    running = len(active(known))
    holds = {
        MAINTENANCE: f"maintenance: no new jobs, {jobs(running)} still to end"
        if running
        else "maintenance: no job runs",
        ACTIVE: "active" if known["wish_untold"] else f"active: {takes(known)}",
    }.get(known["requested"], f"{known['requested']} is wanted{whose(known)}, which maintenance does not change")
    if not known["wish_untold"]:
        return holds
    why = f" ({known['not_working']})" if known["not_working"] else ""
    return f"{holds}; the control plane has not heard it yet{why}, and will as soon as it answers"


def takes(known: Known) -> str:
    """Whether it takes jobs, which something else than maintenance may keep it from."""
    return f"it takes no jobs yet: {known['not_working']}" if known["not_working"] else "it takes jobs"


def is_reached(known: Known, wanted: str) -> bool:
    """Whether nothing is left to wait for. Raises Overruled when that will not come."""
    if known["requested"] != wanted and known["registered"]:  # else it may not have heard yet what is wanted
        raise Overruled(f"{known['requested']} is wanted meanwhile{whose(known)}")
    if known["pid"] is None:
        return wanted == ACTIVE or not any(job["state"] == RUNNING for job in known["jobs"])
    return known["requested"] == wanted and (wanted == ACTIVE or not active(known))
