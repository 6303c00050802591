"""What the control plane makes of an agent's version: as new as its own, outdated or refused; what follows is not here.

An outdated agent, of an earlier minor version, works. A refused one, more than two minor versions back, is given no
more jobs, and ends when those it holds have. Of an agent whose version cannot be read nobody knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from workers_app.models import Worker

#: What this control plane speaks; an agent that speaks less is outdated.
PROTOCOL = 1
#: The least that it understands.
OLDEST_PROTOCOL = 1
#: Agents of so many minor versions before the control plane's own are served.
MINORS_BACK = 2

_RELEASE = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})(?![0-9])")
Release = tuple[int, int]


class Verdict(StrEnum):
    #: As new as the control plane, or newer.
    OK = "ok"
    #: Works, and should be upgraded.
    OUTDATED = "outdated"
    #: Finishes what it holds, and ends.
    REFUSED = "refused"


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    #: What to do, for people; empty when all is well.
    text: str = ""


def judge(agent_version: str, *, server_version: str, protocol: int | None = None) -> Judgement:
    """What an agent is told of its version; an agent that does not say its protocol speaks one that is understood."""
    agent, server = _release(agent_version), _release(server_version)
    oldest = _oldest(server) if server is not None else (0, 0)
    spoken = PROTOCOL if protocol is None else protocol
    if spoken < OLDEST_PROTOCOL or (agent is not None and agent < oldest):
        since = f"{oldest[0]}.{oldest[1]}"
        text = (
            f"agent {agent_version} is too old: control plane {server_version} works with agents from {since} on. "
            "Install a newer agent and start it again"
        )
        return Judgement(Verdict.REFUSED, text)
    if spoken < PROTOCOL or (agent is not None and server is not None and agent < server):
        text = f"agent {agent_version} is older than control plane {server_version}: it works, and should be upgraded"
        return Judgement(Verdict.OUTDATED, text)
    return Judgement(Verdict.OK)


def is_outdated(agent_version: str, server_version: str) -> bool:
    """Whether it should be upgraded; so should one that is refused."""
    return judge(agent_version, server_version=server_version).verdict is not Verdict.OK


def is_refused(agent_version: str, server_version: str) -> bool:
    return judge(agent_version, server_version=server_version).verdict is Verdict.REFUSED


def outdated_versions(server_version: str) -> list[str]:
    """Those of the stored agent versions that are outdated; a worker is outdated if its version is among them."""
    stored = Worker.objects.order_by("agent_version").values_list("agent_version", flat=True).distinct()
    return [version for version in stored if is_outdated(version, server_version)]


def _oldest(server: Release) -> Release:
    """The oldest release that is served. Nobody knows how many minor versions the major one before had: it is served
    until this one has two of its own.
    """
    major, minor = server
    return (major, minor - MINORS_BACK) if minor >= MINORS_BACK else (max(0, major - 1), 0)


def _release(version: str) -> Release | None:
    found = _RELEASE.match(version)
    return (int(found[1]), int(found[2])) if found else None
