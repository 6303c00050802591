"""One method per endpoint of the control plane: decides what an answer means, never what follows from it."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import UUID

import requests

from agent import PROTOCOL, __version__
from agent.clock import Clock
from agent.errors import SessionReplaced
from agent.obstacles import Obstacle, explain, of_page
from agent.retry import is_repeatable, retry_after_seconds
from agent.task_kinds import ALL_QUEUES, Served
from agent.transport import Transport

log = logging.getLogger("agent.client")

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
#: A parked claim may take this much longer than its wait before the connection counts as dead.
CLAIM_MARGIN_SECONDS = 15.0
SAY_AGAIN_SECONDS = 60.0
#: The code of an answer that is not the control plane's: a gateway's page, a captive portal, somebody else's JSON.
NOT_OURS = "not_edgecontrol"
#: So much of a page is looked at for who wrote it.
PAGE_CHARACTERS = 2000
#: So many requests in a row without an answer mean that nobody is there; fewer are bad luck on a bad line.
MISSES_OF_SILENCE = 2


#: What an answer to register, and to heartbeat, has at least.
ORDERS = ("requested", "revision", "gone")
REGISTERED = (
    *ORDERS,
    "name",
    "heartbeat_seconds",
    "claim_wait_seconds",
    "outage_patience_seconds",
    "execution_api_url",
    "log_chunk_bytes",
)


class ApiError(Exception):
    """A request that did not end with success. Its text is fit for a log: never a token, never a body."""

    def __init__(
        self,
        text: str,
        *,
        status: int | None = None,
        code: str = "",
        body: dict[str, Any] | None = None,
        retry_after: float | None = None,
        obstacle: Obstacle | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.body = body or {}
        self.retry_after = retry_after
        #: What stood between us and the control plane, where that is known.
        self.obstacle = obstacle

    @property
    def repeatable(self) -> bool:
        """Whether the same request may succeed later. What somebody else answered is an outage, whatever it says."""
        return self.code == NOT_OURS or is_repeatable(self.status)


class Token(requests.auth.AuthBase):
    """Puts the token into a request. As `auth`, since requests would let a ~/.netrc overrule a plain header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Contact:
    """Says when the control plane is away or refuses us, once a minute at most, and then when it is back.

    Where one kind of request fails and others do not, it is away and back all the time.
    """

    def __init__(self, *, url: str) -> None:
        self.url = url
        self.last_success_at = 0.0
        #: Why the last request got nowhere; empty when it did.
        self.trouble = ""
        self._misses = 0
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._said = False
        self._said_at = float("-inf")

    @property
    def silent(self) -> bool:
        """Nobody answers; what else there is to send can wait."""
        return self._misses >= MISSES_OF_SILENCE

    def ok(self) -> None:
        with self._lock:
            self._misses, self.trouble = 0, ""
            since, self._away_since = self._away_since, None
            said, self._said = self._said, False
            self.last_success_at = time.monotonic()
        if since is not None and said:
            log.info("the control plane answers again after %.0f s", self.last_success_at - since)

    def failed(self, error: ApiError) -> None:
        with self._lock:
            now = time.monotonic()
            self._misses += 1
            self.trouble = str(error)
            self._away_since = now if self._away_since is None else self._away_since
            if now - self._said_at < SAY_AGAIN_SECONDS:
                return
            self._said, self._said_at = True, now
        log.warning("%s; running tasks go on, reports and logs wait on disk", error)


