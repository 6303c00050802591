"""Which runner starts which job: one for each kind of task; one that cannot work hinders no other.

The queues of a runner that cannot run Airflow are not served, until it can. Only when no runner of the machine works,
and none ever did, the agent ends.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from agent import transport
from agent.accounts import Account, check_files, check_reach
from agent.config import Config
from agent.errors import AgentError, NoAirflow
from agent.fresh_runner import FreshRunner
from agent.gate import REASON_CHARACTERS
from agent.jobs import Job
from agent.retry import Backoff
from agent.runner_link import ForkRunner, Runner, RunnerAway, no_airflow
from agent.runner_sockets import drain_users
from agent.task_kinds import Served, TaskKind, kinds_of

log = logging.getLogger("agent.runner")

#: How often a runner that has to be asked is asked.
ASK_SECONDS = 0.1
#: How long a runner that never worked is left alone at most: somebody may be installing its Airflow.
NEVER_WORKED_SECONDS = 300.0


class Seat:
    """One kind of task with its runner, and what is known of the two."""

    def __init__(self, kind: TaskKind, runner: Runner) -> None:
        self.kind = kind
        self.runner = runner
        #: Why it does not work; None while it does, or may.
        self.error: Exception | None = None
        self._worked = self._ready = False
        #: It was reached, and has not been ready since.
        self._unready = False
        self._backoff = Backoff(first_seconds=0.5)
        self._patience = Backoff(first_seconds=2.0, most_seconds=NEVER_WORKED_SECONDS)
        self._retry_at = 0.0

    @property
    def due(self) -> bool:
        """Whether it is to be connected now."""
        return not self.runner.alive and time.monotonic() >= self._retry_at

    @property
    def trouble(self) -> str:
        return said_by(self.error)

    @property
    def hopeless(self) -> bool:
        """Whether its interpreter cannot run Airflow, and never could."""
        return isinstance(self.error, NoAirflow) and not self._worked

    def renew(self) -> bool:
        """Look which generation is due, and pause before the next try; False when that cannot be told now."""
        self._retry_at = time.monotonic() + self._backoff.next_seconds()
        try:
            self.runner.renew()
        except Exception as error:  # whatever is wrong with this one, the others and all jobs go on
            self.failed(error)
            return False
        return True

    def reach(self, *, spare: Collection[Path]) -> None:
        """Connect it. The next try comes when this one fails or the runner goes again."""
        if self._unready and self.error is None:
            self._note(RunnerAway(f"the task runner of {self.kind.python} ends before it is ready"))
        try:
            self.runner.connect(spare=spare)
        except Exception as error:
            self.failed(error)
        else:
            self._unready = True

    def failed(self, error: Exception) -> None:
        """It could not be reached or does not work: pause before the next try."""
        self.runner.close(drain=False)
        self._note(error)
        self._unready = False
        if self.hopeless:
            self._retry_at = time.monotonic() + self._patience.next_seconds()

    def _note(self, error: Exception) -> None:
        if said_by(error) != self.trouble:
            log.error("%s%s", self.whose, said_by(error))
        self.error = error

    def look(self) -> bool:
        """Note whether it works; True when it does and did not before."""
        before, self._ready = self._ready, self.runner.ready
        if not self._ready or before:
            return False
        self._worked, self._unready, self.error = True, False, None
        self._backoff.reset()
        self._patience.reset()
        return True

    @property
    def whose(self) -> str:
        """Whose tasks these are, as the beginning of a sentence."""
        if not self.kind.queues:
            return ""
        return f"queue{'s' if len(self.kind.queues) > 1 else ''} {', '.join(self.kind.queues)}: "


def said_by(error: Exception | None) -> str:
    """The error's text, or its name where it has none; empty without one."""
    return "" if error is None else str(error) or repr(error)


