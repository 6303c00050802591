from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from airflow_bridge.store import Store


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
