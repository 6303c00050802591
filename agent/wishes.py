"""What people and thresholds on this machine want of its agent: kept on disk until the control plane has heard it.

The last wish wins, and what happens by itself never overrules what somebody asked for. The control plane decides by the
same rule (`workers_app/wishes.py` there); here it holds from the first moment, also while nobody answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from agent import sysinfo
from agent.errors import BadStateDir
from agent.files import read_json, write
from agent.state_dir import is_ours, not_ours

log = logging.getLogger("agent.wishes")

FILE = "wishes.json"
ACTIVE, MAINTENANCE = "active", "maintenance"
OPERATOR, MACHINE, AUTOMATIC = "operator", "machine", "automatic"
#: A machine that seems to have been off for longer has rather had its clock set.
LONGEST_OFF_SECONDS = 30 * 86400.0


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of the agent: active, maintenance or shutdown; by whom, and why."""

    requested: str = ACTIVE
    #: operator, machine or automatic; empty when nobody has said anything, or an older control plane does not tell.
    by: str = ""
    #: Who that is, as far as it has a name: an operator's login, the machine's own.
    name: str = ""
    comment: str = ""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Maintenance, or its end, asked for on this machine."""

    requested: str
    comment: str
    by: str
    id: str = field(default_factory=lambda: str(uuid4()))
    #: By this machine's clock, which may be set at any time; and since which start of the machine, and how long after.
    made_at: float = field(default_factory=time.time)
    boot_id: str = field(default_factory=lambda: sysinfo.boot_id(None))
    up_seconds: float = field(default_factory=lambda: up_seconds())

    def told(self) -> dict[str, Any]:
        """As it travels. Its age lets the control plane see whether somebody has wished otherwise since."""
        return {
            "id": self.id,
            "requested": self.requested,
            "comment": self.comment,
            "by": self.by,
            "age_seconds": round(self.age_seconds(), 3),
        }

    def age_seconds(self) -> float:
        """How long ago it was had; the clock is asked only where the machine was restarted since."""
        up = up_seconds()
        if self.boot_id == sysinfo.boot_id(None):
            return max(0.0, up - self.up_seconds)
        by_clock = time.time() - self.made_at
        return by_clock if up <= by_clock <= up + LONGEST_OFF_SECONDS else up


def up_seconds() -> float:
    """Since the start of the machine, sleep included where that can be told."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def by_whom(kind: str, name: str) -> str:
    """` by` whom something is wanted; empty when nobody has said anything, or an older control plane does not tell."""
    words = {
        OPERATOR: f"operator {name}".strip(),
        MACHINE: "somebody at the machine",
        AUTOMATIC: "the machine itself (automatic)",
    }
    return f" by {words.get(kind, kind)}" if kind else ""


def after(wanted: Wanted, wish: Wish) -> Wanted:
    """What is wanted once the wish is known."""
    by_itself = wish.by == AUTOMATIC
    resting_by_itself = wanted.requested == MAINTENANCE and wanted.by == AUTOMATIC
    if wish.requested == MAINTENANCE:
        if by_itself and wanted.requested != ACTIVE and not resting_by_itself:
            return wanted
        return Wanted(requested=MAINTENANCE, by=wish.by, comment=wish.comment)
    if wanted.requested != MAINTENANCE or (by_itself and not resting_by_itself):
        return wanted
    return Wanted(by=wish.by)


class Wishes:
    """The wishes that the control plane has not heard yet. Any thread may have one; `on_change` tells the agent.

    Beside them it keeps the maintenance that the control plane wanted last: an agent may start while that is away.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._lock = threading.Lock()
        self._pending, self._said = read(self._path)
        self.on_change: Callable[[], None] = lambda: None

    def wish(self, requested: str, comment: str = "", *, by: str = MACHINE) -> Wish:
        """Want `maintenance` or `active`. It holds here at once, and is told until the control plane has heard it."""
        with self._lock:
            newest = self._pending[-1] if self._pending else None
            wish = Wish(requested=requested, comment=comment, by=by)
            if newest is not None and (newest.requested, newest.comment, newest.by) == (requested, comment, by):
                return newest
            # What somebody asks for makes everything before it pointless; what happens by itself only its own kind.
            self._pending = [] if by == MACHINE else [old for old in self._pending if old.by == MACHINE]
            self._pending.append(wish)
            self._save()
        self.on_change()
        return wish

    def reload(self) -> None:
        """Read again what is on disk: somebody may have left a wish just before this agent could be asked."""
        with self._lock:
            self._pending, self._said = read(self._path)
        self.on_change()

    @property
    def said(self) -> Wanted:
        """What the control plane has said last, as far as it outlasts this process."""
        return self._said

    def hear(self, said: Wanted) -> None:
        """Keep what the control plane says. A shutdown ends with the agent."""
        with self._lock:
            lasting = said if said.requested == MAINTENANCE else Wanted()
            if lasting != self._said:
                self._said = lasting
                self._save()

    def drop(self) -> None:
        """Somebody has wished otherwise since, and the control plane is too old to say what it has heard."""
        with self._lock:
            self._pending = []
            self._save()

    def next(self) -> dict[str, Any] | None:
        """The oldest wish that is still to be told, as it travels."""
        with self._lock:
            return self._pending[0].told() if self._pending else None

    def taken(self, wish_id: str) -> bool:
        """The control plane has heard this one. Returns whether another is still to be told."""
        with self._lock:
            left = [wish for wish in self._pending if wish.id != wish_id]
            if len(left) == len(self._pending):
                return False
            self._pending = left
            self._save()
            return bool(left)

    def upon(self, wanted: Wanted) -> Wanted:
        """What is wanted once the control plane, which has said the one, knows the wishes of this machine."""
        with self._lock:
            for wish in self._pending:
                wanted = after(wanted, wish)
        return wanted

    def _save(self) -> None:
        """A full disk that forgets a wish only does so with the next start of the agent."""
        try:
            store(self._path, self._pending, said=self._said)
        except OSError as error:
            log.error("a wish of this machine cannot be kept over a restart of the agent: %s", error.strerror or error)


def leave(state_dir: Path, requested: str, comment: str = "") -> None:
    """Leave a wish of somebody at the machine for the next start of its agent. Raises BadStateDir.

    Only for the directory's owner: what lies in it, links too, may be another user's doing, whatever root may write.
    """
    path = state_dir / FILE
    try:
        if not is_ours(state_dir):
            raise BadStateDir(not_ours(state_dir))
        store(path, [Wish(requested=requested, comment=comment, by=MACHINE)], said=read(path)[1])
    except OSError as error:
        raise BadStateDir(f"the wish cannot be left in {state_dir}: {error.strerror or error}") from None


def read(path: Path) -> tuple[list[Wish], Wanted]:
    """What is there; nothing for what cannot be read or makes no sense."""
    wishes, said = list[Wish](), Wanted()
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
        found = read_json(path) or {}
        said = Wanted(**{name: str(value) for name, value in found.get("said", {}).items()})
        texts = ("requested", "comment", "by", "id", "boot_id")
        numbers = ("made_at", "up_seconds")
        wishes = [
            Wish(
                **{name: str(one[name]) for name in texts},  # type: ignore[arg-type]
                **{name: float(one[name]) for name in numbers},  # type: ignore[arg-type]
            )
            for one in found["wishes"]
        ]
    return wishes, said


def store(path: Path, wishes: list[Wish], *, said: Wanted) -> None:
    if wishes or said != Wanted():
        write(path, json.dumps({"wishes": [asdict(wish) for wish in wishes], "said": asdict(said)}).encode())
    else:
        path.unlink(missing_ok=True)