class Client:
    """Speaks to one control plane as one session. Safe for many threads; each request has a connection of its own."""

    def __init__(
        self, *, url: str, token: str, session: UUID, new_session: Callable[[], requests.Session] | None = None
    ) -> None:
        self.url = url
        self.contact = Contact(url=url)
        self.clock = Clock()
        #: When each thread's last request ended, however it did.
        self.tried_at: dict[int | None, float] = {}
        self._new_session = new_session or Transport().session
        self._base = f"{url}/api/v1/edge/"
        self._auth = Token(token)
        self._session_id = str(session)
        # Last in, first out: the connection that was used last is the one that is still open.
        self._idle: queue.LifoQueue[requests.Session] = queue.LifoQueue()

    # Health, what it is told of itself, and enrolment are no matter of `contact`: nothing runs yet that could wait.

    def health(self) -> dict[str, Any]:
        return self._send("GET", "health", authenticated=False, read_seconds=READ_SECONDS, keys=("status",))

    def me(self, *, queues: Iterable[str] = ()) -> dict[str, Any]:
        """What the control plane knows of this worker, and of these queues. Begins no session, and ends none."""
        keys = ("name", "requested", "outage_patience_seconds", "execution_api_url")
        asked = {"agent_version": __version__, "protocol": PROTOCOL, "queue": list(queues)}
        return self._send("GET", "workers/me", authenticated=True, read_seconds=READ_SECONDS, keys=keys, params=asked)

    def enrol(self, body: dict[str, Any], *, read_seconds: float) -> dict[str, Any]:
        """Make the token known that this client has; the enrolment token in the body is what is checked."""
        keys = ("name",)
        return self._send("POST", "workers/enrol", authenticated=False, read_seconds=read_seconds, keys=keys, json=body)

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", "workers/register", keys=REGISTERED, json={**body, "session": self._session_id})

    def heartbeat(self, body: dict[str, Any], *, read_seconds: float) -> dict[str, Any]:
        return self._call("POST", "workers/heartbeat", keys=ORDERS, json=body, read_seconds=read_seconds)

    def claim(
        self, *, claim_id: str, free_slots: int, wait: float, revision: int, served: Served = ALL_QUEUES
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"claim_id": claim_id, "free_slots": free_slots, "wait": wait, "revision": revision}
        if served.only is not None:
            body["only_queues"] = list(served.only)
        if served.without:
            body["without_queues"] = list(served.without)
        keys = ("jobs", "heartbeat_due")
        return self._call("POST", "jobs/claim", keys=keys, json=body, read_seconds=wait + CLAIM_MARGIN_SECONDS)

    def confirm(self, jobs: list[dict[str, Any]]) -> dict[str, Any]:
        return self._call("POST", "jobs/confirm", keys=("confirmed",), json={"jobs": jobs})

    def report(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._call("POST", f"jobs/{job_id}/report", keys=("state",), json=body)

    def append_log(self, job_id: str, attempt: int, *, offset: int, data: bytes) -> int:
        """Append at the offset; returns how many bytes the server has now."""
        answer = self._call(
            "POST",
            f"logs/{job_id}/{attempt}",
            keys=("size",),
            speaks_for_all=False,
            params={"offset": offset},
            data=data,
            headers={"Content-Type": "application/octet-stream"},
        )
        return int(answer["size"])

    def execution_api_health(self, execution_api_url: str) -> str:
        """Why Airflow's Execution API cannot be used now; empty when it can. Not a request to the control plane."""
        address = execution_api_url.rstrip("/") + "/health"
        try:
            with self._connection() as session:
                answer = session.get(address, timeout=(5.0, 10.0), auth=lambda request: request)
        except requests.RequestException as error:
            return f"no answer from {address} ({explain(error, url=address)})"
        if answer.status_code == 200:
            return ""
        known = of_page(answer.status_code, answer.text[:PAGE_CHARACTERS], url=address)
        return f"{address} answers {answer.status_code}" if known is None else f"no answer from {address} ({known})"

    @contextlib.contextmanager
    def _connection(self) -> Iterator[requests.Session]:
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = self._new_session()
            session.headers["User-Agent"] = f"edgecontrol-agent/{__version__}"
        try:
            yield session
        except BaseException:
            session.close()
            raise
        self._idle.put(session)

    def _call(
        self,
        method: str,
        path: str,
        *,
        keys: tuple[str, ...],
        speaks_for_all: bool = True,
        read_seconds: float = READ_SECONDS,
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> dict[str, Any]:
        try:
            answer = self._send(
                method,
                path,
                keys=keys,
                authenticated=True,
                read_seconds=read_seconds,
                headers=headers,
                **content,
            )
        except ApiError as error:
            if error.code == "session_replaced":
                raise SessionReplaced(
                    f"{error}: a newer agent runs with this token. Give every machine a token of its own "
                    "(`python -m agent enrol`, or `manage.py create_worker_token NAME`)"
                ) from None
            # What a gateway does not let through may be logs alone, for their size or their content.
            if error.status in (None, 401) or (error.repeatable and speaks_for_all):
                self.contact.failed(error)
            raise
        self.contact.ok()
        return answer

    def _send(
        self,
        method: str,
        path: str,
        *,
        keys: tuple[str, ...],
        authenticated: bool,
        read_seconds: float,
        headers: dict[str, str] | None = None,
        **content: Any,
    ) -> dict[str, Any]:
        asked_at = time.time()
        try:
            with self._connection() as session:
                response = session.request(
                    method,
                    self._base + path,
                    headers={"Edge-Session": self._session_id, **(headers or {})},
                    auth=self._auth if authenticated else (lambda request: request),
                    timeout=(CONNECT_SECONDS, read_seconds),
                    allow_redirects=False,
                    **content,
                )
        except requests.RequestException as error:
            raise unanswered(self.url, explain(error, url=self.url)) from error
        finally:
            self.tried_at[threading.get_ident()] = time.monotonic()
        answer = read_answer(response, url=self.url, keys=keys)
        self.clock.heard(response.headers.get("Date"), asked_at=asked_at, answered_at=time.time())
        return answer


def read_answer(response: requests.Response, *, url: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a success, which has these keys; an ApiError for everything else.

    A refusal of a control plane has a code and a detail. What has neither these nor those comes from somebody else, a
    gateway without a backend for instance: no job is given up for it.
    """
    try:
        body = response.json()
    except ValueError:
        body = None
    answer = body if isinstance(body, dict) else {}
    retry_after = retry_after_seconds(response.headers.get("Retry-After"), date=response.headers.get("Date"))
    if response.status_code == 200 and all(key in answer for key in keys):
        if retry_after is not None:
            answer["retry_after_seconds"] = retry_after
        return answer
    code, detail = answer.get("code"), answer.get("detail")
    ours = response.status_code >= 400 and bool(code) and isinstance(code, str) and isinstance(detail, str)
    known = None if ours else of_page(response.status_code, response.text[:PAGE_CHARACTERS], url=url)
    if known is not None:
        raise unanswered(url, known, status=response.status_code)
    said = f"{code} {' '.join(str(detail).split())[:300]}" if ours else "(not as an EdgeControl control plane does)"
    raise ApiError(
        f"{url} answers {response.status_code} {said}",
        status=response.status_code,
        code=str(code) if ours else NOT_OURS,
        body=answer if ours else None,
        retry_after=retry_after,
    )


def unanswered(url: str, why: Obstacle, *, status: int | None = None) -> ApiError:
    """The error for a request that did not get to the control plane."""
    said = f"({why})" if why.common else f"because {why}"
    return ApiError(
        f"no answer from {url} {said}", status=status, code=NOT_OURS if status is not None else "", obstacle=why
    )
