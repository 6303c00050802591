"""The task runner: decides how a job's process is started and what became of it; it never speaks to the control plane.

One file of the standard library and Airflow, started by path in the task interpreter. It imports Airflow once,
stays single-threaded and forks per job; each fork supervises one workload and leaves `exit.json` in the job's
directory, which is all that the agent believes. The runner outlives the agent that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import random
import re
import select
import selectors
import shutil
import signal
import socket
import ssl
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Imported before the first fork: what every job needs whatever its DAG imports.
PRELOAD = (
    "airflow.executors.base_executor",
    "airflow.executors.workloads",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
)
#: The same, where Airflow has it (since 3.3).
PRELOAD_IF_THERE = ("airflow.sdk.execution_time.callback_supervisor",)
#: Final states of Airflow that count as a failed job. All others (success, skipped, deferred, ...) are successes.
FAILED_OUTCOMES = frozenset({"failed", "up_for_retry", "removed", "upstream_failed"})
#: Answers by which Airflow says that it does not want this start, or this task, any more.
UNWANTED = frozenset({404, 409, 410})
#: What gateways and overloaded servers answer: the call may be repeated for the whole patience.
OUTAGE = frozenset({408, 425, 429, 502, 503, 504})
#: What may be imported before a fork because a task needed it: Airflow's own packages, its providers among them.
LEARNED = re.compile(r"airflow(\.[A-Za-z_]\w*)+")
#: How many modules are learned, and how much is read of what a job says of its imports.
LEARNED_LIMIT, LEARNED_BYTES = 2000, 256 * 1024
#: How long the imports of one rehearsal may take together.
REHEARSAL_SECONDS = 60.0
#: Not to be shared by forks, whoever imports them: all would draw the same numbers, or miss the threads behind them.
NOT_SHARED = ("numpy.random", "torch", "tensorflow", "jax", "grpc")
#: What a task has written is read in less time than this; after that its sockets are held by what it left behind.
LEFTOVER_SECONDS = 0.2
#: How long the upload of a log to the storage of Airflow's `remote_logging` may keep the slot of a task that has ended.
UPLOAD_SECONDS = 300.0
#: Local faults that pass: also when they come while Airflow is asked, the start is given back instead of burning one of
#: Airflow's retries.
PASSING_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
#: What the job itself wants and no machine can do, such as a log path that is too long.
IMPOSSIBLE = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


class TooLong(BaseException):
    """The upload of a log has taken too long. Not an Exception, which storages catch, to try once more."""


class Stopped(Exception):
    """The agent told this job to stop before its task had taken over the signals."""


# --- one job: files ---------------------------------------------------------------------------------------------


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace the file in one step, so that readers see the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_result(directory: Path, result: dict[str, Any]) -> None:
    """Leave `exit.json`, in the space that the agent has set aside for it: a full disk must not undo a result."""
    reserved = directory / "exit.reserved"
    content = json.dumps(result).encode()
    try:
        with reserved.open("r+b") as file:
            file.write(content.ljust(reserved.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        reserved.replace(directory / "exit.json")
    except FileNotFoundError:  # an older agent has none
        write_json(directory / "exit.json", result)


def take_lock(directory: Path, *, patience_seconds: float = 2.0) -> int | None:
    """Lock the job's directory for the life of this process; None when another living process has it.

    A record lock, not flock: children of this process do not inherit it, so it ends with this process whatever
    it leaves behind. The agent's own look at the lock takes it for an instant, hence the second try.
    """
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            if time.monotonic() >= deadline:
                os.close(handle)
                return None
            time.sleep(0.05)
        else:
            return handle


def mark_started(directory: Path) -> bool:
    """Claim the one start of this attempt. False when it was started before, however that ended."""
    try:
        handle = os.open(directory / "started", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        json.dump({"pid": os.getpid(), "started_at": time.time(), "ticks": start_ticks()}, file)
    return True


def start_ticks() -> int | None:
    """When this process began, by the one clock that nobody sets: clock ticks since the machine started."""
    try:
        return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def log_file(directory: Path, log_path: str) -> Path:
    """Where Airflow writes the log of this job. ValueError when the path leaves the job's own directory."""
    folder = (directory / "log").resolve()
    path = (folder / (log_path or "task.log")).resolve()
    if folder not in path.parents:
        raise ValueError(f"the log path {log_path!r} leaves the job's directory")
    return path


def append_line(path: Path, *, level: str, event: str, **more: Any) -> None:
    """Add a line to the job's log in the form of Airflow's own: a JSON object with timestamp, level, event, logger."""
    stamp = datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")  # noqa: UP017 (task interpreters may be 3.10)
    line = {"timestamp": stamp, "level": level, "event": event, "logger": "edgecontrol.runner", **more}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")


# --- one job: what Airflow was told -------------------------------------------------------------------------------


