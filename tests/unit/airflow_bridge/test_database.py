from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import errors

from airflow_bridge.database import (
    Connections,
    DatabaseUrlMissing,
    NoConnection,
    RowRefused,
    StatementFailed,
    StoreAway,
    StoreNotReady,
    classify,
    libpq_url,
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgres://h/d", "postgresql://h/d"),
        ("postgresql+psycopg://u:p@h/d?sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("postgresql+psycopg2://:@/d?host=/run/pg", "postgresql://:@/d?host=/run/pg"),
        (" postgresql+asyncpg://h/d\n", "postgresql://h/d"),
        ("host=h dbname=d", "host=h dbname=d"),
    ],
)
def test_urls_of_sqlalchemy_and_libpq_are_both_understood(given: str, expected: str) -> None:
    assert libpq_url(given) == expected


def test_another_database_is_refused_without_its_password() -> None:
    with pytest.raises(StoreAway, match="must name a PostgreSQL database, not mysql://") as refused:
        libpq_url("mysql://root:geheim@h/d")
    assert "geheim" not in str(refused.value)


class NotificationsFull(errors.ProgramLimitExceeded):
    """As PostgreSQL 18 raises it at COMMIT while somebody listens and does not read."""

    diag: Any = SimpleNamespace(message_primary="too many notifications in the NOTIFY queue", source_file="async.c")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.UndefinedTable("no job"), StoreNotReady),
        (errors.InvalidSchemaName("no schema"), StoreNotReady),
        (errors.InsufficientPrivilege("not yours"), StoreNotReady),
        (errors.CheckViolation("slots"), RowRefused),
        (errors.UntranslatableCharacter("NUL"), RowRefused),
        (errors.ProgramLimitExceeded("index row too long"), RowRefused),
        (psycopg.DataError("NUL in a text"), RowRefused),
        (NotificationsFull(), StoreAway),
        (errors.QueryCanceled("too slow"), StatementFailed),
        (errors.DeadlockDetected("again"), StatementFailed),
        (errors.DiskFull("full"), StatementFailed),
        (errors.TooManyConnections("full"), StatementFailed),
        (errors.AdminShutdown("bye"), StoreAway),
        (psycopg.OperationalError("gone"), StoreAway),
    ],
)
def test_an_error_says_whether_it_is_the_row_the_schema_or_the_database(
    error: psycopg.Error, expected: type[Exception]
) -> None:
    assert type(classify(error)) is expected


def test_an_error_is_one_line() -> None:
    assert str(classify(psycopg.OperationalError("connection failed:\n\tIs the server running?\n"))) == (
        "connection failed: Is the server running?"
    )


def test_without_a_url_the_error_says_what_to_set() -> None:
    with (
        pytest.raises(DatabaseUrlMissing, match="AIRFLOW__EDGECONTROL__DATABASE_URL"),
        Connections("", limit=1).borrow(),
    ):
        pass


def test_a_refused_connection_is_told_as_away() -> None:
    connections = Connections("postgresql://nobody@127.0.0.1:1/none", limit=1)
    for _ in range(3):  # the permit comes back each time
        with pytest.raises(NoConnection), connections.borrow():
            pass


def test_an_unreadable_url_is_told_as_away() -> None:
    with pytest.raises(NoConnection), Connections("nonsense", limit=1).borrow():
        pass
