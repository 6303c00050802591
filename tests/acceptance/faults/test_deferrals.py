"""Case 10: deferred tasks resume at once while their first halves are reported late; a COMMIT is not answered."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_bridge.store import Store
from tests.acceptance.faults.executor_scheduler import ExecutorScheduler
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.faults.ledger import Row, balance
from tests.acceptance.faults.pace import times
from tests.acceptance.faults.pipe import Pipe
from tests.acceptance.faults.proxy import Fault

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

Balanced = Callable[[Row], None]


@pytest.fixture
def pipe(site: FaultSite) -> Iterator[Pipe]:
    pipe = Pipe(target=Path(str(conninfo_to_dict(site.database_url)["host"])) / ".s.PGSQL.5432")
    yield pipe
    pipe.close()


@pytest.fixture
def scheduler(site: FaultSite, pipe: Pipe) -> Iterator[ExecutorScheduler]:
    """The real executor, whose way to its database can be broken."""
    given = {**conninfo_to_dict(site.database_url), "host": "127.0.0.1", "port": pipe.port}
    scheduler = ExecutorScheduler(site.airflow, database_url=make_conninfo(**given))
    yield scheduler
    pipe.thaw()
    scheduler.close()


def test_deferred_tasks_resume_at_once_while_first_halves_report_late(
    site: FaultSite, scheduler: ExecutorScheduler, balanced: Balanced
) -> None:
    site.way_in.add(Fault.LOSE_ANSWER, "/report", share=0.15)
    site.way_in.add(Fault.DUPLICATE, "/report", share=0.15)
    site.way_in.add(Fault.DELAY, "/report", share=0.35, seconds=6)
    half = {"seconds": 0.1, "bytes": 500}
    tasks = site.airflow.queue(scheduler, *[{**half, "state": "deferred", "then": half}] * times(100, full=500))  # type: ignore[arg-type]
    began = time.monotonic()
    scheduler.start()
    for number in range(4):
        site.machine(f"edge-{number}", concurrency=8).start()
    site.settle(seconds=600)

    halves = defaultdict(list)
    for job in site.rows("SELECT * FROM edgecontrol.job ORDER BY queued_at"):
        halves[job.task_id].append(job)
    late = 0
    for task in tasks:
        first, second = halves[task.name]
        assert task.tries[0].deferred == [first.id]
        assert task.tries[0].starts == 2, "Airflow was asked for one start per queueing"
        assert (second.state, second.airflow_outcome) == ("success", "success"), second.reason
        if first.state == "revoked":
            assert str(second.id) in first.reason
            late += 1
        else:
            assert (first.state, first.airflow_outcome) == ("success", "deferred"), first.reason
    assert late > 0, "no report was late: nothing was tried here"
    assert site.airflow.failures == []
    assert (scheduler.errors, scheduler.failures) == ([], [])
    slowest = max(task.ended_at for task in tasks) - began
    balanced(balance(site, case="10 deferrals resume at once, late reports", recovery_seconds=slowest))


def test_an_unanswered_commit_neither_doubles_nor_loses_a_job(
    site: FaultSite, scheduler: ExecutorScheduler, pipe: Pipe, balanced: Balanced
) -> None:
    executor, other = scheduler.executor, Store(site.database_url)
    slowest = 0.0
    try:
        for number in range(2):
            site.machine(f"edge-{number}", concurrency=8).start()
        for round in range(times(9, full=60)):
            until_calm(scheduler)
            tasks = site.airflow.queue(scheduler, *[{"seconds": 0.05, "bytes": 300}] * 8)  # type: ignore[arg-type]
            ids = [task.tries[0].job_id for task in tasks]
            kind = ("answer lost", "answer lost, written by another", "statement late")[round % 3]
            if kind == "statement late":
                pipe.freeze()
            else:
                pipe.lose_answer()
                site.until(lambda: not pipe.lost)
            site.breakages += 1
            broken_at = time.monotonic()
            scheduler.turn()
            assert len(executor.queued_tasks) == 8, "the executor has no answer, so it keeps the batch"
            if kind != "statement late":
                site.until(lambda: pipe.lost)
                assert len(site.rows("SELECT 1 FROM edgecontrol.job WHERE id = ANY(%s)", ids)) == 8
            if kind != "answer lost":
                waiting = executor.queued_tasks.values()
                again = [job for workload in waiting if (job := executor._buffer.job_of(workload))]
                assert other.enqueue(again) == (set(ids) if kind == "statement late" else set())
            if kind == "statement late":  # it arrives when its jobs have ended
                site.until(lambda: not site.airflow.unfinished())
                pipe.thaw()
            while executor.queued_tasks:
                assert time.monotonic() - broken_at < 60
                scheduler.turn()
                time.sleep(0.1)
            slowest = max(slowest, time.monotonic() - broken_at)
        scheduler.start()
        site.settle(seconds=300)
    finally:
        other.close()
    assert all(one.starts == 1 for task in site.airflow.tasks for one in task.tries)
    assert {job.reason for job in site.rows("SELECT reason FROM edgecontrol.job")} == {""}
    assert site.airflow.failures == []
    assert (scheduler.errors, scheduler.failures) == ([], [])
    balanced(balance(site, case="10 COMMIT of an enqueue not answered", recovery_seconds=slowest))


def until_calm(scheduler: ExecutorScheduler) -> None:
    """Its connection is there again, and no pause after a failure is left."""
    deadline = time.monotonic() + 60
    while True:
        scheduler.turn()
        if not scheduler.executor._turns.outage.lasts:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)
