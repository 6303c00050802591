"""A job's process on a machine, as `agent/runner.py` behaves: start, work, deliver the final state, leave a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.model.machine import Entry, Machine

#: Without a word from Airflow for this long it has stopped itself: the patience, one heartbeat and its time limits.
STOPPED_BY = 265
#: Something happened to a job whose process could not reach Airflow for nearly the patience.
NEARLY_PATIENCE = 230
FAILED_OUTCOMES = frozenset({"failed", "up_for_retry"})
UNWANTED = frozenset({404, 409, 410})


@dataclass(eq=False)
class Process:
    """The supervisor of one attempt and its task."""

    machine: Machine
    entry: Entry
    #: When Airflow last answered.
    contact: float
    accepted: bool = False
    #: The state that is being delivered; the task's own code has ended.
    outcome: str = ""
    tries: int = 0
    #: It was frozen, and has not spoken to Airflow since.
    stale: bool = False

    @property
    def works(self) -> bool:
        """The task's code runs."""
        return self.accepted and not self.outcome and not self.machine.frozen and not self.stale

    def steps(self) -> list[Callable[[str], None]]:
        if self.machine.frozen:
            return []
        if not self.accepted:
            return [self.ask]
        if self.outcome:
            return [self.deliver]
        return [self.write]

    def ask(self, fate: str = "arrives") -> None:
        """`/run`, repeated by the same process until Airflow answers or the patience ends."""
        entry, world = self.entry, self.machine.world
        entry.asked = True
        if fate == "is lost" or not self.machine.reaches_airflow:
            return
        status = world.airflow.run(entry.ti_id, self, token=entry.token)
        if fate != "arrives":
            return
        self._heard()
        if status == 200:
            self.accepted = True
        elif status == 403:
            self._end("not_started", "Airflow did not accept the job's token")
        else:
            self._end("refused", f"Airflow did not want this start: {status}")

    def write(self, fate: str = "arrives") -> None:
        """A few bytes of log that tell whose they are."""
        text = f"{self.machine.number}:{len(self.entry.log)};".encode()
        self.entry.log += text
        self.machine.world.wrote(self.entry, text)

    def end(self, outcome: str, fate: str = "arrives") -> None:
        """The task's code ends; its outcome is delivered."""
        self.outcome = outcome
        self.deliver(fate)

    def deliver(self, fate: str = "arrives") -> None:
        """`/state`, repeated; before it is repeated, a heartbeat tells whether it had arrived."""
        if not self.outcome:
            return
        self.tries += 1
        airflow = self.machine.world.airflow
        if fate == "is lost" or not self.machine.reaches_airflow:
            return
        status = airflow.beat(self.entry.ti_id, self) if self.tries > 1 else 204
        if status not in UNWANTED:
            status = airflow.set_state(self.entry.ti_id, self, self.outcome)
        if fate != "arrives":
            return
        self._heard()
        if status not in UNWANTED or self.tries > 1:
            self._end("failed" if self.outcome in FAILED_OUTCOMES else "success", "", outcome=self.outcome)
        else:
            self._end("failed", f"result not delivered: {status}")

    def stop(self) -> None:
        """SIGTERM, and its end."""
        self._end("failed" if self.accepted else "not_started", "stopped by the agent")

    def time_passed(self) -> None:
        """A heartbeat or a repeated call gets through, or the patience runs out."""
        world = self.machine.world
        if world.clock.now - self.contact > NEARLY_PATIENCE and (
            self.machine.frozen or not self.machine.reaches_airflow
        ):
            world.hurt(self.entry.job, "its process could not reach Airflow")
        if self.machine.frozen:
            self.stale = True
        elif self.machine.reaches_airflow:
            self._speak()
        elif world.clock.now - self.contact > STOPPED_BY:
            self._end("failed" if self.accepted else "not_started", "Airflow could not be reached")

    def _speak(self) -> None:
        if not self.accepted:
            self.ask()
        elif self.outcome:
            self.deliver()
        elif self.machine.world.airflow.beat(self.entry.ti_id, self) in UNWANTED:
            self._end("failed", "Airflow ended the task while it was running")
        else:
            self._heard()

    def _heard(self) -> None:
        self.contact, self.stale = self.machine.world.clock.now, False

    def _end(self, state: str, reason: str, *, outcome: str = "") -> None:
        self.machine.finish(self.entry, {"state": state, "reason": reason, "airflow_outcome": outcome})
