"""Makes statements of the bridge fail as databases do: PostgreSQL itself refuses, ends the connection, loses an answer.

A statement is known by the public function that sends it: `store.enqueue`, `task_instances.look_up`. None is left out.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import pkgutil
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest
from airflow import settings
from sqlalchemy import event, exc
from sqlalchemy.orm import Session

import airflow_bridge
from airflow_bridge import database, store

_PACKAGE = str(Path(airflow_bridge.__file__).parent)
#: What the statements of others are sent through.
_TRANSPORT = "database"

Fault = Callable[[Any, Callable[[], Any]], Any]


def statements() -> list[str]:
    """All that is sent to a database by the bridge, as its source has it today."""
    ours = [f"store.{name}" for name, _ in inspect.getmembers(store.Store, inspect.isfunction) if name[0] != "_"]
    return sorted({*ours, *_queries_of_airflow()} - {"store.close"})


def _queries_of_airflow() -> Iterator[str]:
    """Public functions that open a session, by themselves or by a private one of the same module."""
    for found in pkgutil.iter_modules(airflow_bridge.__path__, "airflow_bridge."):
        if "create_session" not in _source(found.name):
            continue
        module = importlib.import_module(found.name)
        functions = {
            name: set(function.__code__.co_names)
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == module.__name__
        }
        asking = {name for name, used in functions.items() if "create_session" in used}
        asking |= {name for name, used in functions.items() if used & asking}
        yield from (f"{found.name.rpartition('.')[2]}.{name}" for name in asking if name[0] != "_")


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec
    assert spec.origin
    return Path(spec.origin).read_text()


def _site() -> str | None:
    """Who is sending a statement: the outermost function of the innermost module of the bridge."""
    module, name = None, None
    frame: FrameType | None = sys._getframe(1)
    while frame:
        folder, _, file = frame.f_code.co_filename.rpartition("/")
        stem = file.removesuffix(".py")
        if folder == _PACKAGE and stem != _TRANSPORT:
            if module not in (None, stem):
                break
            module, name = stem, frame.f_code.co_name
        frame = frame.f_back
    return f"{module}.{name}" if module else None


def _server_says(sqlstate: str) -> Fault:
    def refuse(connection: Any, carry_out: Callable[[], Any]) -> Any:
        return psycopg.Connection.execute(
            connection, f"DO $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{sqlstate}'; END $$"
        )

    return refuse


def _ended_by_the_server(connection: Any, carry_out: Callable[[], Any]) -> Any:
    return psycopg.Connection.execute(connection, "SELECT pg_terminate_backend(pg_backend_pid())")


def _answer_lost(connection: Any, carry_out: Callable[[], Any]) -> Any:
    carry_out()
    connection.close()
    raise psycopg.OperationalError("server closed the connection unexpectedly")


def _our_mistake(connection: Any, carry_out: Callable[[], Any]) -> Any:
    raise RuntimeError("a mistake of ours")


def _our_mistake_afterwards(connection: Any, carry_out: Callable[[], Any]) -> Any:
    carry_out()
    raise RuntimeError("a mistake of ours")


def _no_connection(connection: Any, carry_out: Callable[[], Any]) -> Any:
    raise psycopg.OperationalError("connection refused")


def _airflow_away(connection: Any, carry_out: Callable[[], Any]) -> Any:
    raise exc.OperationalError("SELECT 1", {}, Exception("connection refused"))


def _commit_unanswered(connection: Any, carry_out: Callable[[], Any]) -> Any:
    carry_out()
    raise exc.OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))


#: How EdgeControl's tables fail.
TABLES: dict[str, Fault] = {
    "no connection": _no_connection,
    "ended by the server": _ended_by_the_server,
    "timeout": _server_says("57014"),
    "refused": _server_says("23514"),
    "no table": _server_says("42P01"),
    "answer lost": _answer_lost,
    "our mistake": _our_mistake,
    "our mistake afterwards": _our_mistake_afterwards,
}
#: How Airflow's do.
AIRFLOWS: dict[str, Fault] = {
    "Airflow's away": _airflow_away,
    "commit not answered": _commit_unanswered,
    "our mistake there": _our_mistake,
}


class Breaking:
    """The statements of this process, and which of them fail."""

    def __init__(self) -> None:
        #: Every statement in its order.
        self.seen: list[str] = []
        #: How many of them were made to fail.
        self.failed = 0
        self._kind = ""
        self._fails: Callable[[str], bool] = lambda site: False

    @contextmanager
    def broken(self, kind: str, sites: Collection[str], *, once: bool = False) -> Iterator[None]:
        """Meanwhile these fail in this way, each time or only the first."""
        before = self.failed
        self._kind = kind
        self._fails = lambda site: site in sites and not (once and self.failed > before)
        try:
            yield
        finally:
            self._kind, self._fails = "", lambda site: False

    def fault(self, faults: dict[str, Fault]) -> Fault | None:
        """How the statement that is being sent has to fail."""
        site = _site()
        if site is None:
            return None
        self.seen.append(site)
        if self._kind not in faults or not self._fails(site):
            return None
        self.failed += 1
        return faults[self._kind]


@contextmanager
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaking]:
    """Stand between the bridge and both databases."""
    breaking = Breaking()
    take_idle, execute = database.Connections._take_idle, psycopg.Connection.execute
    chosen: list[Fault | None] = [None]

    # Asked for each statement, before there is a connection.
    def take_idle_or_fail(connections: Any) -> Any:
        chosen[0] = breaking.fault(TABLES)
        if chosen[0] is _no_connection:
            _no_connection(None, lambda: None)
        return take_idle(connections)

    def execute_or_fail(connection: Any, *args: Any, **options: Any) -> Any:
        carry_out = functools.partial(execute, connection, *args, **options)
        fault, chosen[0] = chosen[0], None
        return fault(connection, carry_out) if fault else carry_out()

    monkeypatch.setattr(database.Connections, "_take_idle", take_idle_or_fail)
    monkeypatch.setattr(database._Connection, "execute", execute_or_fail)
    at_commit: list[Fault | None] = [None]

    def before(*args: Any) -> None:
        fault = at_commit[0] = breaking.fault(AIRFLOWS)
        if fault and fault is not _commit_unanswered:
            fault(None, lambda: None)

    def after_commit(session: Session) -> None:
        fault, at_commit[0] = at_commit[0], None
        if fault:
            fault(None, lambda: None)

    event.listen(settings.engine, "before_cursor_execute", before)
    event.listen(Session, "after_commit", after_commit)
    try:
        yield breaking
    finally:
        event.remove(settings.engine, "before_cursor_execute", before)
        event.remove(Session, "after_commit", after_commit)


class Clock:
    """The bridge's clock, which can be put forward."""

    def __init__(self, real: Callable[[], float]) -> None:
        self._real = real
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


def adjustable_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every part of the bridge that is made from now on goes by this clock."""
    real = time.monotonic
    clock = Clock(real)
    monkeypatch.setattr(time, "monotonic", clock)
    for name, module in list(sys.modules.items()):
        if name.startswith("airflow_bridge."):
            for _, kind in inspect.getmembers(module, inspect.isclass):
                defaults = getattr(kind.__init__, "__kwdefaults__", None) or {}
                for option in [option for option, value in defaults.items() if value is real]:
                    monkeypatch.setitem(defaults, option, clock)
    return clock
