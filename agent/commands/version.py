"""`version`: what this agent is, and what it speaks."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from agent import PROTOCOL, __version__

SUMMARY = DESCRIPTION = "print the version of the agent and of its wire"
EPILOG = ""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(flags: dict[str, Any]) -> None:
    print(f"edge-agent {__version__} (wire {PROTOCOL}, Python {sys.version.split()[0]})")  # noqa: T201
