"""Rows and callers for tests against a real PostgreSQL: functions that fill in whatever a test does not care about."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from rest_framework.test import APIClient

from tests.integration.people import OPS

BOOT = "boot-1"


@pytest.fixture(autouse=True)
def _no_agent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether somebody has built edge-agent.pyz here changes nothing for tests; see `agent_file`."""
    monkeypatch.setattr("workers_app.agent_file.BUILT", Path("no/such/edge-agent.pyz"))


@pytest.fixture
def agent_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _no_agent_file: None) -> Path:
    """What stands in for edge-agent.pyz."""
    file = tmp_path / "edge-agent.pyz"
    file.write_bytes(b"the agent\n" * 1000)
    monkeypatch.setattr("workers_app.agent_file.BUILT", file)
    return file


@pytest.fixture
def make_worker(db: None) -> Callable[..., Any]:
    """A worker that has registered and is idle; keywords override its columns."""
    from workers_app.models import Worker

    def make(name: str | None = None, *, heard_seconds_ago: float = 0, **columns: Any) -> Worker:
        columns = {
            "session": uuid.uuid4(),
            "boot_id": BOOT,
            "reported": "idle",
            "state": "idle",
            "concurrency": 8,
        } | columns
        worker = Worker.objects.create(name=name or f"worker-{uuid.uuid4()}", **columns)
        _move("worker", worker.pk, last_heartbeat=heard_seconds_ago)
        worker.refresh_from_db()
        return worker

    return make


@pytest.fixture
def make_job(db: None) -> Callable[..., Any]:
    """A waiting job of the queue `default`, written as Airflow's side writes it; keywords override its columns.

    With a `worker` it is running there; the columns that its state demands are filled in.
    """
    from jobs_app.models import Job, Queue

    def make(**columns: Any) -> Job:
        if columns.get("worker") is not None:
            columns = {"state": "running", "attempt": 1} | columns
        state = columns.get("state", "queued")
        columns = {
            "id": uuid.uuid4(),
            "kind": "ExecuteTask",
            "dag_id": "tour",
            "task_id": "hello",
            "run_id": "manual",
            "airflow_id": uuid.uuid4(),
            "workload": {"type": "ExecuteTask", "ti": {"id": "x"}},
            "token": "airflow-token" if state in ("queued", "claimed", "running") else None,
            "queue": "default",
        } | columns
        Queue.objects.remember([columns["queue"]])
        job = Job.objects.create(**columns | {"state": "queued", "worker": None, "token": "t"})
        with connection.cursor() as cursor:
            cursor.execute(
                """
                UPDATE job SET state = %(state)s, worker_id = %(worker)s, token = %(token)s,
                       claimed_at = CASE WHEN %(state)s IN ('claimed', 'running') THEN now() END,
                       started_at = CASE WHEN %(state)s = 'running' THEN now() END,
                       finished_at = CASE WHEN %(state)s NOT IN ('queued', 'claimed', 'running') THEN now() END
                 WHERE id = %(id)s
                """,
                {
                    "id": job.pk,
                    "state": state,
                    "token": columns["token"],
                    "worker": columns["worker"].pk if columns.get("worker") else None,
                },
            )
        job.refresh_from_db()
        return job

    return make


@pytest.fixture
def long_ago() -> Callable[..., None]:
    """Move a row's moments into the past: `long_ago(job, claimed_at=40)` was claimed 40 seconds ago."""

    def long_ago(row: Any, **seconds: float) -> None:
        _move(row._meta.db_table, row.pk, **seconds)
        row.refresh_from_db()

    return long_ago


def _move(table: str, pk: Any, **seconds: float) -> None:
    with connection.cursor() as cursor:
        for column, ago in seconds.items():
            cursor.execute(
                f"UPDATE {table} SET {column} = now() - %s * interval '1 second' WHERE id = %s",  # noqa: S608
                [ago, pk],
            )


