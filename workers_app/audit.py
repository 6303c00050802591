"""The only writer of the record of changes: who changed what, from where, what it was before, and why.

It is written in the transaction of the change itself, so there is never one without the other.
"""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from workers_app.models import Change


class ActorKind(StrEnum):
    #: Somebody in the admin or at the operator API.
    PERSON = "person"
    #: Somebody with a shell where the control plane runs.
    COMMAND = "command"
    #: An agent, about itself.
    MACHINE = "machine"
    #: Nobody: the control plane by itself, or a machine's own thresholds.
    AUTOMATIC = "automatic"


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who does something, and from where."""

    kind: ActorKind
    name: str
    origin: str = ""

    @classmethod
    def of_request(cls, request: HttpRequest) -> Actor:
        """The logged-in person behind a request of the admin or the operator API."""
        return cls(kind=ActorKind.PERSON, name=request.user.get_username(), origin=client_address(request))

    @classmethod
    def of_command(cls) -> Actor:
        """The user of the operating system who runs a management command."""
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = str(os.getuid())
        return cls(kind=ActorKind.COMMAND, name=name, origin=platform.node())


AUTOMATIC = Actor(kind=ActorKind.AUTOMATIC, name="control plane")


def client_address(request: HttpRequest) -> str:
    """Where a request comes from. Only as many entries of X-Forwarded-For are believed as there are own proxies."""
    proxies = settings.EDGECONTROL.proxies
    hops = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
    if proxies and hops:
        return str(hops[-min(proxies, len(hops))])
    return str(request.META.get("REMOTE_ADDR", ""))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One change of one subject. `before` and `after` may name what did not change; that is left out."""

    action: str
    kind: str
    id: object
    name: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None


def record(entries: Iterable[Entry], *, by: Actor, comment: str = "") -> None:
    """Write down changes that are being made in the present transaction."""
    rows = []
    for entry in entries:
        before, after = entry.before or {}, entry.after or {}
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        rows.append(
            Change(
                actor_kind=by.kind,
                actor=by.name,
                origin=by.origin,
                action=entry.action,
                subject_kind=entry.kind,
                subject_id=str(entry.id),
                subject=entry.name,
                before={name: _json(before[name]) for name in names if name in before},
                after={name: _json(after[name]) for name in names if name in after},
                comment=comment,
            )
        )
    Change.objects.bulk_create(rows)


def _json(value: Any) -> Any:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
