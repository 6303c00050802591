"""Words and flags that several commands share."""

from __future__ import annotations

import argparse

URL_HELP = "address of the control plane, such as https://edge.example.com"
STATE_DIR_HELP = "where held jobs and the enrolment live (default: ~/.local/state/edgecontrol-agent)"


def add_certificate_flags(parser: argparse.ArgumentParser) -> None:
    flag = parser.add_argument
    flag("--ca-bundle", metavar="FILE", help="trust the certificates in this file instead of the usual ones")
    flag("--client-certificate", metavar="FILE", help="show this certificate to a gateway that asks for one")
    flag("--client-key", metavar="FILE", help="its key (default: in the same file)")
