"""How the bridge reaches PostgreSQL: which URL, which deadlines, and what an error means; no statement stands here.

Every wait has an end, because callers are the scheduler's loop and the threads of Airflow's UI.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Generator, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import namedtuple_row

_Result = TypeVar("_Result")

CONNECT_SECONDS = 2
#: For an attempt as a whole: only a slow resolver, or a second silent address, gets here.
_ATTEMPT_SECONDS = CONNECT_SECONDS + 0.5
STATEMENT_SECONDS = 2
#: Beyond the server's own limit: only a server that does not answer at all gets here.
_SILENCE_SECONDS = STATEMENT_SECONDS + 1

#: What makes one row unfit: its values, a constraint, or a size that PostgreSQL cannot store.
_ROW_ERRORS = ("22", "23", "54")
#: The connection ends, or the server does: what its last statement did is not known.
_ENDS = ("08", "57P")
#: Missing schema, table or column, or no right to them: another version's database, or one not migrated yet.
_SCHEMA_ERRORS = ("3F", "42")


class StoreError(Exception):
    """The statement had no effect, or it is unknown whether it had; the text is for people."""


class StoreAway(StoreError):
    """PostgreSQL cannot be reached, is too slow or refuses us. Try again later."""


class NoConnection(StoreAway):
    """There is no connection to PostgreSQL: no other statement would go through either."""


class StatementFailed(StoreAway):
    """PostgreSQL refuses this statement now; it had no effect, and others may go through."""


class StoreNotReady(StoreError):
    """The database answers, but EdgeControl's tables are not there yet, or not for us."""


class RowRefused(StoreError):
    """PostgreSQL refuses a value of this statement and always will."""


class DatabaseUrlMissing(NoConnection):
    """[edgecontrol] database_url is not set (environment: AIRFLOW__EDGECONTROL__DATABASE_URL)."""


def libpq_url(url: str) -> str:
    """The URL as libpq reads it: SQLAlchemy's driver name (`postgresql+psycopg://`) is taken out.

    Raises NoConnection when it is not a PostgreSQL URL at all.
    """
    scheme, separator, rest = url.strip().partition("://")
    if not separator:
        return url.strip()  # libpq's own `host=... dbname=...` form
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise NoConnection(f"[edgecontrol] database_url must name a PostgreSQL database, not {scheme}://")
    return f"postgresql://{rest}"


def _one_line(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error) or type(error).__name__).split())


def classify(error: psycopg.Error) -> StoreError:
    """What a failure of the driver means for the caller."""
    text = _one_line(error)
    state = error.sqlstate or ""
    if state.startswith(_SCHEMA_ERRORS):
        return StoreNotReady(f"{text}; the control plane makes and changes the tables when it starts")
    # A full queue of notifications has the class of a row that is too large, and refuses whatever is announced.
    if state == "54000" and error.diag.source_file == "async.c":
        return StoreAway(text)
    # Without a state the driver itself refused a value, such as NUL in a text.
    if state.startswith(_ROW_ERRORS) or (not state and isinstance(error, psycopg.DataError)):
        return RowRefused(text)
    return StatementFailed(text) if state and not state.startswith(_ENDS) else StoreAway(text)


class _Connection(psycopg.Connection[Any]):
    """Gives up on a server that is silent: a frozen one keeps its sockets open for ever."""

    def wait(self, gen: Generator[Any, Any, _Result], *args: Any, **kwargs: Any) -> _Result:
        return super().wait(_until(gen, time.monotonic() + _SILENCE_SECONDS), *args, **kwargs)


