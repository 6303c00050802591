"""An edge machine as `agent/` behaves: a disk, processes that outlive the agent, and an agent that obeys answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from jobs_app.lifecycle import Pair, StaleAttempt
from jobs_app.logs import WrongOffset
from jobs_app.models import Job
from tests.integration.model import plane
from tests.integration.model.process import Process
from workers_app.registry import SessionReplaced

if TYPE_CHECKING:
    from tests.integration.model.world import World

#: How long an answer is waited for; who asks for work also waits while parked.
READ_SECONDS = 30
CLAIM_READ_SECONDS = 65

#: What becomes of a request.
ARRIVES, ANSWER_LOST, LOST, LATE = "arrives", "its answer is lost", "is lost", "arrives late, too"
FATES = (ARRIVES, ARRIVES, ARRIVES, ANSWER_LOST, LOST, LATE)


@dataclass(eq=False)
class Entry:
    """One directory of the spool, and what the agent's memory adds to it."""

    job: UUID
    attempt: int
    slots: int
    task: str
    ti_id: UUID
    token: str
    boot: str
    confirmed: bool = False
    started: bool = False
    asked: bool = False
    result: dict[str, Any] | None = None
    reported: bool = False
    shipped: int = 0
    log_done: bool = False
    log: bytes = b""
    process: Process | None = None
    #: Memory only: it is to be stopped, and its result interests nobody.
    gone: bool = False

    @property
    def key(self) -> Pair:
        return self.job, self.attempt


@dataclass
class Poll:
    """One claim id, asked until an answer arrives."""

    claim_id: UUID
    free_slots: int
    asked_at: float
    answer: list[Job] | None = None


@dataclass
class Confirmation:
    """A confirm whose answer is on its way."""

    entries: list[Entry]
    confirmed: set[Pair]
    asked_at: float


