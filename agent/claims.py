"""Asks for work: slots are set aside before asking, and a lost answer is asked for again under the same claim id."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from agent.client import ApiError, Client
from agent.errors import AgentError
from agent.gate import Gate
from agent.held import Held
from agent.orders import Orders
from agent.retry import Backoff
from agent.task_kinds import Served

log = logging.getLogger("agent.claims")

#: Only an agent that has been full this long parks a poll without slots: short tasks would abandon it at once.
FULL_SECONDS = 1.0
#: A gate that closes for less is waited for; after that we park without slots, and say why.
CLOSED_SECONDS = 10.0
#: How long a poll with slots stays before one for more slots takes its place.
MORE_SECONDS = 1.0
#: Polls that were given up for one with more slots, and whose empty answer is still to come.
MOST_ABANDONED = 2
#: How long the heartbeat that brings new orders is waited for.
HEARTBEAT_DUE_SECONDS = 5.0
LOOK_AGAIN_SECONDS = 10.0


class Intake(Protocol):
    def take(self, offers: list[dict[str, Any]], *, reserved: int) -> None: ...


class Poll(threading.Thread):
    """One claim id, asked until an answer arrives."""

    def __init__(self, *, claims: Claims, free_slots: int, wait: float) -> None:
        super().__init__(name="poll", daemon=True)
        self.claims = claims
        self.claim_id = str(uuid.uuid4())
        self.free_slots = free_slots
        self.wait_seconds = wait
        self.served = claims.served()
        self.started_at = time.monotonic()
        self.failing = False
        self.answered = False
        #: Slots that are set aside for what it may bring.
        self._reserved = free_slots
        self._lock = threading.Lock()

    def hand_over(self) -> int:
        """Give the slots that are set aside for this poll to whoever calls first."""
        with self._lock:
            reserved, self._reserved = self._reserved, 0
            return reserved

    def run(self) -> None:
        try:
            answer = self._ask()
            self.claims.intake.take(answer.get("jobs", []), reserved=self.hand_over())
        except AgentError as error:
            self.claims.fatal(error)
            self.claims.held.unreserve(self.hand_over())
        except Exception as error:
            log.exception("a claim failed: %s", error)
            self.claims.held.unreserve(self.hand_over())
        finally:
            self.answered = True
            self.claims.wake()

    def _ask(self) -> dict[str, Any]:
        """The answer; an empty one when asking has become pointless."""
        backoff = Backoff()
        while not self.claims.ended:
            asked_at = time.monotonic()
            try:
                answer = self.claims.client.claim(
                    claim_id=self.claim_id,
                    free_slots=self.free_slots,
                    wait=self.wait_seconds,
                    revision=self.claims.orders.revision,
                    served=self.served,
                )
            except ApiError as error:
                self.failing = True
                self.claims.rest(backoff.next_seconds(retry_after=error.retry_after), error=error)
                if self.free_slots == 0 or not error.repeatable:
                    return {}  # nothing can have been handed out under this id
            else:
                self.claims.answer_came(answer, took=time.monotonic() - asked_at)
                return answer
        return {}


class Claims:
    """Decides when to ask, and for how many slots. Its step starts polls, which end by themselves."""

    def __init__(
        self,
        *,
        client: Client,
        held: Held,
        gate: Gate,
        orders: Orders,
        intake: Intake,
        wait_seconds: float,
        served: Callable[[], Served] = Served,
    ) -> None:
        self.client = client
        self.held = held
        self.gate = gate
        self.orders = orders
        self.intake = intake
        self.wait_seconds = wait_seconds
        self.served = served
        self.ended = False
        self.wake: Callable[[], None] = lambda: None
        self.fatal: Callable[[AgentError], None] = lambda error: None
        self._polls: list[Poll] = []
        self._current: Poll | None = None
        self._rest_until = 0.0
        self._empty = Backoff(first_seconds=0.5, most_seconds=10.0)
        self._resting = threading.Condition()
        self._closed_since: float | None = None
        #: Why no work is taken, for people; empty while it is, or was a moment ago.
        self.closed_because = ""

    def step(self) -> float:
        """Start a poll when one is due. Returns how long nothing else can become due by itself."""
        self._polls = [poll for poll in self._polls if not poll.answered]
        parked = self._current if self._current in self._polls else None
        if self.orders.heartbeat_wanted(within_seconds=HEARTBEAT_DUE_SECONDS):
            return 0.5  # its answer may change what to ask for, and wakes us
        if parked is not None and parked.free_slots > 0:
            return self._ask_for_more(parked)
        pause = self._rest_until - time.monotonic()
        if pause > 0:
            return pause
        slots = self._reserve()
        if slots == 0:
            return self._park_empty(parked)
        if parked is not None and len(self._polls) > MOST_ABANDONED:
            self.held.unreserve(slots)
            return 1.0
        self._start(slots, wait=self.wait_seconds)
        return self.wait_seconds

    def _reserve(self) -> int:
        """Slots to ask for: none while orders, the gate or running jobs leave none."""
        if self.orders.resting or self.held.free_slots() == 0:
            return 0
        reason = self.gate.closed_because()
        if not reason:
            self._closed_since = None
            if self.closed_because:
                log.info("taking work again")
            self.closed_because = ""
            return self.held.reserve()
        self._closed_since = self._closed_since or time.monotonic()
        if time.monotonic() - self._closed_since >= CLOSED_SECONDS and reason != self.closed_because:
            log.warning("taking no work: %s", reason)
            self.closed_because = reason
        return 0

    def _ask_for_more(self, parked: Poll) -> float:
        """Ask anew once more slots or other queues are served: a job that needs several slots would wait beside them.

        The control plane ends the older poll empty. One that fails may have jobs in its lost answer and goes on.
        """
        news = self.held.free_slots() or parked.served != self.served()
        if not news or parked.failing or self.orders.resting:
            return self.wait_seconds
        age = time.monotonic() - parked.started_at
        if age < MORE_SECONDS or len(self._polls) > MOST_ABANDONED:
            return max(0.1, MORE_SECONDS - age)
        if self.gate.closed_because():
            return LOOK_AGAIN_SECONDS
        self._start(parked.hand_over() + self.held.reserve(), wait=parked.wait_seconds)
        return self.wait_seconds

    def _park_empty(self, parked: Poll | None) -> float:
        """Without slots we still park, to hear orders; but not in the short pauses between short tasks."""
        now = time.monotonic()
        gate_closed = self._closed_since is not None and not self.orders.resting
        park_at = self.held.full_since + FULL_SECONDS
        if self.orders.resting:
            park_at = now
        elif self._closed_since is not None:
            park_at = self._closed_since + CLOSED_SECONDS
        if now < park_at:
            return min(park_at - now, 1.0)
        if parked is None:
            self._start(0, wait=self.wait_seconds)
        return LOOK_AGAIN_SECONDS if gate_closed else self.wait_seconds

    def _start(self, slots: int, *, wait: float) -> None:
        poll = Poll(claims=self, free_slots=slots, wait=wait)
        self._polls.append(poll)
        self._current = poll
        poll.start()

    def answer_came(self, answer: dict[str, Any], *, took: float) -> None:
        """Note what a poll's answer says beside its jobs."""
        news = bool(answer.get("heartbeat_due")) and not self.orders.heartbeat_wanted()
        if answer.get("heartbeat_due"):
            self.orders.want_heartbeat()
        if answer.get("jobs"):
            self.gate.job_came()
            self._empty.reset()
        elif answer.get("retry_after_seconds") is not None or (took < 1.0 and not news):
            # Empty at once: a busy server, a newer poll of ours, or a heartbeat that does not get through.
            self.rest(self._empty.next_seconds(retry_after=answer.get("retry_after_seconds")), only_note=True)

    def rest(self, seconds: float, *, error: ApiError | None = None, only_note: bool = False) -> None:
        """No claim for so long. Waits that time, unless `only_note`: then the next step obeys it."""
        if error is not None and not error.repeatable and error.status != 401:
            log.error("a claim was refused: %s", error)
        self._rest_until = max(self._rest_until, time.monotonic() + seconds)
        if not only_note:
            with self._resting:
                self._resting.wait_for(lambda: self.ended, timeout=seconds)

    def end(self) -> None:
        """Ask no more. Answers that still come are taken in as ever."""
        self.ended = True
        with self._resting:
            self._resting.notify_all()
