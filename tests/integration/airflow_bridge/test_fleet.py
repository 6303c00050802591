from __future__ import annotations

import itertools
from typing import Any
from uuid import uuid4

import psycopg.sql
import pytest

from airflow_bridge import fleet
from airflow_bridge.store import Store
from tests.integration.airflow_bridge import rows
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import DISPATCHER, new_job
from workers_app.models import Worker


def add_worker(database: Database, name: str, **columns: Any) -> int:
    values = {"name": name, **columns}
    query = psycopg.sql.SQL("INSERT INTO edgecontrol.worker ({}) VALUES ({}) RETURNING id").format(
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, values)),
        psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, values)),
    )
    row = database.execute(query, values).fetchone()
    assert row
    return int(row.id)


def test_a_worker_is_shown_with_what_it_holds(store: Store, database: Database) -> None:
    berlin = add_worker(
        database,
        "berlin",
        state="running",
        concurrency=4,
        concurrency_override=8,
        sysinfo='{"cpu_percent": 5, "not_working": "the disk is full"}',
    )
    add_worker(database, "aachen", state="offline")
    jobs = [new_job(slots=number) for number in (1, 2, 3, 1)]
    store.enqueue(jobs)
    rows.hold(database, jobs[0].id, worker=berlin, state="claimed")
    rows.hold(database, jobs[1].id, worker=berlin)
    rows.hold(database, jobs[2].id, worker=berlin)
    rows.end(database, jobs[2].id, state="success")
    aachen, worker = store.workers_now(team_name="")
    assert (aachen.name, aachen.state, aachen.jobs, aachen.hindered) == ("aachen", "offline", 0, False)
    assert (worker.name, worker.concurrency, worker.jobs, worker.slots) == ("berlin", 8, 2, 3)
    assert (worker.hindered, worker.sysinfo["cpu_percent"]) == (True, 5)


def test_a_team_sees_its_own_workers_and_queues(store: Store, database: Database) -> None:
    a = add_worker(database, "a-1", team_name="a")
    add_worker(database, "b-1", team_name="b")
    held, waiting = new_job(queue="q", team_name="a"), new_job(queue="q", team_name="b")
    store.enqueue([held, waiting])
    rows.hold(database, held.id, worker=a)
    assert [worker.name for worker in store.workers_now(team_name="a")] == ["a-1"]
    assert [(queue.name, queue.waiting, queue.held) for queue in store.queues_now(team_name="a")] == [("q", 0, 1)]
    assert [(queue.name, queue.waiting, queue.held) for queue in store.queues_now(team_name="b")] == [("q", 1, 0)]
    assert store.queues_now(team_name="") == []


LISTS: list[list[str] | None] = [None, [], ["x"], ["y", "x"]]


def test_the_queues_of_a_worker_are_those_that_the_control_plane_sees(store: Store, database: Database) -> None:
    expected = {}
    for number, (queues, allowed, override) in enumerate(itertools.product(LISTS, repeat=3)):
        worker = {"queues": queues, "allowed_queues": allowed, "queues_override": override}
        add_worker(database, f"w{number}", **worker)
        expected[f"w{number}"] = Worker(**worker).effective_queues
    assert {worker.name: worker.queues for worker in store.workers_now(team_name="")} == expected


def test_queues_say_how_much_waits_and_for_how_long(store: Store, database: Database, worker: int) -> None:
    old, young, other, held = new_job(queue="b"), new_job(queue="b", priority=9), new_job(queue="a"), new_job(queue="c")
    store.enqueue([old, young, other, held])
    rows.hold(database, held.id, worker=worker)
    database.execute("UPDATE edgecontrol.job SET queued_at = now() - interval '1 hour' WHERE id = %s", [old.id])
    queues = {queue.name: queue for queue in store.queues_now(team_name="")}
    assert {name: (queue.waiting, queue.held) for name, queue in queues.items()} == {
        "a": (1, 0),
        "b": (2, 0),
        "c": (0, 1),
    }
    assert 3600 <= queues["b"].waiting_seconds < 3660
    assert queues["a"].waiting_seconds < 60
    assert queues["c"].waiting_seconds == 0


def test_a_backlog_is_counted_up_to_a_limit(store: Store, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.store_many(database, 30, dispatcher=DISPATCHER, state="queued")
    rows.store_many(database, 500, dispatcher=uuid4(), state="success")
    monkeypatch.setattr(fleet, "MOST_COUNTED", 20)
    assert [(queue.name, queue.waiting) for queue in store.queues_now(team_name="")] == [("q", 20)]


@pytest.mark.parametrize("statement", [fleet.WORKERS, fleet.QUEUES])
def test_no_figure_is_read_out_of_history(store: Store, database: Database, statement: str) -> None:
    for state in ("success", "queued"):
        rows.store_many(database, 5000, dispatcher=DISPATCHER, state=state)
    database.execute("VACUUM ANALYZE edgecontrol.job")
    values = {"team_name": "", "most": fleet.MOST_COUNTED}
    plan = "\n".join(row[0] for row in database.execute("EXPLAIN " + statement, values).fetchall())
    assert "Seq Scan on job" not in plan
    assert ("Index Only Scan using job_claimable" in plan) == (statement is fleet.QUEUES)