@pytest.fixture
def second_connection(transactional_db: None, postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Somebody else at the same database, with a transaction of their own."""
    with psycopg.connect(postgres_url, options="-c search_path=edgecontrol") as other:
        yield other
        other.rollback()


@pytest.fixture
def in_thread(transactional_db: None) -> Iterator[Callable[..., Future[Any]]]:
    """Run a call in a thread with a database connection of its own; return its future."""
    with ThreadPoolExecutor(32) as threads:

        def run(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
            def with_own_connection() -> Any:
                try:
                    return call(*args, **kwargs)
                finally:
                    connection.close()

            return threads.submit(with_own_connection)

        yield run


@pytest.fixture
def blocked(second_connection: psycopg.Connection[Any]) -> Callable[[int], None]:
    """Return once that many sessions of this database wait for a lock of another one."""

    def wait_until_blocked(count: int) -> None:
        for _ in range(2000):
            waiting = second_connection.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
            ).fetchone()
            # Statistics are frozen inside a transaction.
            second_connection.execute("SELECT pg_stat_clear_snapshot()")
            if waiting is not None and waiting[0] >= count:
                return
            threading.Event().wait(0.005)
        raise AssertionError(f"fewer than {count} sessions wait for a lock")

    return wait_until_blocked


@pytest.fixture(scope="session")
def _listener_ends(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The hub's LISTEN connection would keep the test database from being dropped."""
    yield
    from edgecontrol.hub import hub

    hub.stopping = True
    with django_db_blocker.unblock(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


class Caller:
    """One agent process as the API sees it: a worker's token and a session of its own."""

    PREFIX = "/api/v1/edge/"

    def __init__(self, worker: Any, token: str) -> None:
        self.worker, self.token = worker, token
        self.session = str(worker.session or uuid.uuid4())
        self.client = APIClient(raise_request_exception=False)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Edge-Session": self.session}

    def post(self, path: str, **body: Any) -> Any:
        # Encoded here, so that a test can say what no serializer would.
        return self.client.post(
            self.PREFIX + path, json.dumps(body), content_type="application/json", headers=self.headers()
        )

    def register(self, **said: Any) -> Any:
        return self.post(
            "workers/register",
            **{
                "session": self.session,
                "boot_id": BOOT,
                "name": None,
                "queues": None,
                "concurrency": 8,
                "agent_version": "0.1.0",
                "airflow_version": "3.3.2",
                "protocol": 1,
                "sysinfo": {},
                "held": [],
            }
            | said,
        )

    def heartbeat(self, **said: Any) -> Any:
        return self.post(
            "workers/heartbeat",
            **{"reported": "idle", "jobs_active": 0, "concurrency": 8, "queues": None, "sysinfo": None, "held": []}
            | said,
        )

    def claim(self, **said: Any) -> Any:
        self.worker.refresh_from_db()
        return self.post(
            "jobs/claim",
            **{"claim_id": str(uuid.uuid4()), "free_slots": 8, "wait": 0, "revision": self.worker.revision} | said,
        )

    def confirm(self, *pairs: tuple[Any, int]) -> Any:
        return self.post("jobs/confirm", jobs=[{"id": str(pk), "attempt": attempt} for pk, attempt in pairs])

    def report(self, job_id: Any, **said: Any) -> Any:
        return self.post(f"jobs/{job_id}/report", **{"attempt": 1, "state": "success", "exit_code": 0} | said)

    def append(self, job_id: Any, attempt: int, data: bytes, *, offset: Any = 0, **headers: str) -> Any:
        return self.client.post(
            f"{self.PREFIX}logs/{job_id}/{attempt}?offset={offset}",
            data,
            content_type=headers.pop("content_type", "application/octet-stream"),
            headers=self.headers() | headers,
        )


@pytest.fixture
def http(request: pytest.FixtureRequest, db: None, _listener_ends: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let requests run inside the test's own transaction, which is faster than emptying every table afterwards.

    With `transactional_db` each request gives its connection back, as in production.
    """
    if "transactional_db" not in request.fixturenames:
        kept = SimpleNamespace(close=lambda: None, get_connection_params=connection.get_connection_params)
        monkeypatch.setattr("edgecontrol.hub.connection", kept)


@pytest.fixture
def agent(http: None, make_worker: Callable[..., Any]) -> Callable[..., Caller]:
    """An agent with a token and a session; keywords override its worker's columns."""
    from workers_app import auth

    def agent(worker: Any = None, **columns: Any) -> Caller:
        worker = worker or make_worker(**columns)
        return Caller(worker, auth.issue(worker=worker, by=OPS))

    return agent


@pytest.fixture
def ops(http: None) -> Client:
    """A superuser's browser."""
    client = Client()
    client.force_login(User.objects.create_superuser("ops"))
    return client


@pytest.fixture
def staff(http: None) -> Callable[..., Client]:
    """The browser of somebody who may log in to the admin, with the named permissions."""

    def staff(*permissions: str) -> Client:
        user = User.objects.create_user(f"staff-{uuid.uuid4()}", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        return client

    return staff
