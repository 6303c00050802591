"""What really leaves a scheduler: Airflow's own statsd client on one side, a socket on the other."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from airflow._shared.timezones import timezone
from airflow.jobs.job import Job
from airflow.utils.session import create_session
from sqlalchemy import delete, insert, update

from airflow_bridge import fleet_metrics, metrics
from airflow_bridge.airflow_features import workload_key
from airflow_bridge.database import NoConnection
from airflow_bridge.executor import EdgeControlExecutor
from tests.integration.airflow_bridge import rows
from tests.integration.airflow_bridge.rows import Database
from tests.integration.airflow_bridge.scheduling import break_store, job_id, let_time_pass, queue, turn
from tests.integration.airflow_bridge.test_fleet import add_worker
from tests.unit.airflow_bridge.builders import task

pytestmark = pytest.mark.usefixtures("every_turn_is_due")


class Statsd:
    """A statsd server that remembers each message."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]

    def heard(self) -> dict[str, list[str]]:
        """What came since the last call, by name; of a sender on the same machine, all is here once it was sent."""
        heard: dict[str, list[str]] = {}
        while True:
            try:
                message = self.socket.recv(65536).decode()
            except BlockingIOError:
                return heard
            for line in message.splitlines():
                name, _, value = line.partition(":")
                heard.setdefault(name.removeprefix("airflow."), []).append(value)


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statsd]:
    server = Statsd()
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.port))
    yield server
    server.socket.close()


@pytest.fixture
def every_turn_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (metrics, fleet_metrics):
        monkeypatch.setattr(module, "GAUGE_SECONDS", 0.0)
    monkeypatch.setattr(metrics.Meters.send, "__kwdefaults__", {"seconds": 60.0})


@pytest.fixture
def scheduler(
    statsd: Statsd, make_executor: Callable[[], EdgeControlExecutor]
) -> Iterator[Callable[..., EdgeControlExecutor]]:
    """Each call starts another scheduler, as Airflow's table of jobs has it."""

    def start(
        *, silent_seconds: float = 0, state: str = "running", team_name: str | None = None
    ) -> EdgeControlExecutor:
        heard = timezone.utcnow() - timedelta(seconds=silent_seconds)
        values = {"job_type": "SchedulerJob", "state": state, "latest_heartbeat": heard}
        with create_session(scoped=False) as session:
            number = session.execute(insert(Job).values(**values).returning(Job.id)).scalar_one()
        executor = make_executor()
        executor.job_id = number
        return executor

    yield start
    with create_session(scoped=False) as session:
        session.execute(delete(Job))


def die(executor: EdgeControlExecutor) -> None:
    with create_session(scoped=False) as session:
        long_ago = timezone.utcnow() - timedelta(hours=1)
        session.execute(update(Job).where(Job.id == executor.job_id).values(latest_heartbeat=long_ago))


def beat(database: Database) -> None:
    database.execute("UPDATE edgecontrol.worker SET last_heartbeat = clock_timestamp()")


def of_fleet(heard: dict[str, list[str]]) -> set[str]:
    return {name for name in heard if re.match(r"edge_worker\.(?!ti\.)|edgecontrol\.jobs\.", name)}


def test_a_scheduler_sends_what_people_of_edge3_know_and_what_is_ours(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database
) -> None:
    berlin = add_worker(
        database, "berlin", state="running", concurrency=4, queues=["default"], sysinfo='{"cpu_percent": 5}'
    )
    executor = scheduler()
    running, waiting, ended = (task(task_id=name) for name in ("running", "waiting", "ended"))
    queue(executor, running, waiting, ended)
    turn(executor)
    beat(database)
    rows.hold(database, job_id(running), worker=berlin)
    rows.hold(database, job_id(ended), worker=berlin)
    rows.end(database, job_id(ended), state="success", outcome="success")
    statsd.heard()
    turn(executor)
    turn(executor)
    heard = statsd.heard()
    assert heard["edge_worker.connected.berlin"][-1] == "1|g"
    assert heard["edge_worker.jobs_active.berlin"][-1] == "1|g"
    assert heard["edge_worker.free_concurrency.berlin"][-1] == "3|g"
    assert heard["edge_worker.cpu_percent.berlin"][-1] == "5|g"
    assert heard["edge_worker.heartbeat_count.berlin"] == ["1|c"]
    assert heard["edge_worker.ti.start.default.etl.running"] == ["1|c"]
    assert heard["edge_worker.ti.start.default.etl.ended"] == ["1|c"]
    assert heard["edge_worker.ti.finish.default.success.etl.ended"] == ["1|c"]
    assert heard["edgecontrol.jobs.waiting.default"][-1] == "1|g"
    assert heard["edgecontrol.jobs.held.default"][-1] == "1|g"
    assert all(value.endswith("|ms") for value in heard["edge_executor.sync.duration"])
    assert heard["edgecontrol.table_away"] == ["0|g"] * 2


