"""The life of jobs under every fault, in any order: the real tables and rules, with Airflow and the machines modelled.

A failing example is printed as a program of steps; how it is run again stands in CONTRIBUTING.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from django.db import connection
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from airflow_bridge.database import Connections
from jobs_app import lifecycle
from jobs_app.models import Job
from tests.integration.model import machine as edge
from tests.integration.model.airflow import EXECUTOR_NAME, Scheduler
from tests.integration.model.process import Process
from tests.integration.model.world import World
from tests.integration.people import OPS

EXAMPLES = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    # The same histories in every run, so that a change is told by what it broke; --hypothesis-seed draws others.
    derandomize="--hypothesis-seed" not in " ".join(sys.argv),
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

which = st.integers(0, 5)
fates = st.sampled_from(edge.FATES)
#: None of these adds up to a limit of the product by a few seconds less.
seconds = st.sampled_from([5, 35, 35, 125, 290])
faults = st.sampled_from(["", "", "", "", "away", "unanswered"])
#: Of a machine, the ones that go well more often.
MACHINE_EVENTS = [
    *["its agent restarts", "its agent restarts", "its agent crashes", "reboots", "freezes", "thaws", "is cut off"],
    *["is reached again", "is cloned", "is gone", "one of its processes is killed", "has no room on its disk"],
]


def some(number: int, things: list[Any]) -> Any:
    return things[number % len(things)]


class Life(RuleBasedStateMachine):
    """Two schedulers, two machines, a few tasks."""

    #: Set by the test. The class itself is run, so that it can carry what says which example to run again.
    connections: ClassVar[Connections]
    monkeypatch: ClassVar[pytest.MonkeyPatch]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.connections)
        airflow, bridge = self.world.airflow, "airflow_bridge.executor"
        for part in ("adoption", "buffer", "executor", "reconciliation", "stranded", "tokens", "turns"):
            clock = SimpleNamespace(monotonic=self.world.clock.monotonic)
            self.monkeypatch.setattr(f"airflow_bridge.{part}.time", clock)
        self.monkeypatch.setattr(f"{bridge}.workloads_of", airflow.workloads_of)
        self.monkeypatch.setattr("airflow_bridge.buffer.look_up", airflow.look_up)
        for name in ("queued_by", "give_back"):
            self.monkeypatch.setattr(f"airflow_bridge.task_instances.{name}", getattr(airflow, name))
        self.monkeypatch.setattr("airflow_bridge.other_work.queued_callbacks", lambda **limits: [])
        self.monkeypatch.setattr("airflow_bridge.routing.executor_names", lambda: [EXECUTOR_NAME])
        for _ in range(2):
            self.world.add_scheduler()
            self.world.add_machine()

    @initialize(
        slots=st.lists(st.sampled_from([1, 1, 2]), min_size=1, max_size=6),
        steps=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    )
    def tasks_are_queued(self, slots: list[int], steps: list[int]) -> None:
        for number in slots:
            self.world.airflow.add(slots=number)
        self.world.let_schedule(self.world.schedulers[0])
        self.world.schedulers[0].turn()
        for machine, number in zip(self.world.machines, steps, strict=True):
            machine.ask_for_work()
            self._advance(machine, number)

    @invariant()
    def all_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.finish()

    # Airflow

    @property
    def schedulers(self) -> list[Scheduler]:
        return [scheduler for scheduler in self.world.schedulers if scheduler.acts]

    @precondition(lambda self: self.schedulers)
    @rule(number=which, queues=st.booleans(), fault=faults, events_lost=st.sampled_from([False, False, False, True]))
    def a_scheduler_turns(self, number: int, queues: bool, fault: str, events_lost: bool) -> None:
        scheduler = some(number, self.schedulers)
        if queues:
            self.world.let_schedule(scheduler)
        scheduler.turn(fault=fault, events_lost=events_lost)

    @rule(
        number=which,
        how=st.sampled_from(["queues and dies", "queues and freezes", "dies", "freezes", "wakes", "wakes", "starts"]),
        fault=faults,
    )
    def something_happens_to_a_scheduler(self, number: int, how: str, fault: str) -> None:
        """Others notice it at once, and take over what it queued."""
        world, alive = self.world, [scheduler for scheduler in self.world.schedulers if scheduler.alive]
        if how == "wakes":
            for scheduler in alive:
                scheduler.frozen = False
            return
        if how == "starts" or not self.schedulers:
            if len(alive) < 2:
                self._take_over(world.add_scheduler(), fault)
            return
        scheduler = some(number, self.schedulers)
        if "queues" in how:
            world.let_schedule(scheduler)
        scheduler.alive, scheduler.frozen = "dies" not in how, "freezes" in how
        for heir in self.schedulers:
            self._take_over(heir, fault)

    def _take_over(self, scheduler: Scheduler, fault: str) -> None:
        scheduler.adopt(self.world.schedulers, fault=fault)

    @precondition(lambda self: any(task.state == "deferred" for task in self.world.airflow.tasks))
    @rule(queues=st.booleans())
    def triggers_fire(self, queues: bool) -> None:
        self.world.airflow.fire_triggers()
        if queues and self.schedulers:
            self.world.let_schedule(self.schedulers[0])
            self.schedulers[0].turn()

    # Machines

    @property
    def agents(self) -> list[edge.Machine]:
        return [machine for machine in self.world.machines if machine.acts]

    @precondition(lambda self: self.agents)
    @rule(number=which, fate=fates, crash=st.sampled_from([False, False, False, True]), steps=st.integers(0, 7))
    def an_agent_asks_for_work(self, number: int, fate: str, crash: bool, steps: int) -> None:
        """With `steps` all goes well from there for a while."""
        agent = some(number, self.agents)
        agent.ask_for_work(fate, database_crashes=crash)
        if crash:  # those who had lost their connections come back
            for other in self.agents:
                other.ask_for_work()
        self._advance(agent, steps)

    @precondition(lambda self: any(machine.steps() for machine in self.agents))
    @rule(number=which, step=which, fate=fates, more=st.integers(0, 4))
    def an_agent_goes_on(self, number: int, step: int, fate: str, more: int) -> None:
        agent = some(number, [machine for machine in self.agents if machine.steps()])
        some(step, agent.steps())(fate)
        self._advance(agent, more)

    def _advance(self, agent: edge.Machine, steps: int) -> None:
        for number in range(steps):
            if not (agent.acts and agent.steps()):
                return
            some(number, agent.steps())(edge.ARRIVES)

    @property
    def working(self) -> list[Process]:
        return [process for machine in self.world.machines for process in machine.processes() if process.works]

    @precondition(lambda self: self.working)
    @rule(
        number=which, outcome=st.sampled_from(["success", "failed", "up_for_retry", "deferred", "deferred"]), fate=fates
    )
    def a_task_ends(self, number: int, outcome: str, fate: str) -> None:
        some(number, self.working).end(outcome, fate)

    @precondition(lambda self: self.agents)
    @rule(number=which, fate=fates)
    def an_agent_beats(self, number: int, fate: str) -> None:
        some(number, self.agents).beat(fate)

    @rule(
        number=which,
        how=st.sampled_from(MACHINE_EVENTS),
        fate=st.sampled_from([edge.ARRIVES, edge.ARRIVES, edge.ARRIVES, edge.ANSWER_LOST, edge.LOST]),
    )
    def something_happens_to_a_machine(self, number: int, how: str, fate: str) -> None:
        machine = some(number, self.world.machines)
        if machine.over:
            return
        if how.startswith("its agent"):
            machine.crash_agent()
        machine.disk_full = how == "has no room on its disk"
        if how == "its agent restarts" and not machine.frozen:
            machine.start_agent(fate)
        elif how == "reboots":
            self.world.hurt_held(machine, "its machine rebooted")
            machine.reboot()
            machine.start_agent(fate)
        elif how in ("freezes", "thaws"):
            machine.frozen = how == "freezes"
        elif how in ("is cut off", "is reached again"):
            machine.cut = how == "is cut off"
        elif how == "is cloned" and len(self.world.machines) < 3:
            self.world.clone(machine)
        elif how == "is gone" and not any(other.over for other in self.world.machines):
            self.world.hurt_held(machine, "its machine is gone")
            machine.reboot()
            machine.over = True
        elif how == "one of its processes is killed" and machine.processes():
            process = machine.processes()[0]
            self.world.hurt(process.entry.job, "its process was killed")
            machine.kill(process)

    # The control plane

    @precondition(lambda self: self.world.late)
    @rule(number=which)
    def a_late_request_arrives(self, number: int) -> None:
        self.world.late.pop(number % len(self.world.late))()

    @rule(length=seconds, beats=st.booleans())
    def time_passes(self, length: int, beats: bool) -> None:
        self.world.pass_seconds(length)
        for agent in self.agents if beats else ():
            agent.beat()
        self.world.keep_house()

    @rule(
        number=which, how=st.sampled_from(["revokes a job", "stops Airflow's API", "starts it", "deletes what is told"])
    )
    def an_operator(self, number: int, how: str) -> None:
        self.world.airflow.away = how == "stops Airflow's API" or (self.world.airflow.away and how != "starts it")
        if how == "revokes a job":
            jobs = list(Job.objects.order_by("pk").values_list("pk", flat=True))
            for job in jobs[number : number + 1]:
                self.world.hurt(job, "an operator revoked it")
                lifecycle.revoke([job], by=OPS)
        if how == "deletes what is told":
            self.world.forget_told()


@pytest.fixture
def connections(postgres_url: str, transactional_db: None) -> Iterator[Connections]:
    """Of all schedulers; no commit waits for the disk, since none is meant to survive."""
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO off")
    connections = Connections(f"{postgres_url} options='-c synchronous_commit=off'", limit=1)
    yield connections
    connections.close()


def test_whatever_happens_in_any_order_nothing_is_lost_and_nothing_runs_twice(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    Life.connections, Life.monkeypatch = connections, monkeypatch
    run_state_machine_as_test(Life, settings=EXAMPLES)


# Histories that take luck to find; each fails when the protection that it is about is taken away.


@pytest.fixture
def world(connections: Connections, monkeypatch: pytest.MonkeyPatch) -> World:
    """One task is queued; two machines are registered."""
    Life.connections, Life.monkeypatch = connections, monkeypatch
    world = Life().world
    world.airflow.add(slots=1)
    world.let_schedule(world.schedulers[0])
    world.schedulers[0].turn()
    return world


def go_on(machine: edge.Machine, *fates: str) -> None:
    for fate in fates:
        machine.steps()[0](fate)


def test_an_attempt_that_a_crash_of_the_database_handed_out_twice_starts_once(world: World) -> None:
    one, other = world.machines
    one.ask_for_work(database_crashes=True)
    other.ask_for_work()
    go_on(one, edge.ARRIVES, edge.ARRIVES, edge.ARRIVES)
    assert not one.disk
    go_on(other, edge.ARRIVES, edge.ARRIVES, edge.ARRIVES, edge.ARRIVES)
    world.check()
    world.finish()


def test_a_late_report_of_an_earlier_attempt_changes_nothing(world: World) -> None:
    machine = world.machines[0]
    machine.disk_full = True
    machine.ask_for_work()
    go_on(machine, edge.LATE)  # it is given back, and nobody hears that for now
    machine.disk_full = False
    world.pass_seconds(35)
    machine.beat()
    world.keep_house()
    machine.ask_for_work()
    go_on(machine, edge.ARRIVES, edge.ARRIVES, edge.ARRIVES)
    assert [entry.attempt for entry in machine.disk.values()] == [2]
    world.late.pop()()
    world.check()
    world.finish()


def test_a_job_that_its_worker_has_never_heard_of_is_found_missing(world: World) -> None:
    machine = world.machines[0]
    machine.ask_for_work(database_crashes=True)
    go_on(machine, edge.ARRIVES, edge.LATE)  # its confirm waits somewhere
    machine.beat()
    go_on(machine, edge.ARRIVES, edge.ARRIVES)
    assert not machine.disk
    machine.ask_for_work(edge.ANSWER_LOST)
    world.late.pop()()
    assert Job.objects.get().state == "running"
    assert not machine.disk
    world.finish()