class Delivery:
    """Carries this job's calls to Airflow and knows which of them arrived.

    `supervise_task` returns 0 even when Airflow never heard the final state, so its exit code proves nothing.
    """

    def __init__(
        self,
        *,
        patience_seconds: float,
        network_errors: tuple[type[BaseException], ...],
        on_start: Callable[[], None],
        tell: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.patience_seconds = patience_seconds
        self.network_errors = network_errors
        self.on_start = on_start  # called once, before Airflow is first asked to start
        self.tell = tell  # (level, text) for the job's log
        self.clock = clock
        self.sleep = sleep
        self.last_contact = clock()
        self.away = False
        self.asked = False  # Airflow may have heard that this job starts
        self.started = False
        self.identity = ""  # the body of a heartbeat: whose start Airflow accepted
        self.accepted = ""  # the final state that Airflow took
        self.refused = ""  # why Airflow did not want this start
        self.unstarted = ""  # why the start did not reach Airflow, or was not allowed to
        self.withdrawn = ""  # why Airflow ended a task that was running
        self.undelivered = ""  # the last reason why the final state did not arrive

    def call(
        self, *, method: str, url: str, body: Any, send: Callable[[], Any], beat: Callable[[str], Any] | None = None
    ) -> Any:
        """Send until Airflow answers or the patience ends; a heartbeat is sent once (its interval is the retry).

        `beat` sends a heartbeat with the body it is given, or raises as `send` does. It goes before a final state that
        is repeated: a task that had deferred may have been resumed elsewhere, and Airflow 3.3.2 would take the repeat
        for the word of the process that runs now.
        """
        kind = kind_of_call(method, url)
        if kind == "start":
            self.on_start()
            self.asked = True
        tries = 0
        while True:
            tries += 1
            try:
                if kind == "state" and tries > 1 and beat and self.identity:
                    beat(self.identity)
                response = send()
            except Exception as error:
                status = status_of(error)
                if status is None and not isinstance(error, self.network_errors):
                    raise
                if is_answer(error, kind):
                    # Refused after a try whose answer was lost: that try had been carried out.
                    lost_before = tries > 1 and kind == "state" and status in UNWANTED
                    self._heard(kind, body, error=None if lost_before else error)
                    if lost_before:
                        return error.response  # type: ignore[attr-defined]
                    raise
                if self._missed(kind, error, tries):
                    self.sleep(min(10.0, 0.5 * 2 ** min(tries, 6)) * random.uniform(0.5, 1.0))  # noqa: S311
                elif kind == "heartbeat" and self._patient():
                    return None
                else:
                    raise
            else:
                self._heard(kind, body, error=None)
                return response

    def _patient(self) -> bool:
        return self.clock() - self.last_contact < self.patience_seconds

    def _heard(self, kind: str, body: Any, *, error: Exception | None) -> None:
        self.last_contact = self.clock()
        if self.away:
            self.away = False
            self.tell("info", "Airflow's API server answers again")
        status, text = status_of(error), describe(error)
        if error is None:
            if kind == "start":
                self.started, self.identity = True, identity_in(body)
            self.accepted = state_in(body) if kind == "state" else self.accepted
        elif kind == "start" and status in UNWANTED:
            self.refused = f"Airflow did not want this start: {text}"
        elif kind == "start" and status in {401, 403}:
            self.unstarted = f"Airflow did not accept the job's token: {text}"
        elif kind == "heartbeat":
            self.withdrawn = f"Airflow ended the task while it was running: {text}"
        elif kind == "state":
            self.undelivered = f"Airflow did not accept the state {state_in(body)}: {text}"

    def _missed(self, kind: str, error: Exception, tries: int) -> bool:
        """Note a try that did not reach Airflow; True when it is worth another."""
        if not self.away:
            self.away = True
            self.tell(
                "warning",
                f"Airflow's API server cannot be reached ({describe(error)}); "
                f"the task goes on and its calls are repeated for {self.patience_seconds:.0f} s",
            )
        if kind == "start":
            self.unstarted = f"the start did not reach Airflow: {describe(error)}"
        elif kind == "state":
            self.undelivered = describe(error)
        own_fault = status_of(error) in {500, 501} and kind == "other"
        return kind != "heartbeat" and self._patient() and not (own_fault and tries >= 5)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that a failed call was answered with; None when there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_answer(error: BaseException, kind: str) -> bool:
    """Whether Airflow itself said this. A 4xx without its JSON comes from a gateway and counts as an outage."""
    status = status_of(error)
    if status is None or status >= 500 or status in OUTAGE or not hasattr(error, "detail"):
        return False
    return kind != "heartbeat" or status in UNWANTED


def kind_of_call(method: str, url: str) -> str:
    """`start`, `state`, `heartbeat` or `other`, from what the SDK's client is about to send."""
    parts = url.strip("/").split("/")
    if len(parts) >= 3 and parts[-3] == "task-instances":
        return {"run": "start", "state": "state", "heartbeat": "heartbeat"}.get(parts[-1], "other")
    if method == "PATCH" and len(parts) >= 2 and parts[-2] == "connection-tests":
        return "state"
    return "other"


def state_in(body: Any) -> str:
    """The state that the body of a final-state call carries."""
    try:
        return str(json.loads(body)["state"])
    except (TypeError, ValueError, KeyError):
        return ""


def identity_in(body: Any) -> str:
    """Host name and process number of a start, as the body of its heartbeats."""
    try:
        start = json.loads(body)
        return json.dumps({"hostname": start["hostname"], "pid": start["pid"]})
    except (TypeError, ValueError, KeyError):
        return ""


def describe(error: BaseException | None) -> str:
    """One line for people: the kind of error, and what the server said about it."""
    if error is None:
        return ""
    status = status_of(error)
    name = str(status) if status is not None else type(error).__name__
    return " ".join(f"{name} {getattr(error, 'detail', None) or error}".split())[:500]


# --- one job: running it ----------------------------------------------------------------------------------------


def outcome(*, delivery: Delivery, exit_code: int | None, error: BaseException | None) -> dict[str, Any]:
    """What became of the job, as the agent will report it. Only what Airflow accepted counts as a result."""
    state, reason = "failed", ""
    if delivery.accepted:
        state = "failed" if delivery.accepted in FAILED_OUTCOMES else "success"
        reason = "" if state == "success" else f"Airflow holds the task as {delivery.accepted}"
    elif delivery.refused:
        state, reason = "refused", delivery.refused
    elif not delivery.started and delivery.unstarted:
        state, reason = "not_started", delivery.unstarted
    elif isinstance(error, OSError) and (
        error.errno not in IMPOSSIBLE if not delivery.asked else not delivery.started and error.errno in PASSING_ERRORS
    ):
        state, reason = "not_started", f"this machine could not start it: {describe(error)}"
    elif isinstance(error, Stopped):
        state, reason = ("failed" if delivery.started else "not_started"), "stopped by the agent"
    elif delivery.withdrawn:
        reason = delivery.withdrawn
    elif delivery.undelivered:
        reason = f"result not delivered: {delivery.undelivered}"
    elif error is not None:
        reason = f"the supervisor failed: {describe(error)}"
    else:
        reason = "result not delivered: the task ended without a final state"
    return {
        "state": state,
        "exit_code": exit_code,
        "airflow_outcome": delivery.accepted,
        "reason": reason,
        "finished_at": time.time(),
    }


def forget_token(directory: Path, workload: dict[str, Any]) -> None:
    """Nobody needs the token on disk once the one start of this attempt has read it."""
    write_json(directory / "workload.json", {key: value for key, value in workload.items() if key != "token"})


class Renewal:
    """Has a client's new connections use certificates that were replaced meanwhile: the SDK reads them once per task.

    Whom it trusted before, it goes on trusting.
    """

    def __init__(self, sdk: Any, context: Any) -> None:
        self.context = context
        self.certificate = getattr(sdk, "API_CLIENT_SSL_CERT", None)
        self.key = getattr(sdk, "API_CLIENT_SSL_KEY", None)
        self.authorities = authorities_of(sdk)
        self.stamps = self._stamps()

    def look(self) -> None:
        """Read the files again when they have changed; those that are not whole yet, at their next change."""
        stamps = self._stamps()
        if stamps == self.stamps:
            return
        self.stamps = stamps
        with contextlib.suppress(OSError, ValueError):  # OpenSSL's errors are among them
            if self.certificate:
                # Tried apart: a certificate whose key does not fit would spoil the context that is in use.
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(self.certificate, self.key)
                self.context.load_cert_chain(self.certificate, self.key)
            if self.authorities:
                self.context.load_verify_locations(self.authorities)

    def _stamps(self) -> list[Any]:
        return stamps(self.certificate, self.key, self.authorities)


def stamps(*paths: str | None) -> list[Any]:
    """What changes when one of these files does."""
    found: list[Any] = []
    for path in filter(None, paths):
        try:
            facts = os.stat(path)  # noqa: PTH116
            found.append((facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino))
        except OSError as error:
            found.append(error.errno)
    return found


def authorities_of(sdk: Any) -> str | None:
    """The file with those whom Airflow's client is to trust; 3.2 has no such setting, and trusts certifi's."""
    if hasattr(sdk, "API_SSL_CA_FILE_PATH"):
        return sdk.API_SSL_CA_FILE_PATH
    certifi = getattr(sdk, "certifi", None)
    return os.environ.get("AIRFLOW__API__SSL_CA_FILE") or (certifi.where() if certifi else None)


#: Whom the SDK's client trusts, and the stamps of the files by which it does.
_trust: dict[str, Any] = {}


def trusted(sdk: Any) -> Any:
    """The SDK's TLS context, made before the fork: each job would need 50 ms and 6 MB to read all authorities.

    It is made anew when one of their files has changed. None when this SDK has no such thing.
    """
    make = getattr(sdk.Client, "_get_ssl_context_cached", None)
    if make is None:
        return None
    own = (authorities_of(sdk), getattr(sdk, "API_SSL_CERT_PATH", None))
    system = ssl.get_default_verify_paths()
    now = stamps(*own, system.cafile, system.capath)
    if _trust.get("stamps") != now:
        make.cache_clear()
        _trust.update(stamps=now, context=make(*own))
    return _trust["context"]


def airflow_client(*, server: str, token: str, delivery: Delivery) -> Any:
    """The SDK's client, with every call carried by `delivery` instead of its own five tries."""
    from airflow.sdk.api import client as sdk

    unrepeated = getattr(sdk.Client.request, "__wrapped__", sdk.Client.request)
    context = trusted(sdk)
    renewal = Renewal(sdk, context)

    def once(client: Any, method: str, url: Any, **options: Any) -> Any:
        renewal.look()
        return unrepeated(client, method, url, **options)

    class DeliveringClient(sdk.Client):
        def request(self, method: str, url: Any, **options: Any) -> Any:
            heartbeat = f"{str(url).rpartition('/')[0]}/heartbeat"
            return delivery.call(
                method=method,
                url=str(url),
                body=options.get("content"),
                send=lambda: once(self, method, url, **options),
                beat=lambda body: once(self, "PUT", heartbeat, content=body),
            )

    if context is not None:
        DeliveringClient._get_ssl_context_cached = staticmethod(lambda *files: context)  # a subclass has its own cache
    return DeliveringClient(base_url=server, token=token)


def set_up_airflow(*, directory: Path, hostname: str, since: str) -> None:
    """Adjust the imported Airflow to this job: where its log goes, its host name, and who decides about patience."""
    from airflow.sdk import log as sdk_log
    from airflow.sdk.api import client
    from airflow.sdk.execution_time import supervisor, task_runner

    os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = str(directory / "log")
    # Not `[core] hostname_callable`: programs that a task starts would inherit it and could not import it.
    for module in (client, task_runner):
        module.get_hostname = lambda: hostname
    # `Delivery` lets a heartbeat fail only when the patience is over; the SDK's own limit is about 31 s.
    supervisor.MAX_FAILED_HEARTBEATS = 1
    if hasattr(os, "pidfd_open"):
        notice_exits(supervisor)
    survive_full_disks(supervisor)
    upload_copies(sdk_log, directory)
    take_any_executor(task_runner)
    note_imports_of_task(task_runner, directory, since=since)
    processors = sdk_log.logging_processors
    # Cached like the original, since Airflow clears that cache.
    sdk_log.logging_processors = functools.cache(lambda *args, **options: in_order(processors(*args, **options)))


def take_any_executor(task_runner: Any) -> None:
    """Let tasks name executors that this machine has no settings of: which there are is for schedulers to know.

    Airflow 3.3.2 checks the names wherever it reads a DAG file, drops a DAG with a task whose executor it does not
    find, and has the task wait for its DAG again and again.
    """
    parse = getattr(task_runner, "parse", None)
    if parse is None:
        return

    def parse_any(*args: Any, **options: Any) -> Any:
        from airflow.dag_processing import dagbag  # as `parse` itself does, in the task's own process

        if hasattr(dagbag, "_validate_executor_fields"):
            dagbag._validate_executor_fields = lambda *_, **__: None
        return parse(*args, **options)

    task_runner.parse = parse_any


def in_order(processors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Add what keeps the lines of a log in the order of their timestamps, since Airflow shows them in that order.

    The supervisor stamps what a task printed when it reads it, which is later than the task's own stamp of a line
    that it logged after that.
    """
    latest: tuple[datetime, Any] | None = None

    def never_back(logger: Any, method: str, event: dict[str, Any]) -> dict[str, Any]:
        nonlocal latest
        stamp = event.get("timestamp")
        with contextlib.suppress(TypeError, ValueError):  # a stamp of another form stays as it is
            at = datetime.fromisoformat(stamp.replace("Z", "+00:00")) if isinstance(stamp, str) else stamp
            if at is not None and latest is not None and at < latest[0]:
                event["timestamp"] = latest[1]
            elif at is not None:
                latest = (at, stamp)
        return event

    return (*processors[:-1], never_back, processors[-1])


def survive_full_disks(supervisor: Any) -> None:
    """Let a log that cannot be written end no task: the SDK's supervisor dies of it beside its task (Airflow 3.3.2)."""
    write = getattr(supervisor, "_log_to_target", None)
    if write is None or hasattr(supervisor, "survives_full_disks"):
        return
    supervisor.survives_full_disks = True

    def write_if_possible(*args: Any, **event: Any) -> None:
        with contextlib.suppress(OSError):
            write(*args, **event)

    supervisor._log_to_target = write_if_possible


def upload_copies(sdk_log: Any, directory: Path) -> None:
    """Where this machine's `[logging] remote_logging` names a storage, give it a copy of each log to upload.

    Storages empty or delete what they have uploaded (amazon 9.39: both), which is what the agent still reads.
    """
    if not hasattr(sdk_log, "load_remote_log_handler") or not hasattr(sdk_log, "relative_path_from_logger"):
        return
    folder = directory / "upload"

    def upload_copy(logger: Any, ti: Any = None) -> None:
        storage, path = sdk_log.load_remote_log_handler(), None
        with contextlib.suppress(ValueError):  # a log that lies elsewhere
            path = sdk_log.relative_path_from_logger(logger._logger)
        # EdgeControl's own storage without another one says that it looks nowhere.
        if storage is None or path is None or getattr(storage, "base_log_folder", folder) is None:
            return
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / "log" / path, folder / path)
            # Where it looks for the file: most have noted it when they were made, perhaps before the fork.
            if hasattr(storage, "base_log_folder"):
                storage.base_log_folder = folder
            os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = str(folder)
            within(UPLOAD_SECONDS, lambda: storage.upload(path.as_posix(), ti))
        finally:
            os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"] = str(directory / "log")
            shutil.rmtree(folder, ignore_errors=True)

    sdk_log.upload_to_remote = upload_copy


def within(seconds: float, act: Callable[[], Any]) -> None:
    """Do it. Raises TimeoutError when it takes longer, where the system has alarms."""
    if not hasattr(signal, "setitimer"):
        act()
        return

    def give_up(signum: int, frame: object) -> NoReturn:
        raise TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        act()
    except TooLong:
        raise TimeoutError(f"the log was not uploaded within {seconds:.0f} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Forgiving(io.FileIO):
    """A file that loses what cannot be written to it: where a disk is full, a `print` raises."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def forgiving(number: int) -> io.TextIOWrapper:
    """This process's standard output or error, in a form that raises nothing."""
    raw = Forgiving(number, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Exit:
    """A handle of a process that becomes readable when it ends."""

    def __init__(self, pid: int) -> None:
        self._handle = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._handle

    def close(self) -> None:
        os.close(self._handle)


def notice_exits(supervisor: Any) -> None:
    """Let the SDK's supervisor notice at once that its task has ended.

    It waits on the task's sockets alone; when these close before the process has ended, it sleeps up to `[workers]
    min_heartbeat_interval` (5 s) while the slot stays taken, and for a minute when a process that the task has left
    behind holds them open (Airflow 3.3.2).
    """
    watched = getattr(supervisor, "WatchedSubprocess", None)
    if watched is None or hasattr(watched, "notices_exits"):
        return
    watched.notices_exits = True
    register, serve = watched._register_pipe_readers, watched._service_subprocess

    def register_and_watch(self: Any, *sockets: Any, **options: Any) -> None:
        register(self, *sockets, **options)
        with contextlib.suppress(OSError):  # a kernel without it
            end = Exit(self.pid)
            # The loop calls the handler, then, since nothing more is to be read, `on_close` and `close`.
            self.selector.register(end, selectors.EVENT_READ, (lambda _: False, self.selector.unregister))

    def serve_and_let_go(self: Any, max_wait_time: float, **options: Any) -> Any:
        if self._exit_code is None or not self._open_sockets:
            return serve(self, max_wait_time, **options)
        if self.selector.select(LEFTOVER_SECONDS):
            return serve(self, 0.0, **options)
        self._cleanup_open_sockets()  # the loop has nothing to wait for then
        return self._exit_code

    watched._register_pipe_readers, watched._service_subprocess = register_and_watch, serve_and_let_go


def newest_import() -> str:
    """The module that this process has imported last."""
    return next(reversed(sys.modules))


def note_imports(directory: Path, *, since: str) -> None:
    """Write down which of Airflow's modules this process has imported after that one, for the jobs that follow.

    The older ones are left alone: to look at their names alone would take 4 MB from the memory that forks share.
    """
    later = list(takewhile(lambda name: name != since, reversed(sys.modules)))
    names = [name for name in reversed(later) if LEARNED.fullmatch(name)]
    if not names:
        return
    with contextlib.suppress(OSError):
        handle = os.open(directory / "imported", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write("".join(f"{name}\n" for name in names))


def note_imports_of_task(task_runner: Any, directory: Path, *, since: str) -> None:
    """Have the task's own process, which the SDK forks once more, write down its imports when it ends."""
    main = getattr(task_runner, "main", None)
    if main is None:
        return

    def main_and_note() -> None:
        try:
            main()
        finally:
            note_imports(directory, since=since)

    task_runner.main = main_and_note


@functools.cache
def reader_of_workloads() -> Any:
    """What reads every kind of workload; building it takes longer than reading one."""
    from airflow.executors import workloads
    from pydantic import TypeAdapter

    # Before 3.3 all kinds have one name together, the triggerer's among them.
    return TypeAdapter(getattr(workloads, "ExecutorWorkload", None) or workloads.All)


def run_workload(*, workload: dict[str, Any], client: Any) -> int:
    """Hand the workload to the supervisor that Airflow has for its kind, as `BaseExecutor.run_workload` does."""
    parsed = reader_of_workloads().validate_python(workload)
    with contextlib.suppress(ImportError):
        from setproctitle import setproctitle

        setproctitle(f"airflow supervisor: {getattr(parsed, 'display_name', parsed.type)}")
    if parsed.type == "ExecuteTask":
        from airflow.sdk.execution_time import supervisor

        supervise_task = getattr(supervisor, "supervise_task", None) or supervisor.supervise  # its name before 3.3
        return supervise_task(
            ti=parsed.ti,
            bundle_info=parsed.bundle_info,
            dag_rel_path=parsed.dag_rel_path,
            token=parsed.token,
            client=client,
            log_path=parsed.log_path or "task.log",
            sentry_integration=getattr(parsed, "sentry_integration", ""),
        )
    if parsed.type == "ExecuteCallback":
        try:
            from airflow.sdk.execution_time.callback_supervisor import supervise_callback
        except ModuleNotFoundError:
            return run_callback(parsed, client=client)
        return supervise_callback(
            id=parsed.callback.id,
            callback_path=parsed.callback.data.get("path", ""),
            callback_kwargs=parsed.callback.data.get("kwargs", {}),
            dag_rel_path=parsed.dag_rel_path,
            log_path=parsed.log_path or "task.log",
            bundle_info=parsed.bundle_info,
            token=parsed.token,
            client=client,
        )
    if parsed.type == "TestConnection":
        from airflow.sdk.execution_time import connection_test_supervisor

        # It would make one of its own (Airflow 3.3.2), which repeats nothing and knows no certificates of the agent's.
        connection_test_supervisor.Client = lambda **_: client
        return connection_test_supervisor.supervise_connection_test(
            connection_test_id=parsed.connection_test_id,
            connection_id=parsed.connection_id,
            timeout=parsed.timeout,
            token=parsed.token,
            server=str(client.base_url),
        )
    raise ValueError(f"unknown kind of workload: {parsed.type}")


def run_callback(parsed: Any, *, client: Any) -> int:
    """Run a callback as the executors of Airflow 3.2 do, which has no supervisor for it: in this very process."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.executors.workloads.callback import execute_callback_workload
    from airflow.sdk.execution_time import supervisor

    logger, file = supervisor._configure_logging(parsed.log_path or "task.log", client)
    with file:
        try:
            named = parsed.bundle_info
            bundle = DagBundlesManager().get_bundle(name=named.name, version=named.version)
            bundle.initialize()
            sys.path.append(str(bundle.path))
        except Exception as error:  # what is installed here needs no bundle
            logger.warning(f"the DAG bundle of this callback cannot be had: {describe(error)}")
        done, why = execute_callback_workload(parsed.callback, logger)
    if not done:
        raise RuntimeError(why or "the callback failed")
    return 0


def supervise(directory: Path) -> int:
    """Run the job in this directory to its end and leave `exit.json`; the process ends with this call.

    Does nothing when another process has the job, or had it: an attempt is started once.
    """
    signal.signal(signal.SIGTERM, _stop)
    if take_lock(directory) is None or not mark_started(directory):
        return 0
    job = json.loads((directory / "job.json").read_text())
    log = directory / "log" / "task.log"
    delivery = Delivery(
        patience_seconds=job["patience_seconds"],
        network_errors=(),
        on_start=(directory / "asked").touch,
        tell=lambda level, text: append_line(log, level=level, event=text),
    )
    exit_code: int | None = None
    failure: BaseException | None = None
    try:
        log = log_file(directory, job["log_path"])
        workload = json.loads((directory / "workload.json").read_text())
        forget_token(directory, workload)
        preload()
        import httpx

        delivery.network_errors = (httpx.RequestError,)
        newest = newest_import()
        set_up_airflow(directory=directory, hostname=job["hostname"], since=newest)
        client = airflow_client(server=job["execution_api_url"], token=workload["token"], delivery=delivery)
        delivery.asked = job["kind"] != "ExecuteTask"  # the start of these is no call
        exit_code = run_workload(workload=workload, client=client)
        note_imports(directory, since=newest)
        if job["kind"] == "ExecuteCallback" and exit_code == 0:
            delivery.accepted = "success"  # it has no final state at Airflow; the executor tells it
    except BaseException as error:
        failure = error
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes too late, and would take the result with it
    result = outcome(delivery=delivery, exit_code=exit_code, error=failure)
    if result["state"] != "success" and not delivery.accepted:
        detail = "".join(traceback.format_exception(failure)) if failure is not None else ""
        append_line(log, level="error", event=result["reason"], **({"error_detail_text": detail} if detail else {}))
    write_result(directory, result)
    return 0


def _stop(signum: int, frame: object) -> None:
    raise Stopped


# --- the fork server --------------------------------------------------------------------------------------------


def preload() -> None:
    """Import what every job needs. Raises whatever the task interpreter's Airflow raises."""
    # Airflow warns about executors that need a better database than a worker has; a worker has none at all.
    os.environ.setdefault("_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK", "1")
    for name in PRELOAD:
        importlib.import_module(name)
    for name in PRELOAD_IF_THERE:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)


def warm_up() -> None:
    """Make once, before the first fork, what each job would make for itself, in memory of its own."""
    from airflow.sdk.api import client
    from airflow.sdk.execution_time import comms

    reader_of_workloads()
    trusted(client)
    build, kind = comms.TypeAdapter, comms.ToTask
    reader = build(kind)
    # Each task builds two of these for what its supervisor says (Airflow 3.3.2).
    comms.TypeAdapter = lambda wanted, *args, **options: (
        reader if wanted is kind and not args and not options else build(wanted, *args, **options)
    )


def airflow_version() -> str:
    """The version of the interpreter's Airflow without importing it; empty when there is none."""
    for distribution in ("apache-airflow-core", "apache-airflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return ""


class Lessons:
    """What finished jobs had to import after their fork, imported before the next one where that is harmless.

    Every module is tried in a process of its own first: one that fails, hangs, starts a thread, keeps a file open or
    brings what forks must not share is forgotten. No module is tried twice.
    """

    def __init__(self, *, leave_server: Callable[[], None]) -> None:
        self.leave_server = leave_server  # called in the process of a rehearsal, which must hold nothing of the server
        self.known: set[str] = set()
        self.untried: list[str] = []
        self.harmless: list[str] = []
        #: The process in which modules are tried, until it is reaped; and the pipe through which it tells of them.
        self.rehearsal = 0
        self.told = -1
        self.deadline = 0.0
        self._heard = b""
        self._unsettled = False

    def read(self, directory: Path) -> None:
        """Take the names that the processes of a job have left in its directory."""
        try:
            with (directory / "imported").open("rb") as file:
                names = file.read(LEARNED_BYTES).decode("ascii", "replace").splitlines()
        except OSError:
            return
        for name in names:
            if LEARNED.fullmatch(name) and name not in self.known and len(self.known) < LEARNED_LIMIT:
                self.known.add(name)
                self.untried.append(name)

    def wait_seconds(self, most: float) -> float:
        """How long the server may wait for something else."""
        if self.told >= 0:
            return max(0.0, min(most, self.deadline - time.monotonic()))
        return 0.0 if self.harmless or self._unsettled or self.untried else most

    def step(self) -> None:
        """Do one thing that takes a moment; the server calls this when nothing else is to be done."""
        if self.told >= 0:
            if time.monotonic() >= self.deadline:
                self._conclude()
        elif self.harmless:
            self._import(self.harmless.pop(0))
        elif self._unsettled:
            self._unsettled = False
            settle_memory()
        elif self.untried:
            self._rehearse()

    def hear(self) -> None:
        """Read what the rehearsal tells."""
        data = os.read(self.told, 65536)
        self._heard += data
        if not data:
            self._conclude()

    def _rehearse(self) -> None:
        self.told, tell = os.pipe()
        self._heard, self.deadline = b"", time.monotonic() + REHEARSAL_SECONDS
        try:
            pid = os.fork()
        except OSError:
            self.untried = []  # there are worse worries
            pid = -1
        if pid == 0:
            try:
                self.leave_server()
                rehearse(self.untried, tell)
            finally:
                os._exit(0)
        self.rehearsal = max(pid, 0)
        os.close(tell)  # if that was the last handle, the rehearsal is over before it began

    def _conclude(self) -> None:
        """Keep what was harmless and drop what was not; the rest is tried again without it."""
        if self.rehearsal:
            os.kill(self.rehearsal, signal.SIGKILL)
        os.close(self.told)
        self.told = -1
        verdicts = dict(line.split(" ", 1) for line in self._heard.decode().split("\n")[:-1])
        for name, verdict in verdicts.items():
            if verdict != "harmless":
                why = "its import does not end, or ends the process" if verdict == "begun" else verdict
                print(f"{name} is not imported before the fork: {why}", flush=True)  # noqa: T201
        self.harmless = [name for name in self.untried if verdicts.get(name) == "harmless"]
        self.untried = [name for name in self.untried if name not in verdicts]

    def _import(self, name: str) -> None:
        before = threads()
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(f"importing {name} failed: {describe(error)}", flush=True)  # noqa: T201
        self._unsettled = True
        if threads() > before:
            print(f"warning: {name} has started a thread; a fork may hang", flush=True)  # noqa: T201


def rehearse(names: list[str], tell: int) -> None:
    """Import these modules and tell of each whether that was harmless; the first that leaves something is the last."""
    for name in names:
        os.write(tell, f"{name} begun\n".encode())
        before = threads(), open_files(), {shared for shared in NOT_SHARED if shared in sys.modules}
        verdict = "harmless"
        try:
            importlib.import_module(name)
        except BaseException as error:
            verdict = describe(error) or type(error).__name__
        if threads() > before[0]:
            verdict = "it starts a thread"
        elif open_files() > before[1]:
            verdict = "it keeps a file open"
        elif brought := [shared for shared in NOT_SHARED if shared in sys.modules and shared not in before[2]]:
            verdict = f"it brings {brought[0]}"
        os.write(tell, f"{name} {verdict}\n".encode())
        if verdict.startswith("it "):
            return


class ForkServer:
    """Forks a process per job at the agent's word and tells it which have ended. Lines of JSON over a Unix socket."""

    def __init__(self, *, path: Path, idle_seconds: float) -> None:
        self.listener = listen(path)
        self.path = path
        self.inode = path.stat().st_ino
        self.idle_seconds = idle_seconds
        self.agents: dict[socket.socket, bytes] = {}
        self.children: dict[int, Path] = {}
        self.lessons = Lessons(leave_server=self._leave)
        self.ready = False
        self.error = ""
        self.draining = False
        self.quiet_since = time.monotonic()
        self.woken, self.waker = socket.socketpair()
        for end in (self.woken, self.waker):
            end.setblocking(False)

    def load(self) -> None:
        """Import Airflow once. A failure is told to the agents: this interpreter cannot run anything."""
        try:
            preload()
            with contextlib.suppress(Exception):  # what another version of Airflow does not have, jobs do without
                warm_up()
            settle_memory()
            self.ready = True
        except BaseException as error:
            traceback.print_exc()
            self.error = describe(error)
        if threads() > 1:
            print(f"warning: {threads()} threads after the imports; a fork may hang", flush=True)  # noqa: T201
        for agent in list(self.agents):
            self._say(agent, self._state())

    def finished(self) -> bool:
        """Nothing runs here, and nobody will ask for more."""
        if self.children:
            return False
        idle = not self.agents and time.monotonic() - self.quiet_since > self.idle_seconds
        return self.draining or idle or bool(self.error and not self.agents)

    def step(self, *, timeout: float) -> None:
        """Handle what arrives within the timeout: agents, their orders, and ended children; learn when nothing does."""
        told: list[Any] = [self.lessons.told] if self.lessons.told >= 0 else []
        wait = timeout if self.draining else self.lessons.wait_seconds(timeout)
        readable, _, _ = select.select([self.listener, self.woken, *told, *self.agents], [], [], wait)
        if self.woken in readable:
            with contextlib.suppress(BlockingIOError):
                self.woken.recv(4096)
        # Orders of an agent that is gone come before those of its successor.
        for agent in [agent for agent in readable if agent in self.agents]:
            self._read(agent)
        self._reap()
        if self.listener in readable:
            agent, _ = self.listener.accept()
            agent.setblocking(False)
            self.agents[agent] = b""
            self._say(agent, self._state())
        if self.lessons.told in readable:
            self.lessons.hear()
        elif not readable and not self.draining:
            self.lessons.step()
        if self.agents or self.children:
            self.quiet_since = time.monotonic()

    def withdraw(self) -> None:
        """Be found no more. The name may be a successor's already, which must stay."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self.inode:
                self.path.unlink()

    def _state(self) -> dict[str, Any]:
        return {
            "event": "state",
            "pid": os.getpid(),
            "python": sys.version.split()[0],
            "airflow_version": airflow_version(),
            "ready": self.ready,
            "error": self.error,
            "jobs": {directory.name: pid for pid, directory in self.children.items()},
        }

    def _read(self, agent: socket.socket) -> None:
        while agent in self.agents:
            try:
                data = agent.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                del self.agents[agent]
                agent.close()
                return
            *lines, self.agents[agent] = (self.agents[agent] + data).split(b"\n")
            for line in lines:
                self._obey(agent, json.loads(line))

    def _obey(self, agent: socket.socket, order: dict[str, Any]) -> None:
        if order["op"] == "start":
            self._start(agent, Path(order["directory"]))
        elif order["op"] == "drain":
            self.draining = True
            self.withdraw()
        elif order["op"] == "state":
            self._say(agent, self._state())

    def _start(self, agent: socket.socket, directory: Path) -> None:
        if self.draining or not self.ready:
            self._say(agent, {"event": "unstarted", "job": directory.name, "reason": self.error or "the runner ends"})
            return
        try:
            pid = os.fork()
        except OSError as error:
            self._say(agent, {"event": "unstarted", "job": directory.name, "reason": f"cannot fork: {error}"})
            return
        if pid == 0:
            self._become(directory)
        self.children[pid] = directory
        self._say(agent, {"event": "started", "job": directory.name, "pid": pid})

    def _become(self, directory: Path) -> NoReturn:
        """The forked child: leave everything of the server behind, run the job, exit."""
        try:
            self._leave()
            enter(directory)
            supervise(directory)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)

    def _leave(self) -> None:
        """In a forked child: keep nothing that is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        for end in (self.listener, self.woken, self.waker, *self.agents):
            end.close()
        if self.lessons.told >= 0:
            os.close(self.lessons.told)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.lessons.rehearsal:
                self.lessons.rehearsal = 0
            directory = self.children.pop(pid, None)
            if directory is not None:
                self.lessons.read(directory)  # before the agent hears of the end and removes the directory
                code = os.waitstatus_to_exitcode(status)
                ended = {"event": "ended", "job": directory.name, "pid": pid, "status": code}
                for agent in list(self.agents):
                    self._say(agent, ended)

    def _say(self, agent: socket.socket, message: dict[str, Any]) -> None:
        try:
            agent.sendall(json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            # It does not read any more. It looks at the disk and asks for the state when it comes back.
            self.agents.pop(agent, None)
            agent.close()
        except OSError:
            # It has gone. What it said last, perhaps to drain, is still to be read, up to the end that follows it.
            pass


def enter(directory: Path) -> None:
    """A session of its own for the job, its output in its own directory, and its mark for whatever it starts."""
    if hasattr(os, "setsid") and os.getsid(0) != os.getpid():
        os.setsid()
    os.environ["EDGECONTROL_JOB"] = directory.name
    output = os.open(directory / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    os.close(output)
    os.close(nothing)


def threads() -> int:
    """How many threads this process has, C libraries' included where the system tells."""
    try:
        return len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return 1


def open_files() -> int:
    """How many files, sockets and pipes this process has open, where the system tells."""
    try:
        return len(list(Path("/proc/self/fd").iterdir()))
    except OSError:
        return 0


def settle_memory() -> None:
    """Let garbage collections in forks leave alone all that is there now, so that its pages stay shared."""
    gc.collect()
    gc.freeze()


def listen(path: Path) -> socket.socket:
    """Listen at the path. From within its directory, since a socket's name may have 107 bytes only."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path.name)
        listener.listen(8)
        return listener
    finally:
        os.chdir(before)


def serve(path: Path, *, idle_seconds: float) -> None:
    """Run until nothing is left to do, or nobody to do it for."""
    server = ForkServer(path=path, idle_seconds=idle_seconds)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(server.waker.fileno(), warn_on_full_buffer=False)
    try:
        server.step(timeout=5.0)  # the agent waits for a first word before the seconds of importing
        server.load()
        while not server.finished():
            server.step(timeout=1.0)
    finally:
        server.withdraw()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--socket", type=Path, help="serve an agent at this Unix socket")
    mode.add_argument("--job", type=Path, help="run the one job in this directory, then exit")
    mode.add_argument("--probe", action="store_true", help="print the version of Airflow as JSON, then exit")
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    # Before Airflow is imported, whose loggers keep what they find.
    sys.stdout, sys.stderr = forgiving(1), forgiving(2)
    if arguments.probe:
        print(json.dumps({"airflow_version": airflow_version(), "python": sys.version.split()[0]}))  # noqa: T201
    elif arguments.job:
        enter(arguments.job)
        return supervise(arguments.job)
    else:
        serve(arguments.socket, idle_seconds=arguments.idle_seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
