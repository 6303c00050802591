from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from airflow.configuration import conf

from airflow_bridge.executor import EdgeControlExecutor
from airflow_bridge.store import Store
from tests.integration.airflow_bridge import rows, task_instances
from tests.integration.airflow_bridge.log_files import PATH
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import new_job


@pytest.fixture
def database(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection beside the bridge's, to the migrated tables; they are empty again afterwards."""
    with psycopg.connect(postgres_url, autocommit=True, row_factory=psycopg.rows.namedtuple_row) as connection:
        yield connection
        connection.execute(
            "TRUNCATE edgecontrol.job, edgecontrol.log_chunk, edgecontrol.queue, edgecontrol.worker CASCADE"
        )


@pytest.fixture
def store(postgres_url: str, database: psycopg.Connection[Any]) -> Iterator[Store]:
    store = Store(postgres_url)
    yield store
    store.close()


@pytest.fixture
def worker(database: psycopg.Connection[Any]) -> int:
    """A worker's id."""
    row = database.execute("INSERT INTO edgecontrol.worker (name) VALUES ('berlin-3') RETURNING id").fetchone()
    assert row
    return int(row.id)


@pytest.fixture
def log_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path))
    assert conf.get("logging", "base_log_folder") == str(tmp_path)
    return tmp_path


@pytest.fixture
def job(store: Store, database: Database, worker: int) -> UUID:
    """A job that runs and has written nothing to `log_files.PATH` yet."""
    given = new_job(log_path=PATH)
    store.enqueue([given])
    rows.hold(database, given.id, worker=worker)
    return given.id


@pytest.fixture(scope="session")
def airflow_tables() -> None:
    task_instances.create_tables()


@pytest.fixture
def make_executor(
    postgres_url: str, database: Database, airflow_tables: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], EdgeControlExecutor]]:
    """Each call is another scheduler's executor."""
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", postgres_url)
    made: list[EdgeControlExecutor] = []

    def make() -> EdgeControlExecutor:
        executor = EdgeControlExecutor(parallelism=32)
        executor.start()
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor._store.close()
    task_instances.clear()


@pytest.fixture
def executor(make_executor: Callable[[], EdgeControlExecutor]) -> EdgeControlExecutor:
    return make_executor()
