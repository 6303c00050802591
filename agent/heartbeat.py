"""Says what this agent holds and hears what it is to do; nothing is stopped or started here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from agent import PROTOCOL
from agent.client import Client
from agent.extended_sysinfo import headline
from agent.held import Held
from agent.jobs import Key
from agent.orders import Orders
from agent.retry import Backoff
from agent.wishes import by_whom

log = logging.getLogger("agent.heartbeat")

#: A change of the reported state is told no more often than this: short tasks change it all the time.
CHANGE_SECONDS = 5.0
FIGURES_SECONDS = 300.0
#: A heartbeat is waited for, and a failed one repeated after, a part of its interval: the control plane gives jobs up
#: not long after the outage that they are promised to outlast, and must hear of them before.
REPEATS_PER_INTERVAL = 3
ANSWER_SECONDS = 5.0
#: Of so many logs one heartbeat tells that they do not get through; the next one tells of others.
MOST_TROUBLES = 500


class Heartbeat:
    """One heartbeat per interval while jobs are held, none while idle (a claim counts as one), at once when wanted."""

    def __init__(
        self,
        *,
        client: Client,
        held: Held,
        orders: Orders,
        interval_seconds: float,
        concurrency: int,
        queues: list[str] | None,
        ready: Callable[[], bool],
        sysinfo: Callable[[], dict[str, Any]],
        on_gone: Callable[[Key, str], None],
        airflow_version: Callable[[], str] = lambda: "",
        wish: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        self.client = client
        self.held = held
        self.orders = orders
        self.interval_seconds = interval_seconds
        self.concurrency = concurrency
        self.queues = queues
        self.ready = ready
        self.sysinfo = sysinfo
        self.on_gone = on_gone
        self.airflow_version = airflow_version
        self.wish = wish
        self._sent_at = time.monotonic()
        self._reported = "starting"
        self._sysinfo: dict[str, Any] = {}
        self._sysinfo_at = 0.0
        self._said_verdicts: set[tuple[str, str]] = set()

    def step(self) -> float:
        """Send a heartbeat if one is due. Returns how long none can become due by itself."""
        since = time.monotonic() - self._sent_at
        change = min(CHANGE_SECONDS, self.interval_seconds)
        waits = [60.0]
        if self.orders.heartbeat_wanted():
            waits.append(0.0)
        if self.held.unreported() or self.held.log_troubles():
            waits.append(self.interval_seconds - since)
        if self.state() != self._reported or self._changed_sysinfo() is not None:
            waits.append(change - since)
        if min(waits) > 0:
            return min(waits)
        self.send(self.state())
        return 0.0

    def backoff(self) -> Backoff:
        """How failed heartbeats are repeated: nobody may ask for a silence of more than an interval."""
        part = self.interval_seconds / REPEATS_PER_INTERVAL
        return Backoff(first_seconds=min(1.0, part), most_seconds=part, obey_seconds=self.interval_seconds)

    def state(self) -> str:
        return self.orders.reported(jobs=len(self.held.active()), ready=self.ready())

    def send(self, state: str, *, read_seconds: float | None = None) -> None:
        """Send one heartbeat and obey its answer. Raises ApiError, or SessionReplaced."""
        read_seconds = read_seconds or max(ANSWER_SECONDS, self.interval_seconds / REPEATS_PER_INTERVAL)
        sysinfo = self._changed_sysinfo()
        body: dict[str, Any] = {
            "reported": state,
            "jobs_active": len(self.held.active()),
            "concurrency": self.concurrency,
            "queues": self.queues,
            "sysinfo": sysinfo,
            "held": self.held.unreported(),
            "log_troubles": self.held.log_troubles()[:MOST_TROUBLES],
            "airflow_version": self.airflow_version(),
            "protocol": PROTOCOL,
            "wish": self.wish(),
        }
        asked_at = time.monotonic()
        answer = self.client.heartbeat(body, read_seconds=read_seconds)
        self._sent_at, self._reported = time.monotonic(), state
        self.held.log_troubles_told(body["log_troubles"])
        if sysinfo is not None:
            self._sysinfo, self._sysinfo_at = sysinfo, self._sent_at
        self.obey(answer, asked_at=asked_at)

    def obey(self, answer: dict[str, Any], *, asked_at: float = float("inf")) -> None:
        """Take orders from an answer to register or heartbeat."""
        before, verdict = self.orders.requested, self.orders.verdict
        self.orders.apply(answer, asked_at=asked_at)
        self._say_verdict()
        if self.orders.verdict == "refused" != verdict:
            self.orders.want_heartbeat()  # the agent ends, which people wait for
        self.held.concurrency = self.orders.concurrency
        if self.orders.requested != before:
            left = self.orders.seconds_left()
            within = "" if left is None else f" within {left:.0f} s"
            comment = f": {self.orders.comment}" if self.orders.comment else ""
            whose = by_whom(self.orders.requested_by, self.orders.requested_by_name)
            log.info("the control plane asks for %s%s%s%s", self.orders.requested, within, whose, comment)
            # What follows from it, maintenance or work again, is told at once: people wait for it.
            self.orders.want_heartbeat()
        for entry in answer.get("gone") or []:
            self.on_gone(Key(str(entry["id"]), int(entry["attempt"])), str(entry.get("reason", "")))

    def _say_verdict(self) -> None:
        """Once each: while a control plane of several processes is upgraded, their verdicts come in turns."""
        said = (self.orders.verdict, self.orders.verdict_text)
        if self.orders.verdict != "ok" and said not in self._said_verdicts:
            self._said_verdicts.add(said)
            log.warning("this version counts as %s: %s", *said)

    def seed(self, sysinfo: dict[str, Any]) -> None:
        """Remember what was told at registration."""
        self._sysinfo, self._sysinfo_at = sysinfo, time.monotonic()

    def _changed_sysinfo(self) -> dict[str, Any] | None:
        """The system figures when they are worth telling: news at once, what goes up and down every few minutes."""
        now = self.sysinfo()
        if now == self._sysinfo:
            return None
        told = headline(now) != headline(self._sysinfo)
        return now if told or time.monotonic() - self._sysinfo_at >= FIGURES_SECONDS else None
