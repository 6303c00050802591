"""Words and flags that several commands share."""

from __future__ import annotations

import argparse

URL_HELP = "address of the control plane, such as https://edge.example.com"
STATE_DIR_HELP = "where held jobs and the enrolment live (default: ~/.local/state/edgecontrol-agent)"


def jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


def add_place_flags(parser: argparse.ArgumentParser) -> None:
    """By what a command finds the agent of this machine, as that found its own state directory."""
    parser.add_argument("--state-dir", metavar="DIR", help=STATE_DIR_HELP)
    parser.add_argument("--config", metavar="FILE", help="the agent's TOML file, if that names the state directory")


def add_certificate_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--ca-bundle", metavar="FILE", help="trust the certificates in this file instead of the usual ones")
    flag("--client-certificate", metavar="FILE", help="show this certificate to a gateway that asks for one")
    flag("--client-key", metavar="FILE", help="its key (default: in the same file)")
