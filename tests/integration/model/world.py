"""Everything of one example, the record of what really happened, and what must hold after every step."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db import connection

from airflow_bridge.database import Connections
from edgecontrol.housekeeper import Housekeeper
from jobs_app import lifecycle
from jobs_app.lifecycle import Pair, StaleAttempt
from jobs_app.logs import WrongOffset, missing
from jobs_app.models import Job
from tests.integration.model import plane
from tests.integration.model.airflow import FINAL, SCHEDULABLE, Airflow, Scheduler, TaskInstance
from tests.integration.model.clock import Clock, Ids
from tests.integration.model.machine import Entry, Machine
from workers_app.models import Worker
from workers_app.registry import SessionReplaced

CONCURRENCY = 2
#: The longest silence of a worker that must not cost a job.
FORGIVEN_SECONDS = 265
#: How often everything is gone round at the end; each time anything still waits, a minute or more passes.
ROUNDS = 60
_FINAL = ("success", "failed", "refused", "lost", "revoked")


class World:
    def __init__(self, connections: Connections) -> None:
        self.clock, self.ids = Clock(), Ids()
        self.connections = connections
        self.airflow = Airflow(clock=self.clock, ids=self.ids, cause_of=self.cause_of)
        self.schedulers: list[Scheduler] = []
        self.machines: list[Machine] = []
        self.housekeeper = Housekeeper(clock=self.clock.monotonic)
        self.housekeeper._sampled_at = float("inf")
        self.late: list[Callable[[], None]] = []
        #: What happened to a job that may cost Airflow a try.
        self.hurts: dict[UUID, str] = {}
        self._starts: Counter[Pair] = Counter()
        self._truth: defaultdict[Pair, bytes] = defaultdict(bytes)
        #: Whose report was answered, and the machine that has its log.
        self._delivered: dict[Pair, Machine] = {}
        self._heard: dict[int, float] = {}
        self._ended: dict[UUID, tuple[Any, ...]] = {}
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM log_chunk; DELETE FROM job; DELETE FROM queue; DELETE FROM worker")

    # Who takes part.

    def add_scheduler(self) -> Scheduler:
        scheduler = Scheduler(airflow=self.airflow, connections=self.connections, number=len(self.schedulers))
        self.schedulers.append(scheduler)
        return scheduler

    def add_machine(self) -> Machine:
        number = len(self.machines)
        worker = Worker.objects.create(name=f"machine-{number}")
        machine = Machine(world=self, worker_id=worker.pk, number=number, concurrency=CONCURRENCY)
        self.machines.append(machine)
        machine.start_agent()
        return machine

    def clone(self, machine: Machine) -> None:
        """Another machine starts with the same token and an empty disk."""
        twin = Machine(
            world=self, worker_id=machine.worker_id, number=len(self.machines), concurrency=machine.concurrency
        )
        self.machines.append(twin)
        twin.start_agent()

    # What happened.

    def hurt(self, job: UUID, how: str) -> None:
        self.hurts.setdefault(job, how)

    def hurt_held(self, machine: Machine, how: str) -> None:
        """All that this machine has, or that the table says it has."""
        for entry in machine.disk.values():
            self.hurt(entry.job, how)
        self.hurt_worker(machine.worker_id, how)

    def hurt_worker(self, worker_id: int, how: str) -> None:
        for job in Job.objects.held_by(worker_id).values_list("pk", flat=True):
            self.hurt(job, how)

    def cause_of(self, task: TaskInstance) -> str:
        """What happened to the job of this try, or to the one whose start Airflow took for it."""
        jobs = [task.job, task.process.entry.job if task.state == "running" else None]
        for job in filter(None, jobs):
            if job in self.hurts:
                return self.hurts[job]
            row = Job.objects.filter(pk=job).values_list("reason", flat=True).first() or ""
            if row.startswith(("handed out 20 times", "could not be started 20 times")):
                return row
        return ""

    def heard_from(self, worker_id: int) -> None:
        self._heard[worker_id] = self.clock.now

    def started(self, entry: Entry, machine: Machine) -> None:
        self._starts[entry.key] += 1
        assert self._starts[entry.key] == 1, f"attempt {entry.attempt} of {entry.job} started twice"

    def wrote(self, entry: Entry, text: bytes) -> None:
        self._truth[entry.key] += text

    def delivered(self, entry: Entry, machine: Machine) -> None:
        self._delivered[entry.key] = machine

    def send_late(self, machine: Machine, call: Callable[[plane.Worker], Any]) -> None:
        """The request will arrive some time later; nobody waits for its answer any more."""
        session = machine.session

        def arrive() -> None:
            try:
                call(plane.caller(machine.worker_id, session))
                self.heard_from(machine.worker_id)
            except (SessionReplaced, StaleAttempt, WrongOffset):
                pass

        self.late.append(arrive)

    def pass_seconds(self, seconds: int) -> None:
        """Rows move into the past; what happens by itself meanwhile, happens."""
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE job SET queued_at = queued_at - d, claimed_at = claimed_at - d, started_at = started_at - d,"
                " finished_at = finished_at - d, told_at = told_at - d FROM make_interval(secs => %s) AS d",
                [seconds],
            )
            cursor.execute("UPDATE worker SET last_heartbeat = last_heartbeat - make_interval(secs => %s)", [seconds])
        self.clock.now += seconds
        for machine in self.machines:
            machine.time_passed()

    def forget_told(self) -> None:
        """A month passes for what Airflow was told."""
        with connection.cursor() as cursor:
            cursor.execute("UPDATE job SET finished_at = finished_at - interval '31 days' WHERE told_at IS NOT NULL")
        lifecycle.purge(older_than_days=30)

    def keep_house(self) -> None:
        for worker_id, heard in self._heard.items():
            if self.clock.now - heard > FORGIVEN_SECONDS:
                self.hurt_worker(worker_id, "its worker was silent")
        self.housekeeper.step()

    # What must hold.

    def check(self) -> None:
        rows = list(
            Job.objects.values_list("pk", "airflow_id", "state", "attempt", "worker_id", "slots", "finished_at")
        )
        held: Counter[int] = Counter()
        open_jobs: Counter[UUID] = Counter()
        for job, airflow_id, state, attempt, worker_id, slots, _ in rows:
            if state in _FINAL:
                end = (state, attempt, worker_id)
                if self._ended.setdefault(job, end)[0] == "lost" and state in ("success", "failed"):
                    self._ended[job] = end  # what Airflow accepted came late
                assert self._ended[job] == end, f"{job} was {self._ended[job]}, and is {end}"
                continue
            assert job not in self._ended, f"{job} was {self._ended[job]}, and is {state}"
            open_jobs[airflow_id] += 1
            if worker_id:
                held[worker_id] += slots
        for airflow_id, number in open_jobs.items():
            assert number == 1, f"{number} open jobs of task instance {airflow_id}"
        for worker_id, slots in held.items():
            assert slots <= CONCURRENCY, f"worker {worker_id} holds {slots} slots"
        for machine in self.machines:
            slots = sum(process.entry.slots for process in machine.processes())
            assert slots <= machine.concurrency, f"machine {machine.number} runs {slots} slots"
        self._check_processes()
        self._check_logs()

    def _check_processes(self) -> None:
        """No task's code runs twice at a time, whichever try it is."""
        working = Counter(
            process.entry.task for machine in self.machines for process in machine.processes() if process.works
        )
        twice = [name for name, number in working.items() if number > 1]
        assert not twice, f"two processes work at {twice}"

    def _check_logs(self) -> None:
        for pair, log in self._stored_logs().items():
            assert self._truth[pair].startswith(log), f"log of {pair}: {log!r}, written {self._truth[pair]!r}"

    def _stored_logs(self) -> dict[Pair, bytes]:
        logs: defaultdict[Pair, bytes] = defaultdict(bytes)
        with connection.cursor() as cursor:
            cursor.execute('SELECT job_id, attempt, "offset", data FROM log_chunk ORDER BY 1, 2, 3')
            for job, attempt, offset, data in cursor.fetchall():
                assert offset == len(logs[job, attempt])
                logs[job, attempt] += bytes(data)
        return logs

    # The end: all heals, and all comes to its end.

    def heal(self) -> None:
        self.airflow.away = False
        for arrive in self.late:
            arrive()
        self.late.clear()
        for scheduler in self.schedulers:
            scheduler.frozen = False
        if not any(scheduler.alive for scheduler in self.schedulers):
            self.add_scheduler()
        for machine in self.machines:
            machine.frozen = machine.frozen and machine.over
            machine.cut = machine.cut and machine.over
            machine.disk_full = False
        if not any(machine.up or not machine.over for machine in self.machines):
            self.add_machine()

    def finish(self) -> None:
        """Go round until nothing waits. What still does after all that time is stuck."""
        self.heal()
        self.check()
        for _ in range(ROUNDS):
            self._go_round()
            waiting = self._waiting()
            if not waiting:
                break
            self.pass_seconds(35)
            self.keep_house()
        self.check()
        assert not waiting, f"stuck: {waiting}"
        self._check_outcomes()

    def _go_round(self) -> None:
        for machine in self.machines:
            if not machine.over:
                self.let_work(machine)
        self.airflow.fire_triggers()
        for scheduler in self.schedulers:
            if scheduler.alive:
                self.let_schedule(scheduler)
                scheduler.turn()
                scheduler.adopt(self.schedulers)

    def let_schedule(self, scheduler: Scheduler) -> None:
        for task in self.airflow.tasks:
            if task.state in SCHEDULABLE:
                scheduler.queue(task)

    def let_work(self, machine: Machine) -> None:
        """Everything arrives, every task succeeds."""
        if not machine.up:
            machine.start_agent()
        machine.beat()
        machine.ask_for_work()
        for _ in range(50):
            for process in machine.processes():
                if process.accepted and not process.outcome:
                    process.end("success")
            steps = machine.steps()
            if not steps:
                break
            steps[0]("arrives")

    def _waiting(self) -> list[str]:
        alive = {scheduler.executor.dispatcher for scheduler in self.schedulers if scheduler.alive}
        tasks = [f"{task.name} is {task.state}" for task in self.airflow.tasks if task.state not in FINAL]
        jobs = Job.objects.exclude(state__in=_FINAL) | Job.objects.filter(
            state__in=_FINAL, told_at=None, dispatcher__in=alive
        )
        return tasks + [f"{job} {job.pk} is {job.state}: {job.reason}" for job in jobs.defer("workload")]

    def _check_outcomes(self) -> None:
        """A log is complete, or its machine ended for good with the rest of it, and the job says that."""
        stored = self._stored_logs()
        jobs = Job.objects.in_bulk({job for job, _ in self._delivered})
        for pair, machine in self._delivered.items():
            if pair[0] in jobs and stored.get(pair, b"") != self._truth[pair]:
                assert machine.over, f"the log of {pair} is not complete"
                assert missing(jobs[pair[0]]), f"the log of {pair} is not complete, and nobody sees that"