def test_the_eldest_of_several_schedulers_speaks_for_the_fleet(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database
) -> None:
    add_worker(database, "berlin")
    beat(database)
    scheduler(silent_seconds=3600)
    scheduler(state="failed")
    eldest, younger = scheduler(), scheduler()
    turn(younger)
    assert not of_fleet(statsd.heard())
    turn(eldest)
    assert of_fleet(statsd.heard())
    die(eldest)
    turn(younger)
    assert of_fleet(statsd.heard())
    turn(eldest)
    assert not of_fleet(statsd.heard())


def test_a_worker_that_never_came_is_no_machine_that_is_gone(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database
) -> None:
    add_worker(database, "taken-over-from-edge3")
    executor = scheduler()
    turn(executor)
    assert not of_fleet(statsd.heard())
    beat(database)
    turn(executor)
    assert statsd.heard()["edge_worker.connected.taken-over-from-edge3"] == ["0|g"]


def test_a_heartbeat_is_counted_by_one_scheduler_only_and_once(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database
) -> None:
    add_worker(database, "berlin")
    schedulers = [scheduler(), scheduler()]
    beats = 0
    for number in range(6):
        if number % 2:
            beat(database)
        for executor in schedulers:
            turn(executor)
        beats += len(statsd.heard().get("edge_worker.heartbeat_count", []))
    assert beats == 3


def test_a_queue_that_has_become_empty_is_shown_as_empty(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database
) -> None:
    executor = scheduler()
    queue(executor, task(queue="gpu"))
    turn(executor)
    turn(executor)
    assert statsd.heard()["edgecontrol.jobs.waiting.gpu"][-1] == "1|g"
    database.execute("UPDATE edgecontrol.job SET state = 'revoked', finished_at = now(), token = NULL")
    turn(executor)
    heard = statsd.heard()
    assert heard["edgecontrol.jobs.waiting.gpu"] == ["0|g"]
    assert heard["edgecontrol.jobs.waiting_seconds.gpu"] == ["0|g"]
    assert heard["edgecontrol.jobs.revoked.gpu"] == ["1|c"]


def test_a_hand_out_that_came_back_is_counted_and_started_once(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, database: Database, worker: int
) -> None:
    executor, workload = scheduler(), task()
    queue(executor, workload)
    turn(executor)
    for _ in range(2):
        rows.hold(database, job_id(workload), worker=worker)
        turn(executor)
        database.execute(
            "UPDATE edgecontrol.job SET state = 'queued', worker_id = NULL, reason = 'the start did not reach Airflow'"
        )
        turn(executor)
        turn(executor)
    heard = statsd.heard()
    assert sum(int(value.partition("|")[0]) for value in heard["edgecontrol.jobs.released.default"]) == 2
    assert heard["edge_worker.ti.start.default.etl.extract"] == ["1|c"]
    assert "edge_worker.ti.finish.default.failed.etl.extract" not in heard


def test_a_table_that_is_away_is_told_by_every_scheduler(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler()
    executor = scheduler()
    queue(executor, task())
    with monkeypatch.context() as patch:
        for statement in ("enqueue", "untold", "held"):
            break_store(patch, executor, statement, NoConnection("connection refused"))
        turn(executor)
    heard = statsd.heard()
    assert (heard["edgecontrol.table_away"], heard["edgecontrol.buffered"]) == (["1|g"], ["1|g"])
    let_time_pass(executor)
    turn(executor)
    heard = statsd.heard()
    assert (heard["edgecontrol.table_away"], heard["edgecontrol.buffered"]) == (["0|g"], ["0|g"])


@pytest.mark.parametrize("statement", ["workers_now", "queues_now"])
def test_figures_that_cannot_be_read_stop_nothing_else(
    scheduler: Callable[..., EdgeControlExecutor],
    statsd: Statsd,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    statement: str,
) -> None:
    executor = scheduler()
    break_store(monkeypatch, executor, statement, RuntimeError("a mistake of ours"))
    workload = task()
    queue(executor, workload)
    turn(executor)
    rows.end(database, job_id(workload), state="success", outcome="success")
    assert list(turn(executor)) == [workload_key(workload)]


def test_airflows_own_table_of_jobs_being_away_stops_nothing(
    scheduler: Callable[..., EdgeControlExecutor], statsd: Statsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = scheduler()

    def away() -> int:
        raise OSError("Airflow's database is away")

    monkeypatch.setattr(executor._fleet_meters, "_eldest", away)
    workload = task()
    queue(executor, workload)
    turn(executor)
    assert executor.has_task(workload.ti)
    assert "edgecontrol.table_away" in statsd.heard()


def test_without_metrics_no_statement_is_spent_on_them(
    make_executor: Callable[[], EdgeControlExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make_executor()
    executor.job_id = 1
    for statement in ("workers_now", "queues_now"):
        break_store(monkeypatch, executor, statement, AssertionError("asked for"))
    monkeypatch.setattr(executor._turns.outage, "failed", lambda step, *, alone: pytest.fail(f"failed: {step}"))
    turn(executor)
