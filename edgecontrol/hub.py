"""One LISTEN connection per process that wakes parked long polls, and the bound on requests that work at once.

The hub hands out nothing: a woken poll looks at the queues itself, and every poll looks again
after `RECHECK_SECONDS`, so a lost notification costs seconds and never a job.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, UnreadablePostError

from jobs_app.notices import JOBS_CHANNEL
from workers_app.errors import Refusal
from workers_app.models import Worker
from workers_app.notices import WORKER_CHANNEL

log = logging.getLogger(__name__)

RECHECK_SECONDS = 15.0
_RECONNECT_SECONDS = 2.0
#: Parked polls never take the last quarter of the threads, which the work itself needs.
_PARKED_SHARE = 0.75
#: A request that cannot start to work within this time is answered 503.
_WORK_WAIT_SECONDS = 20.0
#: A sender that is silent for this long in the middle of a request has gone.
_BODY_WAIT_SECONDS = 15.0


class Busy(Refusal):
    """The control plane has no room for this request just now; repeat it after the stated time."""

    code = "busy"


class Poll:
    """A claim that may park: what would wake it."""

    def __init__(self, hub: Hub, *, worker: Worker, free_slots: int, runs: Callable[[str], bool]) -> None:
        self._hub = hub
        queues = worker.effective_queues
        self.worker_id = worker.pk
        self.queues = None if queues is None else frozenset(queues)
        self.runs = runs
        self.team = worker.team_name
        self.free_slots = free_slots
        self.woken = threading.Event()
        #: A newer poll of the same worker has come to this process.
        self.superseded = False

    def serves(self, *, queue: str, team: str, slots: int) -> bool:
        served = (self.queues is None or queue in self.queues) and self.runs(queue)
        return served and self.free_slots >= slots and self.team == team

    def wait(self, seconds: float) -> bool:
        """Park without a database connection; return False when this poll is to end: superseded, or we are stopping.

        Raises Busy when too many polls are parked already.
        """
        if self._hub.stopping:
            return False
        with self._hub.place(), outside():
            self.woken.wait(min(seconds, RECHECK_SECONDS))
            self.woken.clear()
        return not (self._hub.stopping or self.superseded)


class Hub:
    """The parked polls of this process and the thread that wakes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In order of arrival: the longest waiting poll is woken first.
        self._polls: dict[Poll, None] = {}
        self._parked = 0
        self._thread: threading.Thread | None = None
        self.stopping = False

    @contextmanager
    def poll(
        self, *, worker: Worker, free_slots: int, runs: Callable[[str], bool] = lambda queue: True
    ) -> Iterator[Poll]:
        """Register a poll before it looks for the first time, so that nothing is missed in between."""
        self._start()
        poll = Poll(self, worker=worker, free_slots=free_slots, runs=runs)
        with self._lock:
            for other in self._polls:
                if other.worker_id == poll.worker_id:
                    other.superseded = True
                    other.woken.set()
            self._polls[poll] = None
        try:
            yield poll
        finally:
            with self._lock:
                del self._polls[poll]

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count one parked poll."""
        with self._lock:
            if self._parked >= int(settings.EDGECONTROL.threads * _PARKED_SHARE):
                raise Busy
            self._parked += 1
        try:
            yield
        finally:
            with self._lock:
                self._parked -= 1

    def stop(self) -> None:
        """End every parked poll; safe in a signal handler, since it takes no lock."""
        self.stopping = True
        for poll in list(self._polls):
            poll.woken.set()

    def wake_for_jobs(self, *, queue: str, team: str, slots: int, count: int) -> None:
        """Wake as many polls as there are jobs, longest waiting first."""
        with self._lock:
            for poll in list(self._polls):
                if count <= 0:
                    break
                if not poll.woken.is_set() and poll.serves(queue=queue, team=team, slots=slots):
                    # To the end of the line, so that the next notification finds others.
                    self._polls[poll] = self._polls.pop(poll)
                    poll.woken.set()
                    count -= 1

    def wake_for_queues(self, names: list[str]) -> None:
        """These queues hand out otherwise than a moment ago: whoever serves one of them looks again."""
        self._wake(lambda poll: poll.queues is None or not poll.queues.isdisjoint(names))

    def wake_worker(self, worker_id: int) -> None:
        self._wake(lambda poll: poll.worker_id == worker_id)

    def _wake(self, concerns: Callable[[Poll], bool]) -> None:
        with self._lock:
            for poll in self._polls:
                if concerns(poll):
                    poll.woken.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hub", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self.stopping:
            try:
                self._listen()
            except psycopg.Error as error:
                log.warning("hub: the database is away, parked polls re-check by themselves: %s", error)
                time.sleep(_RECONNECT_SECONDS)

    def _listen(self) -> None:
        with psycopg.connect(**connection_parameters(), autocommit=True) as listener:
            for channel in (JOBS_CHANNEL, WORKER_CHANNEL):
                listener.execute(f"LISTEN {channel}")
            # What was said while nobody listened is found by looking.
            self._wake(lambda poll: True)
            for notice in listener.notifies():
                self.hear(notice.channel, notice.payload)

    def hear(self, channel: str, payload: str) -> None:
        """One notification. A payload that nobody understands wakes everybody: looking is always right."""
        try:
            said: dict[str, Any] = json.loads(payload)
            if channel == WORKER_CHANNEL:
                self.wake_worker(said["worker"])
            elif "queues" in said:
                self.wake_for_queues(said["queues"])
            else:
                self.wake_for_jobs(queue=said["queue"], team=said["team"], slots=said["slots"], count=said["count"])
        except (ValueError, KeyError, TypeError):
            log.warning("hub: not understood on %s: %.200s", channel, payload)
            self._wake(lambda poll: True)


def connection_parameters() -> dict[str, Any]:
    """The keyword arguments of a plain psycopg connection like Django's, outside its pool."""
    parameters: dict[str, Any] = connection.get_connection_params()
    for theirs in ("pool", "cursor_factory", "context", "prepare_threshold"):
        parameters.pop(theirs, None)
    return parameters