class Runners:
    """All runners of this machine as one. The first is for the queues without settings of their own."""

    def __init__(self, seats: list[Seat], *, state_dir: Path) -> None:
        self._seats = seats
        self._state_dir = state_dir
        self._by_queue = {queue: seat for seat in seats for queue in seat.kind.queues}

    # --- what they are

    @property
    def ready(self) -> bool:
        """Whether any of them can start a job."""
        return any(seat.runner.ready for seat in self._seats)

    @property
    def airflow_version(self) -> str:
        """The first one's, or that of the first that has one."""
        return next((seat.runner.airflow_version for seat in self._seats if seat.runner.airflow_version), "")

    def account_of(self, queue: str) -> Account | None:
        """The user that tasks of this queue run as; None is the agent's own."""
        return self._seat(queue).kind.account

    def served(self) -> Served:
        """The queues whose runner works, or may."""
        usual, *others = self._seats
        if usual.trouble:
            return Served(only=tuple(queue for seat in others if not seat.trouble for queue in seat.kind.queues))
        return Served(without=tuple(queue for seat in others if seat.trouble for queue in seat.kind.queues))

    def not_served(self) -> dict[str, str]:
        """Why which queues are not served; `*` stands for those without settings of their own.

        With `*`, also the queues that are served, each with an empty text.
        """
        usual = self._seats[0].trouble[:REASON_CHARACTERS]
        told = {
            queue: seat.trouble[:REASON_CHARACTERS]
            for seat in self._seats[1:]
            if usual or seat.trouble
            for queue in seat.kind.queues
        }
        return {"*": usual, **told} if usual else told

    def why_not(self, job: Job) -> str:
        """Why nobody here can start the job for long; empty when that is not so."""
        seat = self._seat(job.queue)
        if job.uid != seat.kind.uid:  # what one user could write is not run as another
            return f"tasks of queue {job.queue} run as another user since the agent was restarted"
        return seat.trouble if seat.hopeless else ""

    def can_start(self, queue: str) -> bool:
        return self._seat(queue).runner.ready

    # --- what they do

    def connect(self) -> None:
        """Reach all of them for the first time. Raises NoAirflow or BadStateDir when none can be reached."""
        self.mend()
        paths = [seat.runner.socket_path for seat in self._seats]
        drain_users(self._state_dir, but={path.parent for path in paths if path is not None})
        errors = [seat.error for seat in self._seats]
        first = errors[0]
        if first is None or None in errors:
            return
        raise first if isinstance(first, AgentError) else no_airflow(self._seats[0].kind.python, str(first))

    def mend(self) -> set[int | None]:
        """Reach those again that are gone, when their time has come. Returns the users whose runner is a new one."""
        due = [seat for seat in self._seats if seat.due]
        known = [seat for seat in due if seat.renew()]
        spare = [seat.runner.socket_path for seat in self._seats if seat.runner.socket_path is not None]
        for seat in known:
            seat.reach(spare=spare)
        return {seat.kind.uid for seat in due}

    def start(self, job: Job) -> None:
        """Order the start of a job. Raises RunnerAway when the order did not go out."""
        if reason := self.why_not(job):
            raise RunnerAway(reason)
        self._seat(job.queue).runner.start(job.place)

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        """What they say within the timeout, each with the `uid` of who says it: it may speak of that user's jobs only.

        Raises NoAirflow when none of them works and none ever did.
        """
        deadline = time.monotonic() + timeout
        said: list[dict[str, Any]] = []
        while not said:
            left = max(0.0, deadline - time.monotonic())
            for seat in self._readable(left):
                said += self._events_of(seat)
            if left == 0.0 or any(seat.due for seat in self._seats):
                break
        self._check()
        return said

    def look(self) -> bool:
        """Note which of them work now; True when one did not before."""
        return sum(seat.look() for seat in self._seats) > 0  # each is to look

    def close(self, *, drain: bool) -> None:
        for seat in self._seats:
            seat.runner.close(drain=drain)

    def _seat(self, queue: str) -> Seat:
        return self._by_queue.get(queue, self._seats[0])

    def _check(self) -> None:
        """Raise what is wrong with the first one when all of them are beyond hope."""
        first = self._seats[0].error
        if first is not None and all(seat.hopeless for seat in self._seats):
            raise first

    def _readable(self, seconds: float) -> list[Seat]:
        """Those that may have something to say, waited for as long."""
        by_handle = {handle: seat for seat in self._seats for handle in seat.runner.handles}
        asked = [seat for seat in self._seats if seat.runner.alive and seat not in by_handle.values()]
        wait = min(seconds, ASK_SECONDS) if asked else seconds
        if not by_handle:
            time.sleep(wait)
            return asked
        try:
            readable = select.select(list(by_handle), [], [], wait)[0]
        except (OSError, ValueError):  # another thread has closed one
            return [seat for seat in self._seats if seat.runner.alive]
        return [seat for seat in self._seats if seat in asked or any(by_handle[handle] is seat for handle in readable)]

    def _events_of(self, seat: Seat) -> list[dict[str, Any]]:
        try:
            said = seat.runner.events(timeout=0.0)
        except Exception as error:
            seat.failed(error)
            return []
        return [{**event, "uid": seat.kind.uid} for event in said if isinstance(event.get("event"), str)]


def make_runners(kinds: list[TaskKind], *, task_start: str, state_dir: Path, environ: Mapping[str, str]) -> Runners:
    """One runner for each kind. Raises BadConfig for a user that cannot reach what its tasks need."""
    for account in {kind.account for kind in kinds if kind.account is not None}:
        check_reach(account, state_dir)
    for kind in kinds:
        if kind.account is not None:
            check_files(kind.account, kind.certificates(environ))
    seats = [
        Seat(kind, make_runner(task_start=task_start, kind=kind, state_dir=state_dir, environ=environ))
        for kind in kinds
    ]
    return Runners(seats, state_dir=state_dir)


def make_runner(*, task_start: str, kind: TaskKind, state_dir: Path, environ: Mapping[str, str]) -> Runner:
    """The runner for this kind of task that the settings ask for and this system can have."""
    if task_start == "fork" and hasattr(os, "fork"):
        return ForkRunner(kind=kind, state_dir=state_dir, environ=environ)
    return FreshRunner(kind=kind, state_dir=state_dir, environ=environ)


def kinds_on_this_machine(config: Config, environ: Mapping[str, str]) -> list[TaskKind]:
    """The kinds that the settings name. Raises BadConfig."""
    return kinds_of(config, variables=transport.task_variables(config, environ))
