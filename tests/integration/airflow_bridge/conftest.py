from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

import tests.unit.airflow_bridge.airflow_home  # noqa: F401
from airflow_bridge.store import Store

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-django makes a scratch database only when some collected test asks for one by this mark."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.django_db)


@pytest.fixture(scope="session")
def postgres_url(postgres_url: str) -> str:
    """The scratch database; these tests empty tables, so any other one is refused."""
    name = str(conninfo_to_dict(postgres_url).get("dbname", ""))
    if not name.startswith("test_"):
        pytest.exit(f"database {name!r} is no scratch database of Django's test runner: not touched", returncode=3)
    return postgres_url


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
