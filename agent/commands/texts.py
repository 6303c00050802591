"""Words that the help of several commands shares."""

from __future__ import annotations

URL_HELP = "address of the control plane, such as https://edge.example.com"
STATE_DIR_HELP = "where held jobs and the enrolment live (default: ~/.local/state/edgecontrol-agent)"