_work = threading.BoundedSemaphore(settings.EDGECONTROL.database_pool)
_mine = threading.local()


@contextmanager
def outside() -> Iterator[None]:
    """Give the database connection and the place among the working requests back for a while."""
    connection.close()
    held = getattr(_mine, "working", False)
    if held:
        _work.release()
    try:
        yield
    finally:
        if held:
            _work.acquire()


class BoundedWork:
    """Middleware: as many requests work at once as there are database connections; a burst queues, it does not fail."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if (refusal := read_body(request)) is not None:
            return refusal
        if not _work.acquire(timeout=_WORK_WAIT_SECONDS):
            return busy_answer()
        _mine.working = True
        try:
            return self._get_response(request)
        finally:
            _mine.working = False
            connection.close()
            _work.release()


def read_body(request: HttpRequest) -> HttpResponse | None:
    """Read the whole request before it takes a place, and give up on a sender that stalls; else the refusal.

    gunicorn's threads wait for a body without end: a few machines that are cut off in the middle of a chunk of a log
    would take every place.
    """
    client: socket.socket | None = request.META.get("gunicorn.socket")
    if client is not None:
        client.settimeout(_BODY_WAIT_SECONDS)
    try:
        request.body  # noqa: B018 (it is kept)
    except RequestDataTooBig:
        return _refusal(413, "too_large", "This request is larger than any that is expected here.")
    except (UnreadablePostError, OSError):
        return _refusal(408, "incomplete_request", "The request did not arrive as a whole; repeat it.")
    finally:
        if client is not None:
            client.settimeout(None)
    return None


def _refusal(status: int, code: str, detail: str) -> HttpResponse:
    # What is left of the request must not be taken for the next one.
    return JsonResponse({"code": code, "detail": detail}, status=status, headers={"Connection": "close"})


def busy_answer() -> HttpResponse:
    """503 in the API's shape, from below the API."""
    return JsonResponse(
        {"code": Busy.code, "detail": Busy().detail},
        status=503,
        headers={"Retry-After": "5"},
    )


hub = Hub()
