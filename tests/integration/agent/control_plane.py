"""A control plane of one process for tests: the agent's API by the contract, faults by rule, and a ledger of what came.

Beside it, under /execution/, the few calls of Airflow's Execution API that a stand-in task makes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "ec_testkey_testsecret"
API = "/api/v1/edge/"


class Refusal(Exception):
    def __init__(self, status: int, code: str, detail: str = "", **more: Any) -> None:
        super().__init__(code)
        self.status = status
        self.body = {"code": code, "detail": detail or code, **more}


@dataclass
class FakeJob:
    id: str
    workload: dict[str, Any]
    queue: str = "default"
    slots: int = 1
    kind: str = "ExecuteTask"
    log_path: str = "dag_id=d/run_id=r/task_id=t/attempt=1.log"
    state: str = "queued"
    attempt: int = 0
    claim_id: str = ""
    report: dict[str, Any] | None = None
    logs: dict[int, bytes] = field(default_factory=dict)
    claimed_at: float = 0.0

    @property
    def log(self) -> bytes:
        return self.logs.get(self.attempt, b"")


@dataclass
class Invitation:
    """What an enrolment token stands for; `used_by` is the key and digest of the worker token it was turned into."""

    name: str
    queues: list[str] | None = None
    team_name: str = ""
    used_by: tuple[str, str] | None = None


class ControlPlane:
    """Start it, add jobs, set faults, look at the ledger. One lock; a condition wakes parked claims."""

    def __init__(self, *, port: int = 0) -> None:
        self.changed = threading.Condition()
        self.jobs: dict[str, FakeJob] = {}
        self.requests: list[tuple[float, str, dict[str, Any]]] = []
        self.registrations: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.session = ""
        self.down = False
        #: Names in the certificates that clients have shown.
        self.shown: set[str] = set()
        #: Those that are open.
        self.connections: set[socket.socket] = set()
        #: How many seconds its dates are ahead of this machine's clock.
        self.clock_ahead = 0.0
        self._tls: ssl.SSLContext | None = None
        self.newest_claim = ""
        #: Claims that wait for an answer now.
        self.parked: list[dict[str, Any]] = []
        self.requested = "active"
        self.requested_by = self.requested_by_name = self.comment = ""
        #: What the machine wanted of itself, each once; an older control plane knows nothing of that.
        self.wishes: list[dict[str, Any]] = []
        self.knows_wishes = True
        self.revision = 1
        self.concurrency: int | None = None
        self.enforce_concurrency = True
        self.gone: list[dict[str, Any]] = []
        #: What is made of the agent's version; None as an older control plane, which says nothing of it.
        self.version: dict[str, str] | None = None
        #: How far this control plane's clock is from the machine's.
        self.clock_offset_seconds = 0.0
        #: The queues that there are, with what is told of each; and those that the worker may serve, None: all.
        self.queues: dict[str, dict[str, Any]] = {}
        self.allowed_queues: list[str] | None = None
        self.comment = ""
        self.token = TOKEN
        self.invitations: dict[str, Invitation] = {}
        #: When the jobs of a shutdown have to be gone, by the monotonic clock.
        self.deadline_at: float | None = None
        self.settings: dict[str, Any] = {
            "heartbeat_seconds": 1.0,
            "claim_wait_seconds": 5.0,
            "outage_patience_seconds": 20.0,
            "log_chunk_bytes": 65536,
            "log_cap_bytes": 1 << 20,
        }
        self.execution_healthy = True
        self.starts: list[str] = []  # (task instance) starts that Airflow saw
        self.states: list[tuple[str, str]] = []
        self.execution_faults: list[Callable[[str], Refusal | None]] = []
        #: (path) -> a Refusal to answer with, "drop" to carry the request out and lose the answer, or None.
        self.fault: Callable[[str, int], Refusal | str | None] = lambda path, number: None
        self._server = self._serve(port)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._airflow = self._serve(0)  # stays up when the control plane is closed
        self.execution_api_url = f"http://127.0.0.1:{self._airflow.server_address[1]}/execution/"

    def _serve(self, port: int) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def speak_tls(self, context: ssl.SSLContext, *, host: str = "127.0.0.1") -> None:
        """Let every connection, Airflow's too, begin with a handshake by this context; those that are open end."""
        self._tls = context
        self.url = f"https://{host}:{self.port}"
        self.execution_api_url = f"https://{host}:{self._airflow.server_address[1]}/execution/"
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Refuse connections from now on, as a control plane that is down."""
        with self.changed:
            self.down = True
            self.changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def reopen(self) -> None:
        """Come back at the same port, with everything that was stored."""
        self.down = False
        self._server = self._serve(self.port)

    def add(self, task: dict[str, Any] | None = None, **options: Any) -> FakeJob:
        """Queue a job whose stand-in task does what `task` says."""
        job_id = str(uuid.uuid4())
        workload = {
            "type": options.get("kind", "ExecuteTask"),
            "token": "task-token",
            "log_path": options.get("log_path", FakeJob.log_path),
            "ti": {"id": str(uuid.uuid4()), "task": task or {}},
        }
        job = FakeJob(id=job_id, workload=options.pop("workload", workload), **options)
        with self.changed:
            self.jobs[job.id] = job
            self.changed.notify_all()
        return job

    def order(self, **changes: Any) -> None:
        """Change what is wanted of the worker; its parked claim answers at once."""
        with self.changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self.revision += 1
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
        """Wait until the condition holds; fails the test after the time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := condition():
                return result
            time.sleep(0.02)
        raise AssertionError(f"did not happen within {seconds} s")

    def reports(self) -> list[str]:
        """What the agent said of itself, each change once."""
        with self.changed:
            said = [beat["reported"] for beat in self.heartbeats]
        return [word for number, word in enumerate(said) if number == 0 or word != said[number - 1]]

    def count(self, path: str) -> int:
        with self.changed:
            return sum(1 for _, seen, _ in self.requests if seen == path)

    # --- endpoints

    def hear(self, wish: dict[str, Any] | None) -> dict[str, Any]:
        """What the machine wants of itself happens; returns what is answered beside the orders."""
        if not self.knows_wishes:
            return {}
        if wish is not None and all(wish["id"] != known["id"] for known in self.wishes):
            self.wishes.append(wish)
            self.requested, self.requested_by, self.comment = wish["requested"], wish["by"], wish["comment"]
            self.requested_by_name = "edge-1"
            self.revision += 1
            self.changed.notify_all()
        who = {"requested_by": self.requested_by, "requested_by_name": self.requested_by_name}
        return {**who, "wish_taken": wish and wish["id"]}

    def orders(self, body: dict[str, Any]) -> dict[str, Any]:
        who, held, gone = self.hear(body.get("wish")), body["held"], []
        for entry in held:
            job = self.jobs.get(entry["id"])
            if job is None or job.attempt != entry["attempt"] or job.state not in {"claimed", "running"}:
                gone.append({**entry, "reason": "no longer yours"})
        return {
            "requested": self.requested,
            **who,
            "comment": self.comment,
            "queues": None,
            "concurrency": self.concurrency or self.reported_concurrency,
            "revision": self.revision,
            "gone": gone,
            "deadline_seconds": self._deadline_seconds(),
            **({} if self.version is None else {"version": self.version}),
        }

    def _deadline_seconds(self) -> float | None:
        if self.requested != "shutdown" or self.deadline_at is None:
            return None
        return max(0.0, self.deadline_at - time.monotonic())

    def invite(self, name: str = "press-7", **options: Any) -> str:
        """Make an enrolment token."""
        token = f"ece_{secrets.token_hex(6)}_{secrets.token_hex(32)}"
        self.invitations[token] = Invitation(name=name, **options)
        return token

    def enrol(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.keys() != {"enrolment_token", "key", "digest"}:
            raise Refusal(400, "invalid_request", f"these fields: {sorted(body)}")
        invitation = self.invitations.get(body["enrolment_token"])
        given = (body["key"], body["digest"])
        if invitation is None or invitation.used_by not in (None, given):
            raise Refusal(401, "bad_enrolment_token", "unknown or used; make another with `create_enrolment_token`")
        invitation.used_by = given
        return {"name": invitation.name, "queues": invitation.queues, "team_name": invitation.team_name}

    def is_known(self, authorization: str) -> bool:
        """Whether the header bears the usual token, or one that a machine has made for itself and enrolled."""
        token = authorization.removeprefix("Bearer ")
        key, _, secret = token.removeprefix("ec_").partition("_")
        given = (key, hashlib.sha256(secret.encode()).hexdigest())
        return token == self.token or any(invitation.used_by == given for invitation in self.invitations.values())

    def register(self, body: dict[str, Any]) -> dict[str, Any]:
        self.session = body["session"]
        self.changed.notify_all()
        self.registrations.append(body)
        self.reported_concurrency = body["concurrency"]
        return {
            "name": body["name"] or "edge-1",
            "server_version": "0.1.0",
            "execution_api_url": self.execution_api_url,
            **self.settings,
            **self.orders(body),
        }

    def health(self) -> dict[str, Any]:
        now = datetime.now(UTC) + timedelta(seconds=self.clock_offset_seconds)
        return {"status": "ok", "version": "0.1.0", "time": now.isoformat()}

    def me(self, queues: list[str]) -> dict[str, Any]:
        asked = [
            {
                "name": name,
                "allowed": self.allowed_queues is None or name in self.allowed_queues,
                "known": name in self.queues,
                "paused": False,
                "comment": "",
                **self.queues.get(name, {}),
            }
            for name in queues
        ]
        return {
            "name": "edge-1",
            "team_name": "",
            "allowed_queues": self.allowed_queues,
            "queues": asked,
            "requested": self.requested,
            "comment": self.comment,
            "outage_patience_seconds": self.settings["outage_patience_seconds"],
            "execution_api_url": self.execution_api_url,
            "server_version": "0.1.0",
            **({} if self.version is None else {"version": self.version}),
        }

    def heartbeat(self, body: dict[str, Any]) -> dict[str, Any]:
        self.heartbeats.append(body)
        return self.orders(body)

    def claim(self, body: dict[str, Any]) -> dict[str, Any]:
        claim_id = body["claim_id"]
        mine = [job for job in self.jobs.values() if job.claim_id == claim_id]
        if not mine:
            self.newest_claim = claim_id
            self.changed.notify_all()
            session, deadline = self.session, time.monotonic() + body["wait"]
            while True:
                if self.session != session:
                    raise Refusal(409, "session_replaced")
                due = self.revision != body["revision"]
                mine = [] if due else self._pick(claim_id, body["free_slots"], body)
                left = deadline - time.monotonic()
                if mine or due or left <= 0 or self.newest_claim != claim_id or self.down:
                    break
                self.parked.append(body)
                self.changed.wait(left)
                self.parked.remove(body)
        offers = [self._offer(job) for job in mine if job.state == "claimed"]
        return {"jobs": offers, "heartbeat_due": self.revision != body["revision"]}

    def _pick(self, claim_id: str, free: int, able: dict[str, Any]) -> list[FakeJob]:
        only, without = able.get("only_queues"), able.get("without_queues", ())
        if self.enforce_concurrency:
            held = sum(job.slots for job in self.jobs.values() if job.state in {"claimed", "running"})
            free = min(free, (self.concurrency or self.reported_concurrency) - held)
        if self.requested != "active":
            return []
        picked = []
        for job in self.jobs.values():
            runs = job.queue not in without and (only is None or job.queue in only)
            if job.state == "queued" and job.slots <= free and runs:
                free -= job.slots
                job.state, job.claim_id, job.claimed_at = "claimed", claim_id, time.monotonic()
                job.attempt += 1
                picked.append(job)
        return picked

    def _offer(self, job: FakeJob) -> dict[str, Any]:
        names = ("id", "attempt", "kind", "queue", "slots", "workload", "log_path")
        return {name: getattr(job, name) for name in names}

    def confirm(self, body: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {"confirmed": [], "refused": []}
        for entry in body["jobs"]:
            job = self.jobs.get(entry["id"])
            if job and job.attempt == entry["attempt"] and job.state in {"claimed", "running"}:
                job.state = "running"
                answer["confirmed"].append(entry)
            else:
                answer["refused"].append({**entry, "code": "stale_attempt", "detail": ""})
        return answer

    def report(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        job = self.jobs[job_id]
        if job.attempt != body["attempt"] or job.state in {"lost", "revoked", "queued"}:
            raise Refusal(409, "stale_attempt")
        job.report = body
        job.state = "queued" if body["state"] == "not_started" else body["state"]
        if job.state == "queued":
            job.claim_id = ""
        self.changed.notify_all()
        return {"state": job.state}

    def append(self, job_id: str, attempt: int, offset: int, data: bytes) -> dict[str, Any]:
        job = self.jobs[job_id]
        have = job.logs.get(attempt, b"")
        if offset + len(data) > self.settings["log_cap_bytes"]:
            raise Refusal(413, "log_full")
        if offset > len(have):
            raise Refusal(409, "wrong_offset", size=len(have))
        if offset == len(have):
            job.logs[attempt] = have + data
        return {"size": len(job.logs.get(attempt, b""))}

    def execution(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        for fault in self.execution_faults:
            if (refusal := fault(path)) is not None:
                raise refusal
        if path == "health":
            return (200, {"status": "healthy"}) if self.execution_healthy else (503, {})
        if not self.execution_healthy:
            return 503, {}
        _, task, verb = path.split("/")
        if verb == "run":
            self.starts.append(task)
        elif verb == "state":
            self.states.append((task, json.loads(body)["state"]))
        return 200, {}

    # --- HTTP

    def answer(self, method: str, path: str, query: str, headers: Any, raw: bytes) -> tuple[int, dict[str, Any]]:
        name = path.removeprefix(API)
        is_log = name.startswith("logs/")
        body = {} if is_log or not raw else json.loads(raw)
        kind = "logs" if is_log else "jobs/report" if name.endswith("/report") else name
        with self.changed:
            self.requests.append((time.monotonic(), kind, body))
            number = sum(1 for _, seen, _ in self.requests if seen == kind)
        fault = self.fault(kind, number)
        if isinstance(fault, Refusal):
            raise fault
        if kind == "workers/enrol":
            with self.changed:
                result = self.enrol(body)
            if headers.get("Authorization") is not None:
                raise Refusal(400, "invalid_request", "the worker's token was sent")
            return self.sent(result, fault)
        if kind == "health":
            return self.sent(self.health(), fault)
        if not self.is_known(headers.get("Authorization") or ""):
            raise Refusal(401, "bad_token", "unknown token")
        if kind == "workers/me":
            return self.sent(self.me(parse_qs(query).get("queue", [])), fault)
        with self.changed:
            if kind != "workers/register" and headers.get("Edge-Session") != self.session:
                raise Refusal(409, "session_replaced")
            if kind == "jobs/report":
                result = self.report(name.split("/")[1], body)
            elif is_log:
                _, job_id, attempt = name.split("/")
                result = self.append(job_id, int(attempt), int(parse_qs(query)["offset"][0]), raw)
            else:
                calls = {
                    "workers/register": self.register,
                    "workers/heartbeat": self.heartbeat,
                    "jobs/claim": self.claim,
                    "jobs/confirm": self.confirm,
                }
                result = calls[name](body)
        return self.sent(result, fault)

    def sent(self, result: dict[str, Any], fault: Refusal | str | None) -> tuple[int, dict[str, Any]]:
        if fault == "drop" or self.down:
            raise ConnectionAbortedError
        return 200, result

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                if isinstance(self.connection, ssl.SSLSocket) and (shown := self.connection.getpeercert()):
                    plane.shown.add(str(shown["subject"][0][0][1]))  # type: ignore[index]
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                try:
                    if parts.path.startswith("/execution/"):
                        status, body = plane.execution(self.command, parts.path.removeprefix("/execution/"), raw)
                    elif plane.down:
                        raise ConnectionAbortedError
                    else:
                        status, body = plane.answer(self.command, parts.path, parts.query, self.headers, raw)
                except Refusal as refusal:
                    status, body = refusal.status, refusal.body
                except ConnectionAbortedError:
                    self.close_connection = True
                    return
                content = json.dumps(body).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    if "retry_after" in body:
                        self.send_header("Retry-After", str(body["retry_after"]))
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PATCH = do_PUT = handle_one

            def setup(self) -> None:
                if plane._tls is not None:  # the handshake comes with the first byte that is read
                    self.request = plane._tls.wrap_socket(self.request, True, do_handshake_on_connect=False)
                super().setup()

            def handle(self) -> None:
                plane.connections.add(self.connection)
                with contextlib.suppress(OSError):  # killed agents reset their connections
                    super().handle()
                plane.connections.discard(self.connection)

            def date_time_string(self, timestamp: float | None = None) -> str:
                return super().date_time_string(time.time() + plane.clock_ahead)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