@dataclass(eq=False)
class Machine:
    """A worker's machine. `up` speaks of the agent's process."""

    world: World
    worker_id: int
    number: int
    concurrency: int
    boots: int = 1
    up: bool = False
    frozen: bool = False
    cut: bool = False
    disk_full: bool = False
    #: Never to come back: switched off for good, or told that another one has its identity.
    over: bool = False
    session: UUID | None = None
    #: It was sent, and no answer has said that it is accepted.
    session_is_unused: bool = False
    revision: int = 0
    disk: dict[Pair, Entry] = field(default_factory=dict)
    poll: Poll | None = None
    confirmations: list[Confirmation] = field(default_factory=list)

    @property
    def boot(self) -> str:
        return f"machine {self.number} boot {self.boots}"

    @property
    def acts(self) -> bool:
        return self.up and not self.frozen

    @property
    def reaches_airflow(self) -> bool:
        return not (self.cut or self.world.airflow.away)

    def processes(self) -> list[Process]:
        return [entry.process for entry in self.disk.values() if entry.process]

    def free_slots(self) -> int:
        used = sum(e.slots for e in self.disk.values() if e.result is None or not (e.reported or e.gone))
        return max(0, self.concurrency - used - (self.poll.free_slots if self.poll else 0))

    # What the agent asks.

    def request(self, fate: str, call: Callable[[plane.Worker], Any]) -> Any:
        """Send one request; None when no answer came. What has been sent may arrive once more, much later."""
        if fate == LATE:
            self.world.send_late(self, call)
        if fate in (LOST, LATE) or self.cut:
            return None
        try:
            worker = plane.caller(self.worker_id, self.session)
            self.world.heard_from(self.worker_id)
            answer = call(worker)
        except SessionReplaced:
            if fate != ANSWER_LOST:
                self.end_for_good()
            return None
        except (StaleAttempt, WrongOffset) as refusal:
            answer = refusal
        return None if fate == ANSWER_LOST else answer

    def start_agent(self, fate: str = ARRIVES) -> None:
        """Take over what is on disk and register; with a lost answer the next try uses the same session."""
        if not self.up and not self.session_is_unused:
            self.session = self.world.ids.new()
        lost = set()
        for entry in list(self.disk.values()):
            if entry.process is None and entry.result is None and entry.boot != self.boot:
                lost.add(entry.key)
            self._look(entry)
            self._settle(entry)
        held = [pair for pair in self.held() if pair not in lost]
        self.session_is_unused = True
        if self.cut or fate == LOST:
            return
        self.world.heard_from(self.worker_id)
        for twin in self.world.machines:
            if twin.worker_id == self.worker_id and twin is not self:
                self.world.hurt_held(twin, "another machine has its identity")
        answer = plane.register(
            worker_id=self.worker_id, session=self.session, boot=self.boot, concurrency=self.concurrency, held=held
        )
        if fate == ARRIVES:
            self.up, self.session_is_unused = True, False
            self._obey(answer)

    def held(self) -> list[Pair]:
        return [entry.key for entry in self.disk.values() if not entry.reported and not entry.gone]

    def beat(self, fate: str = ARRIVES) -> None:
        held, concurrency = self.held(), self.concurrency
        answer = self.request(fate, lambda worker: plane.heartbeat(worker, concurrency=concurrency, held=held))
        if answer is not None:
            self._obey(answer)

    def ask_for_work(self, fate: str = ARRIVES, *, database_crashes: bool = False) -> None:
        """Claim. A poll without an answer is repeated under its id."""
        now = self.world.clock.now
        if self.poll is None:
            free = self.free_slots()
            if not free:
                return
            self.poll = Poll(claim_id=self.world.ids.new(), free_slots=free, asked_at=now)
        poll, revision = self.poll, self.revision
        poll.asked_at = now

        def look(worker: plane.Worker) -> Any:
            return plane.claim(worker, claim_id=poll.claim_id, free_slots=poll.free_slots, revision=revision)

        def crash(worker: plane.Worker) -> Any:
            answer = plane.losing_its_claim(worker, lambda: look(worker))
            for job in answer.jobs:
                self.world.hurt(job.pk, "PostgreSQL lost its claim")
            return answer

        answer = self.request(fate, crash if database_crashes else look)
        if answer is None:
            return
        poll.answer = answer.jobs
        if answer.heartbeat_due:
            self.beat()

    def steps(self) -> list[Callable[[str], None]]:
        """What the agent may do next, each with the fate of its request."""
        steps: list[Callable[[str], None]] = []
        if self.poll and self.poll.answer is not None:
            steps.append(self._take)
        steps += [lambda fate, c=c: self._heed(c) for c in self.confirmations]
        if any(not entry.confirmed and entry.result is None for entry in self.disk.values()):
            steps.append(self._confirm)
        for entry in self.disk.values():
            if entry.gone and entry.result is None:
                steps.append(lambda fate, e=entry: self._stop(e))
            elif entry.confirmed and not entry.started:
                steps.append(lambda fate, e=entry: self._start(e))
            if entry.process:
                steps += [lambda fate, s=step: s(fate) for step in entry.process.steps()]
            if entry.result and not entry.reported and not entry.gone:
                steps.append(lambda fate, e=entry: self._report(e, fate))
            if not entry.log_done and (entry.shipped < len(entry.log) or entry.result):
                steps.append(lambda fate, e=entry: self._ship(e, fate))
        return steps

    def _take(self, fate: str) -> None:
        """The claim's answer: write it down."""
        assert self.poll is not None
        jobs, self.poll = self.poll.answer or (), None
        for job in jobs:
            if (job.pk, job.attempt) in self.disk:
                continue
            if self.disk_full:
                self._give_back(job, fate)
                continue
            self.disk[job.pk, job.attempt] = Entry(
                job=job.pk,
                attempt=job.attempt,
                slots=job.slots,
                task=job.dag_id,
                ti_id=job.airflow_id,
                token=job.token or "",
                boot=self.boot,
            )

    def _give_back(self, job: Job, fate: str) -> None:
        """Said once: when nobody hears it, the claim is released by itself."""
        result = {"state": "not_started", "reason": "the state directory takes no job"}
        self.request(fate, lambda worker: plane.report(worker, job=job.pk, attempt=job.attempt, result=result, log=b""))

    def _confirm(self, fate: str) -> None:
        entries = [entry for entry in self.disk.values() if not entry.confirmed and entry.result is None]
        pairs = [entry.key for entry in entries]
        confirmed = self.request(fate, lambda worker: plane.confirm(worker, pairs=pairs))
        if confirmed is not None:
            self.confirmations.append(Confirmation(entries, confirmed, self.world.clock.now))

    def _heed(self, confirmation: Confirmation) -> None:
        """The confirm's answer: what is confirmed may start, the rest is dropped."""
        self.confirmations.remove(confirmation)
        for entry in confirmation.entries:
            if self.disk.get(entry.key) is not entry:
                continue
            if entry.key in confirmation.confirmed:
                entry.confirmed = True
            elif not entry.confirmed:
                self._forget(entry)

    def _start(self, entry: Entry) -> None:
        """The supervisor makes the file `started` once; only then there is a process."""
        if entry.started:
            return
        entry.started = True
        entry.process = Process(machine=self, entry=entry, contact=self.world.clock.now)
        self.world.started(entry, self)

    def _stop(self, entry: Entry) -> None:
        if entry.process:
            entry.process.stop()
        else:
            self._forget(entry)

    def _report(self, entry: Entry, fate: str) -> None:
        result = entry.result or {}
        log = entry.log

        def send(worker: plane.Worker) -> bool:
            plane.report(worker, job=entry.job, attempt=entry.attempt, result=result, log=log)
            return True

        answer = self.request(fate, send)
        if isinstance(answer, StaleAttempt) or (answer and result["state"] == "not_started"):
            self._forget(entry)
        elif answer:
            entry.reported = True
            self.world.delivered(entry, self)
            self._settle(entry)

    def _ship(self, entry: Entry, fate: str) -> None:
        """At most four bytes, from where the control plane is known to be."""
        data = entry.log[entry.shipped : entry.shipped + 4]
        offset = entry.shipped
        if entry.gone or (entry.result and (not data or entry.result["state"] == "not_started")):
            entry.log_done = True
        elif data:
            answer = self.request(
                fate,
                lambda worker: plane.append(worker, job=entry.job, attempt=entry.attempt, offset=offset, data=data),
            )
            if isinstance(answer, WrongOffset):
                entry.shipped = answer.extra["size"]
            elif isinstance(answer, StaleAttempt):
                entry.log_done = True
            elif answer is not None:
                entry.shipped = answer
        self._settle(entry)

    def _obey(self, orders: dict[str, Any]) -> None:
        self.revision = orders["revision"]
        for pair in orders["gone"]:
            entry = self.disk.get((pair["id"], pair["attempt"]))
            if entry and entry.result is None:
                entry.gone = True

    def finish(self, entry: Entry, result: dict[str, Any]) -> None:
        """`exit.json`."""
        entry.process = None
        entry.result = entry.result or result
        # What Airflow accepted is told in any case.
        if entry.gone and not entry.result.get("airflow_outcome"):
            self._forget(entry)
        entry.gone = False

    def _look(self, entry: Entry) -> None:
        """What ended without a word is noticed; what an earlier start of the machine left unstarted is forgotten."""
        if entry.process or entry.result:
            return
        if entry.started:
            state = "failed" if entry.asked else "not_started"
            self.finish(entry, {"state": state, "reason": "the job's process ended without a result"})
        elif entry.boot != self.boot:
            self._forget(entry)

    def _settle(self, entry: Entry) -> None:
        if entry.reported and entry.log_done:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        if self.disk.get(entry.key) is entry:
            del self.disk[entry.key]

    # What happens to it.

    def crash_agent(self) -> None:
        """The disk and the processes stay."""
        self.up, self.poll, self.confirmations = False, None, []
        for entry in self.disk.values():
            entry.gone = False

    def reboot(self) -> None:
        self.crash_agent()
        self.boots += 1
        self.frozen = False
        for entry in self.disk.values():
            entry.process = None

    def kill(self, process: Process) -> None:
        """SIGKILL to the job's supervisor; the agent looks at all jobs each second."""
        process.entry.process = None
        if self.acts:
            self._look(process.entry)

    def end_for_good(self) -> None:
        """A newer session has this identity: stop all, forget all, never come back."""
        self.crash_agent()
        self.over = True
        for entry in self.disk.values():
            entry.process = None
        self.disk.clear()

    def time_passed(self) -> None:
        """Answers that took too long are no answers; processes speak to Airflow, or give up."""
        now = self.world.clock.now
        for process in self.processes():
            process.time_passed()
        if self.frozen:
            return
        if self.poll and self.poll.answer is not None and now - self.poll.asked_at > CLAIM_READ_SECONDS:
            self.poll.answer = None
        self.confirmations = [c for c in self.confirmations if now - c.asked_at <= READ_SECONDS]
        if self.up:
            for entry in list(self.disk.values()):
                if entry.gone and entry.result is None:
                    self._stop(entry)
                else:
                    self._look(entry)
