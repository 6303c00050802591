from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_bridge.database import Connections, NoConnection, StoreAway
from airflow_bridge.store import Store
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import DISPATCHER


class Relay:
    """A TCP way to PostgreSQL that can be frozen: sockets stay open, and nothing comes through."""

    def __init__(self, server: tuple[Any, ...]) -> None:
        self.frozen = threading.Event()
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            if self.frozen.is_set():
                continue
            family, address = self._server
            upstream = socket.socket(family)
            upstream.connect(address)
            self._sockets.append(upstream)
            for source, target in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if not self.frozen.is_set():
                    target.sendall(data)
        except OSError:
            return

    def close(self) -> None:
        for each in self._sockets:
            # Ends a recv() in another thread too, which close() alone does not.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def relay(postgres_url: str) -> Iterator[Relay]:
    given = conninfo_to_dict(postgres_url)
    host, port = str(given.get("host", "127.0.0.1")), int(given.get("port") or 5432)
    if host.startswith("/"):
        relay = Relay((socket.AF_UNIX, f"{host}/.s.PGSQL.{port}"))
    else:
        relay = Relay((socket.AF_INET, (host, port)))
    yield relay
    relay.close()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


@pytest.fixture
def relayed_store(postgres_url: str, relay: Relay, database: Database) -> Iterator[Store]:
    store = Store(make_conninfo(postgres_url, host="127.0.0.1", port=relay.port, sslmode="disable"))
    yield store
    store.close()


def test_a_server_that_falls_silent_is_given_up_within_the_deadline(relayed_store: Store, relay: Relay) -> None:
    relayed_store.held(dispatcher=DISPATCHER)
    relay.frozen.set()
    with at_most(4), pytest.raises(StoreAway, match="no answer from PostgreSQL"):
        relayed_store.held(dispatcher=DISPATCHER)
    with at_most(3), pytest.raises(StoreAway, match="timeout"):
        relayed_store.held(dispatcher=DISPATCHER)
    relay.frozen.clear()
    assert relayed_store.held(dispatcher=DISPATCHER) == {}


def test_a_resolver_that_hangs_costs_seconds_and_its_answer_is_used_when_it_comes(
    postgres_url: str, relay: Relay, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []
    resolve = socket.getaddrinfo

    def hanging(*args: Any, **kwargs: Any) -> Any:
        asked.append(args[0])
        answers.wait(60)
        return resolve("127.0.0.1", *args[1:], **kwargs)

    monkeypatch.setattr("psycopg._conninfo_attempts.socket.getaddrinfo", hanging)
    store = Store(make_conninfo(postgres_url, host="db.example", port=relay.port, sslmode="disable"))
    for _ in range(2):
        with at_most(4), pytest.raises(NoConnection, match=r"within 2\.5 s"):
            store.held(dispatcher=DISPATCHER)
    answers.set()
    assert store.held(dispatcher=DISPATCHER) == {}
    store.close()
    assert asked == ["db.example"]


def test_a_connection_that_came_too_late_is_kept_for_the_next_caller_and_closed_in_the_end(
    postgres_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_bridge.database._ATTEMPT_SECONDS", 0)
    connections = Connections(postgres_url, limit=1)
    with pytest.raises(NoConnection), connections.borrow():
        pass
    deadline = time.monotonic() + 20
    while not connections._idle and time.monotonic() < deadline:
        time.sleep(0.01)
    (late,) = connections._idle
    with connections.borrow() as borrowed:
        assert borrowed is late
    connections.close()
    assert late.closed


def test_many_addresses_cost_no_more_than_one(postgres_url: str, relay: Relay) -> None:
    relay.frozen.set()
    url = make_conninfo(
        postgres_url, host=",".join(["127.0.0.1"] * 4), port=",".join([str(relay.port)] * 4), sslmode="disable"
    )
    with at_most(4), pytest.raises(NoConnection), Connections(url, limit=1).borrow():
        pass


def number_of(connections: Connections) -> int:
    with connections.borrow() as connection:
        return connection.fileno()


def test_a_process_with_many_open_files_uses_its_connection_again(postgres_url: str, database: Database) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    low: list[Connections] = []
    try:
        connections = Connections(postgres_url, limit=1)
        # A thread of an earlier test may have closed a low descriptor since; such a connection takes it.
        while (descriptor := number_of(connections)) <= 1023 and len(low) < 50:
            low.append(connections)
            connections = Connections(postgres_url, limit=1)
        assert descriptor > 1023
        with connections.borrow() as first:
            pass
        with connections.borrow() as second:
            assert second is first
    finally:
        for opened in (*low, connections):
            opened.close()
        for descriptor in others:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_idle_connection_that_the_server_ended_is_replaced(postgres_url: str, database: Database) -> None:
    store = Store(postgres_url)
    store.held(dispatcher=DISPATCHER)
    database.execute(
        "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'edgecontrol-airflow'"
    )
    assert store.held(dispatcher=DISPATCHER) == {}
    store.close()


def test_many_threads_share_few_connections(postgres_url: str, database: Database) -> None:
    store = Store(postgres_url, connections=3)
    most: list[int] = []
    failures: list[Exception] = []

    def read() -> None:
        try:
            for _ in range(20):
                store.log_parts("a.log")
                query = """
                    SELECT count(*) FROM pg_stat_activity
                    WHERE application_name = 'edgecontrol-airflow' AND datname = current_database()"""
                most.append(store._run(query)[0].count)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    assert failures == []
    assert max(most) <= 3


def test_a_reader_that_finds_all_connections_busy_is_told_so(postgres_url: str, database: Database) -> None:
    store = Store(postgres_url, connections=1)
    with store._connections.borrow(), at_most(3), pytest.raises(StoreAway, match="all 1 connections"):
        store.log_parts("a.log")
    assert store.log_parts("a.log") == []
    store.close()


def test_the_deadlines_are_not_the_operators(postgres_url: str, database: Database) -> None:
    url = make_conninfo(
        postgres_url, connect_timeout=60, tcp_user_timeout=90000, options="-c statement_timeout=0", keepalives_idle=77
    )
    connections = Connections(url, limit=1)
    with connections.borrow() as connection:
        used = connection.info.get_parameters()
        shown = connection.execute("SHOW statement_timeout").fetchall()
    connections.close()
    assert (used["connect_timeout"], used["tcp_user_timeout"], used["keepalives_idle"]) == ("2", "5000", "77")
    assert shown[0].statement_timeout == "2s"


def test_the_operators_own_options_in_the_url_are_kept(postgres_url: str, database: Database) -> None:
    url = make_conninfo(postgres_url, options="-c lock_timeout=1234ms", application_name="mine")
    store = Store(url)
    shown = store._run(
        "SELECT current_setting('lock_timeout') AS lock, current_setting('statement_timeout') AS statement,"
        " current_setting('application_name') AS name"
    )[0]
    store.close()
    assert tuple(shown) == ("1234ms", "2s", "mine")
