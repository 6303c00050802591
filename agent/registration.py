"""The first word to the control plane: who may be kept waiting for, and which refusals end the agent at once."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.client import NOT_OURS, ApiError, Client
from agent.errors import AgentError, BadConfig, BadToken, NameTaken, Outdated, Unreachable, WrongUrl
from agent.files import read_json, write
from agent.obstacles import Obstacle
from agent.retry import Backoff, is_repeatable

log = logging.getLogger("agent")


#: How often an address that never led to a control plane is tried: one lost answer proves nothing.
FIRST_TRIES = 3


class Registration:
    """Registers, and remembers that this address once led to a control plane.

    Where it never did, a wrong address is the likelier reason for silence, and the agent ends with a line that says so.
    Where it did, the control plane is merely away, and the agent waits for it.
    """

    def __init__(self, *, client: Client, url: str, token_name: str | None, state_dir: Path) -> None:
        self.client = client
        self.url = url
        self.name = token_name
        self._state_dir = state_dir

    def until_accepted(self, body: dict[str, Any], *, pause: Callable[[float], bool]) -> dict[str, Any] | None:
        """The answer; None when a pause says that a signal came. Raises the AgentError that a refusal means."""
        backoff = Backoff()
        silences = 0
        while True:
            try:
                answer = self.client.register(body)
            except ApiError as error:
                refusal = why_not(
                    error, url=self.url, name=self.name, known=is_known(self.url, state_dir=self._state_dir)
                )
                silences += 1
                if refusal is not None and not (isinstance(refusal, Unreachable) and silences < FIRST_TRIES):
                    raise refusal from None
                if pause(backoff.next_seconds(retry_after=error.retry_after)):
                    return None
            else:
                remember(self.url, state_dir=self._state_dir)
                return answer


def is_known(url: str, *, state_dir: Path) -> bool:
    """Whether this address once led to a control plane."""
    return (read_json(state_dir / "registered") or {}).get("url") == url


def remember(url: str, *, state_dir: Path) -> None:
    """Note that this address leads to a control plane. A full disk that forgets it only costs patience later."""
    if not is_known(url, state_dir=state_dir):
        with contextlib.suppress(OSError):
            write(state_dir / "registered", json.dumps({"url": url}).encode())


def why_not(error: ApiError, *, url: str, name: str | None, known: bool) -> AgentError | None:
    """The error by which a refused registration ends the agent; None when it is worth trying again."""
    detail = " ".join(str(error.body.get("detail", "")).split())
    if error.code == "bad_token":
        return BadToken(
            f"{url} does not accept the token ({detail or 'unknown, revoked or expired'}): have a new one made with "
            "`manage.py create_worker_token NAME` on the control plane, or enrol again: `python -m agent enrol --force`"
        )
    if error.code == "name_taken":
        return NameTaken(
            f"the name {name!r} belongs to another worker: choose another --name, or none for the token's own"
        )
    if error.code == "outdated_agent":
        return Outdated(f"{url} no longer accepts this agent: {detail or 'install a newer edgecontrol'}")
    if error.status == 400 and error.code not in ("", NOT_OURS):
        return BadConfig(f"{url} does not accept the registration: {detail}")
    if known:
        return None
    if error.obstacle is not None:
        return unreachable(error, why=error.obstacle)
    if error.status is not None and not is_repeatable(error.status):
        return WrongUrl(
            f"{url} answers, but is not an EdgeControl control plane ({error.status}): check --url, "
            "which is the address without /api/v1/edge or /admin"
        )
    return None


def unreachable(error: ApiError, *, why: Obstacle) -> AgentError:
    """Tell what somebody has to mend from a machine that does not answer."""
    if not why.common:
        return why.error(str(error))
    return Unreachable(
        f"{error}, and never could be reached from here: check --url, that the control plane runs, proxy and firewall"
    )
