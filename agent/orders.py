"""What the control plane and the people at the machine want from this agent; pure state, nothing is sent here.

What was wished for on the machine counts from the first moment; the control plane hears it with the next heartbeat.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from agent.wishes import Wanted, Wishes


class Orders:
    """The newest orders. Every thread reads them; `on_change` tells the loops."""

    def __init__(self, *, concurrency: int, wishes: Wishes | None = None) -> None:
        #: active, maintenance or shutdown; by an operator, the machine or automatic, their name if they have one; why.
        self.requested = "active"
        self.requested_by = ""
        self.requested_by_name = ""
        self.comment = ""
        #: As the control plane said it last, and what it has not heard yet.
        self._said = Wanted() if wishes is None else wishes.said
        self._has_answered = False
        self._wishes = wishes
        self.revision = 0
        self.concurrency = concurrency
        #: What the control plane makes of this agent's version: ok, outdated or refused, and what to do about it.
        #: A control plane that says nothing of it takes every version.
        self.verdict = "ok"
        self.verdict_text = ""
        #: Set by a signal or once the agent is going: take no more and end, whatever the control plane wants later.
        self.ending = False
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._wanted_at: float | None = None
        self._deadline: float | None = None

    def apply(self, answer: dict[str, Any], *, asked_at: float = float("inf")) -> None:
        """Take the orders out of an answer to register or heartbeat, which was asked for at that time."""
        with self._lock:
            said = {"by": "requested_by", "name": "requested_by_name", "comment": "comment"}
            before = self._said
            self._said = Wanted(
                requested=str(answer.get("requested", self._said.requested)),
                **{ours: str(answer.get(theirs) or "") for ours, theirs in said.items()},
            )
            more = self._wishes is not None and self._wishes.taken(str(answer.get("wish_taken") or ""))
            if self._wishes is not None:
                if self._has_answered and "wish_taken" not in answer and before.requested != self._said.requested:
                    self._wishes.drop()
                self._wishes.hear(self._said)
            self._has_answered = True
            self._settle()
            self.revision = int(answer.get("revision", self.revision))
            self.concurrency = max(0, int(answer.get("concurrency") or self.concurrency))
            version = answer.get("version")
            told = version if isinstance(version, dict) else {}
            self.verdict, self.verdict_text = str(told.get("verdict", "ok")), str(told.get("text", ""))
            # A heartbeat that was wanted after this one had left is still due: this answer may be older than the news.
            if self._wanted_at is not None and self._wanted_at <= asked_at:
                self._wanted_at = None
            # Seconds from now, so that the clocks of the two machines need not agree. Every answer sets it anew:
            # a later one may move it or take it away.
            left = answer.get("deadline_seconds") if self.requested == "shutdown" else None
            self._deadline = None if left is None else time.monotonic() + float(left)
        if more:
            self.want_heartbeat()
        self.on_change()

    def wished(self) -> None:
        """Somebody on the machine wants something else: that holds now, and is told with a heartbeat at once."""
        with self._lock:
            if self._wishes is not None and not self._has_answered:
                self._said = self._wishes.said
            self._settle()
        self.want_heartbeat()

    def _settle(self) -> None:
        wanted = self._said if self._wishes is None else self._wishes.upon(self._said)
        self.requested, self.requested_by = wanted.requested, wanted.by
        self.requested_by_name, self.comment = wanted.name, wanted.comment

    @property
    def draining(self) -> bool:
        """Take no more, end when the last job has.

        A shutdown order and the refusal of this version may be withdrawn until then, a signal may not.
        """
        return self.ending or self.requested == "shutdown" or self.verdict == "refused"

    @property
    def refusal(self) -> str:
        """Why this version has to end; empty when it need not, or somebody wants the agent to end anyway."""
        wanted = self.ending or self.requested == "shutdown"
        return self.verdict_text or "its version is refused" if self.verdict == "refused" and not wanted else ""

    def seconds_left(self) -> float | None:
        """Until jobs that still run have to be stopped; negative when that time has passed, None without a deadline."""
        with self._lock:
            return None if self._deadline is None else self._deadline - time.monotonic()

    @property
    def resting(self) -> bool:
        """Whether no work may be taken, whatever is free."""
        return self.draining or self.requested != "active"

    @property
    def resting_untold(self) -> bool:
        """Whether the machine rests and the control plane does not know yet: what it hands out has to go back."""
        with self._lock:
            return self.requested != "active" and self._said.requested == "active"

    def reported(self, *, jobs: int, ready: bool) -> str:
        """The state that this agent reports of itself."""
        if self.draining:
            return "terminating"
        if self.requested == "maintenance":
            return "maintenance_pending" if jobs else "maintenance"
        if jobs:
            return "running"
        return "idle" if ready else "starting"

    def want_heartbeat(self) -> None:
        """The control plane has news: a heartbeat is due at once."""
        with self._lock:
            self._wanted_at = time.monotonic()
        self.on_change()

    def heartbeat_wanted(self, *, within_seconds: float = float("inf")) -> bool:
        """Whether a wanted heartbeat is still to come, and was asked for within that time."""
        with self._lock:
            return self._wanted_at is not None and time.monotonic() - self._wanted_at < within_seconds
