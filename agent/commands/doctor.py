"""`doctor`: look at everything that this machine needs, and say what is wrong with it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from typing import Any

from agent.commands import run as run_command
from agent.errors import Unwell

SUMMARY = "check this machine, its settings and its way to the control plane, and say what to do"
DESCRIPTION = """\
Looks at what the agent and its tasks need, one thing after the other, and says in one line each what it saw and, where
something is wrong, what to do about it:

  python -m agent doctor
  python -m agent doctor --json | jq '.checks[] | select(.state == "failed")'

It takes the settings of `run`, in the same places. It changes nothing, and an agent that runs goes on undisturbed. Give
the command as the user that the agent runs as.
"""
EPILOG = """\
ok: as it should be. warning: works, and somebody should know. failed: the agent or its tasks cannot work so. skipped:
could not be looked at, because of something that failed. The exit code is 0 when nothing failed, else 13.

What it looks at: settings, state directory, running agent, disk; address, proxy, DNS, certificates; the control plane,
the clock, the token, what operators want, versions, queues; Airflow's Execution API as seen from here; each task
interpreter with its Airflow, where that looks for DAGs, its providers, and its time limits against the control plane's
patience.

Colours are for terminals only, and never where NO_COLOR is set.
"""
COLOURS = {"ok": "32", "warning": "33", "failed": "1;31", "skipped": "2"}
WIDEST_CHECK = 18


def add_flags(parser: argparse.ArgumentParser) -> None:
    run_command.add_flags(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end instead of lines")


def run(flags: dict[str, Any]) -> None:
    from agent.doctor.checks import as_json, examine
    from agent.doctor.examination import Examination, Finding, State

    wants_json, findings = flags.pop("json"), list[Finding]()
    coloured = is_coloured()
    logging.getLogger("agent").addHandler(logging.NullHandler())  # what it would log is among the findings
    for finding in examine(Examination(flags=flags, environ=os.environ)):
        findings.append(finding)
        if not wants_json:
            print(line(finding.check, finding.state.value, finding.text, coloured=coloured), flush=True)  # noqa: T201
    if wants_json:
        print(json.dumps(as_json(findings), indent=2))  # noqa: T201
    bad = list(dict.fromkeys(one.check for one in findings if one.state is State.FAILED))
    if bad:
        raise Unwell(f"not all is well: {', '.join(bad)}")


def line(check: str, state: str, text: str, *, coloured: bool) -> str:
    shown = f"\x1b[{COLOURS[state]}m{state:<8}\x1b[0m" if coloured else f"{state:<8}"
    return f"{shown} {check:<{WIDEST_CHECK}} {text}"


def is_coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
