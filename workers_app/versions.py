"""When an agent counts as outdated: its (major, minor) is below the control plane's own. Nothing is refused here."""

from __future__ import annotations

import re

from workers_app.models import Worker

_RELEASE = re.compile(r"v?([0-9]{1,9})\.([0-9]{1,9})(?![0-9])")


def is_outdated(agent_version: str, server_version: str) -> bool:
    """An agent whose version is empty or unreadable is not called outdated: nobody knows."""
    agent, server = _release(agent_version), _release(server_version)
    return agent is not None and server is not None and agent < server


def outdated_versions(server_version: str) -> list[str]:
    """Those of the stored agent versions that are outdated; a worker is outdated if its version is among them."""
    stored = Worker.objects.order_by("agent_version").values_list("agent_version", flat=True).distinct()
    return [version for version in stored if is_outdated(version, server_version)]


def _release(version: str) -> tuple[int, int] | None:
    found = _RELEASE.match(version)
    return (int(found[1]), int(found[2])) if found else None