def _until(gen: Generator[Any, Any, _Result], deadline: float) -> Generator[Any, Any, _Result]:
    """The same generator, ending with an error at the deadline (psycopg resumes it every 0.1 s)."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise psycopg.OperationalError("no answer from PostgreSQL within the deadline")
            wanted = gen.send(ready)
    except StopIteration as end:
        result: _Result = end.value
        return result


def connect(url: str) -> psycopg.Connection[Any]:
    """A connection in autocommit mode whose every wait is bounded. Raises psycopg.Error."""
    defaults: dict[str, Any] = {"keepalives_idle": 10, "application_name": "edgecontrol-airflow"}
    # What the operator's URL says wins, but for the deadlines.
    given = conninfo_to_dict(libpq_url(url))
    options = [str(given.get("options", "")), f"-c statement_timeout={STATEMENT_SECONDS}s"]
    deadlines: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 5000,
        "options": " ".join(filter(None, options)),
    }
    # No server-side prepared statements: array sizes differ from call to call, and a pooler may stand between.
    return _Connection.connect(
        make_conninfo(**{**defaults, **given, **deadlines}),
        autocommit=True,
        prepare_threshold=None,
        row_factory=namedtuple_row,
    )


_Attempt = futures.Future[psycopg.Connection[Any]]


def _connect_aside(url: str) -> _Attempt:
    """Connect in a thread of its own.

    psycopg 3.3 lets the resolver take whatever time it takes, and gives each address of a name its own deadline.
    """
    attempt: _Attempt = futures.Future()

    def run() -> None:
        try:
            attempt.set_result(connect(url))
        except BaseException as error:
            attempt.set_exception(error)

    threading.Thread(target=run, name="edgecontrol-connect", daemon=True).start()
    return attempt


def _close_late(attempt: _Attempt) -> None:
    if not attempt.exception():
        attempt.result().close()


def _is_quiet(connection: psycopg.Connection[Any]) -> bool:
    """Nobody speaks on an idle connection but a server that ends it."""
    # Not select(): it knows no file descriptor beyond 1023, and a busy api-server has many sockets.
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return not poll.poll(0)


class Connections:
    """At most `limit` connections, made on first use, shared by any number of threads."""

    def __init__(self, url: str, *, limit: int) -> None:
        self._url = url
        self._permits = threading.BoundedSemaphore(limit)
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[Any]] = []
        #: Those that took too long for whoever asked; never more than connections.
        self._attempts: list[_Attempt] = []

    @contextmanager
    def borrow(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection for one statement. Raises a StoreError, whatever the driver raised."""
        if not self._url:
            raise DatabaseUrlMissing(DatabaseUrlMissing.__doc__)
        if not self._permits.acquire(timeout=CONNECT_SECONDS):
            raise StoreAway(f"all {self._limit} connections of this process are busy")
        connection = None
        try:
            connection = self._take_idle() or self._connect()
            yield connection
            self._idle.append(connection)
        except psycopg.Error as error:
            if connection is None:
                raise NoConnection(_one_line(error)) from error
            trouble = classify(error)
            if isinstance(trouble, StoreAway) or connection.broken:
                connection.close()
            else:
                self._idle.append(connection)
            raise trouble from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        finally:
            self._permits.release()

    def close(self) -> None:
        with self._lock:
            while self._attempts:
                self._attempts.pop().add_done_callback(_close_late)
            while self._idle:
                self._idle.pop().close()

    def _take_idle(self) -> psycopg.Connection[Any] | None:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed and _is_quiet(connection):
                    return connection
                connection.close()
        return None

    def _connect(self) -> psycopg.Connection[Any]:
        """A new connection, within the deadline whatever hangs: an attempt goes on, and a later call has the result."""
        with self._lock:
            attempt = self._attempts.pop() if self._attempts else None
        attempt = attempt or _connect_aside(self._url)
        futures.wait([attempt], timeout=_ATTEMPT_SECONDS)
        if attempt.done():
            return attempt.result()
        with self._lock:
            self._attempts.append(attempt)
        attempt.add_done_callback(self._came_late)
        raise NoConnection(f"no connection to PostgreSQL within {_ATTEMPT_SECONDS} s")

    def _came_late(self, attempt: _Attempt) -> None:
        """Keep the connection, unless somebody waits for this attempt again."""
        with self._lock:
            if attempt in self._attempts:
                self._attempts.remove(attempt)
                if not attempt.exception():
                    self._idle.append(attempt.result())
