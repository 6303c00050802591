"""Whether contact with the control plane is fresh, by which the page /health goes; nothing is asked here."""

from __future__ import annotations

import time

from agent.client import Contact

#: A parked poll is answered after its wait, and a failed one is soon repeated: in twice that time something was heard.
WAITS = 2
LEAST_SECONDS = 10.0


def stale_because(contact: Contact, *, registered: bool, wait_seconds: float) -> str:
    """Why contact is not fresh; empty while it is. `wait_seconds` is how long a poll is parked."""
    why = f": {contact.trouble}" if contact.trouble else ""
    if not registered:
        return f"not registered yet{why}"
    silence = time.monotonic() - contact.last_success_at
    if silence <= max(LEAST_SECONDS, WAITS * wait_seconds):
        return ""
    return f"no answer of {contact.url} for {silence:.0f} s{why}"
