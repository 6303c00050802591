"""One job on disk: its directory is all that survives an agent restart, and what stands there is true.

`state_dir/jobs/<id>.<attempt>/` holds, in the order of the job's life:

    job.json       what the runner and a restarted agent must know (0600)
    workload.json  what Airflow wants executed (0600); its token is removed once the job's process has read it
    confirmed      the control plane agreed: the job may be started
    lock           locked by the job's supervisor for its life: locked means alive
    started        made once by the supervisor, so that an attempt never starts twice
    asked          the supervisor has begun to ask Airflow for the start
    log/           where Airflow writes the task's log;  output  what the supervisor itself printed
    upload/        a copy of the log while it is uploaded to the storage of Airflow's `remote_logging`
    imported       which modules of Airflow its processes had to import, for the runner
    exit.reserved  room on the disk for exit.json, into which the supervisor writes it
    exit.json      what became of the job, put there in one step
    shipped        how far the control plane has acknowledged the log
    reported       the control plane has accepted the final report

When a task runs as another user, only what the agent believes stays there: job.json, confirmed, shipped, reported, the
number of the supervisor's process, and an exit.json of the agent's own. All that the supervisor reads or writes lies in
a directory of that user, `state_dir/tasks/<id>.<attempt>/` (0700), which is read as what it is: somebody else's word.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from agent.files import object_in, read_json, write
from agent.locks import holder_of, is_locked
from agent.processes import Supervisor, is_alive, start_ticks
from agent.safe_files import NEVER_A_FILE, is_there, open_inside, read_inside, relative_parts, unlink_inside

log = logging.getLogger("agent.jobs")

#: No file of a supervisor's is larger, but for its log.
MOST_BYTES = 1 << 20
#: What a result says, and of which type.
RESULT_TYPES: dict[str, type | tuple[type, ...]] = {
    "state": str,
    "reason": str,
    "airflow_outcome": str,
    "exit_code": (int, type(None)),
}
#: What `started` says, of another user's supervisor, as its runner told it before the task began.
NOTED = "supervisor"
#: Where other users' tasks run, beside the jobs; for them to pass, not to list.
PLACES = "tasks"
PLACES_MODE = 0o711


class Key(NamedTuple):
    """One attempt of one job."""

    id: str
    attempt: int


class Found(Enum):
    """What the disk says about a job."""

    UNCONFIRMED = "unconfirmed"  #: written down, but the control plane has not agreed yet
    WAITING = "waiting"  #: may be started, and never was
    RUNNING = "running"  #: its supervisor is alive
    ENDED = "ended"  #: its result is on disk
    DIED = "died"  #: it was started, its supervisor is gone, and there is no result


@dataclass(eq=False)
class Job:
    """A held job: what is on disk, and what only this agent process knows of it."""

    id: str
    attempt: int
    kind: str
    queue: str
    slots: int
    log_path: str
    boot_id: str
    directory: Path
    #: Of the system user that its task runs as; None is the agent's own.
    uid: int | None = None

    confirmed: bool = False
    #: What the runner left, once the process has ended.
    result: dict[str, Any] | None = None
    ended_at: float = 0.0
    reported: bool = False
    log_done: bool = False
    shipped: int = 0
    #: Since when this process tries to have it started.
    waiting_since: float | None = None
    #: Why the last look at it told nothing, if so.
    trouble: str = ""
    #: The runner has the order to start it.
    ordered: bool = False
    #: Since when the job has to stop; None while nobody wants it to. Then, whether its process was told.
    stopping_at: float | None = None
    asked_to_stop: bool = False
    #: Why it has to stop, for people; empty when that interests nobody.
    stopped_because: str = ""
    #: Its result interests nobody any more: it goes as soon as its processes have.
    gone: bool = False
    #: When the next report or log chunk may be tried, after a failure that concerns this job.
    report_after: float = 0.0
    ship_after: float = 0.0
    #: Why the log does not get through, for people, and what the control plane has heard of that.
    log_trouble: str = ""
    log_trouble_told: str = ""
    #: The log was deleted before it had arrived; the job stays until that is told.
    log_given_up: bool = False
    failures: dict[str, int] = field(default_factory=dict)
    #: The size, the time of the last change and the SHA-256 of the log as it was read last.
    _digest: tuple[int, int, str] | None = None

    @property
    def key(self) -> Key:
        return Key(self.id, self.attempt)

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def takes_slots(self) -> bool:
        """Until its process is gone and the control plane knows, which counts its slots until then."""
        return self.result is None or not (self.reported or self.gone)

    @property
    def place(self) -> Path:
        """Where its supervisor works. What lies there may be the task's own doing, its name is the agent's."""
        return self.directory if self.uid is None else self.directory.parent.parent / PLACES / self.name

    @property
    def log_file(self) -> Path:
        """Where the runner lets Airflow write. Raises ValueError for a path that leaves the job's directory."""
        return (self.place / "log").joinpath(*relative_parts(self.log_path or "task.log"))

    def open_log(self, flags: int = os.O_RDONLY) -> BinaryIO:
        """The log as it is on disk, never what a link in its place leads to. Raises OSError, ValueError."""
        handle = open_inside(self.place / "log", self.log_path or "task.log", flags, uid=self.uid)
        return os.fdopen(handle, "rb" if flags == os.O_RDONLY else "ab")

    def look(self) -> Found:
        """Read the job's condition from disk. Its supervisor may lock, start or end at any time meanwhile.

        Raises OSError when that cannot be told now: no descriptor is free, the disk does not answer.
        """
        if is_locked(self.place / "lock", uid=self.uid):
            return Found.RUNNING
        if self._has_ended():
            return Found.ENDED
        if not is_there(self.place / "started"):
            return Found.WAITING if self.confirmed else Found.UNCONFIRMED
        # It locks before it makes `started`, and writes its result before it unlocks: so this second look is final.
        if is_locked(self.place / "lock", uid=self.uid):
            return Found.RUNNING
        return Found.ENDED if self._has_ended() else Found.DIED

    def _has_ended(self) -> bool:
        return any(is_there(folder / "exit.json") for folder in {self.directory, self.place})

    def read_result(self) -> dict[str, Any]:
        """What the supervisor left, or the agent in its stead; empty when that says nothing."""
        own = read_json(self.directory / "exit.json") if self.uid is not None else None
        result = own or self._said("exit.json") or {}
        return {name: value for name, value in result.items() if isinstance(value, RESULT_TYPES.get(name, object))}

    def read_workload(self) -> dict[str, Any]:
        """What Airflow wants executed, as it lies there now; empty when that says nothing."""
        return self._said("workload.json") or {}

    def _said(self, name: str) -> dict[str, Any] | None:
        """The object in a file of the supervisor's; None when there is none. Raises OSError when that may pass."""
        try:
            content = json.loads(read_inside(self.place, name, most_bytes=MOST_BYTES, uid=self.uid))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        except OSError as error:
            if error.errno in NEVER_A_FILE:
                return None
            raise
        return content if isinstance(content, dict) else None

    def supervisor(self, *, boot_id: str) -> Supervisor | None:
        """Its process, as far as the number still means something: never after a restart of the machine."""
        started = read_json(self.directory / NOTED) if self.uid is not None else None
        started = started or self._said("started") or {}
        pid, started_at, ticks = (started.get(name) for name in ("pid", "started_at", "ticks"))
        if self.boot_id != boot_id or type(pid) is not int or not 0 < pid < 1 << 31:  # 0 and less mean many processes
            return None
        return Supervisor(
            pid=pid,
            started_at=started_at if isinstance(started_at, int | float) else 0.0,
            ticks=ticks if isinstance(ticks, int) else None,
            uid=self.uid,
        )

    def note_supervisor(self, pid: int) -> None:
        """Keep its number where no task can change it. A full disk that forgets it leaves what `started` says."""
        if self.uid is not None and not (self.directory / NOTED).exists():
            self._note(pid)

    def check_supervisor(self) -> None:
        """Once the noted process is gone while the job runs, note whom the kernel knows as the holder of its lock.

        Of an order that went out twice, the process that was noted may be the one that did not get the lock. Raises
        OSError when there is no lock to ask for.
        """
        if self.uid is None:
            return
        noted = read_json(self.directory / NOTED) or {}
        pid = noted.get("pid")
        if isinstance(pid, int) and is_alive(pid, ticks=noted.get("ticks")):
            return
        holder = holder_of(self.place / "lock", uid=self.uid)
        if holder is not None:
            self._note(holder)
            self.asked_to_stop = False

    def _note(self, pid: int) -> None:
        started = {"pid": pid, "ticks": start_ticks(pid), "started_at": time.time()}
        with contextlib.suppress(OSError):
            write(self.directory / NOTED, json.dumps(started).encode(), durable=False)

    def was_asked(self) -> bool:
        """Whether Airflow may have heard of the start."""
        return is_there(self.place / "asked")

    def mark_confirmed(self) -> None:
        # On disk first: whoever looks meanwhile must not start what a full disk is about to give back.
        write(self.directory / "confirmed", b"")
        self.confirmed = True

    def give_up_start(self) -> bool:
        """Take the one start of this attempt, so that nobody can any more; False when somebody has, or may have."""
        try:
            os.close(os.open(self.place / "started", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            return False
        return True

    def mark_reported(self) -> None:
        """The report is accepted. A full disk that forgets it is harmless: the same report twice is a success."""
        with contextlib.suppress(OSError):
            write(self.directory / "reported", b"")
        self.reported = True  # last: another thread may remove the directory from here on

    def mark_shipped(self, size: int, *, done: bool) -> None:
        """How far the log has arrived. A disk that forgets it is harmless: a repeated append is a no-op."""
        with contextlib.suppress(OSError):
            write(self.directory / "shipped", json.dumps({"size": size, "done": done}).encode(), durable=False)
        self.shipped, self.log_done = size, done  # last, for the same reason

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result in place of a supervisor that could not."""
        (self.place / "exit.reserved").unlink(missing_ok=True)
        write(self.directory / "exit.json", json.dumps({**result, "finished_at": time.time()}).encode())

    def note(self, event: str) -> None:
        """Add a line of the agent to the job's log. Only while no supervisor writes it."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"timestamp": stamp, "level": "error", "event": event, "logger": "edgecontrol.agent"}
        with contextlib.suppress(OSError, ValueError):
            creating = 0
            if self.uid is None:  # nothing of ours is made between another user's files
                self.log_file.parent.mkdir(parents=True, exist_ok=True)
                creating = os.O_CREAT
            with self.open_log(os.O_WRONLY | os.O_APPEND | creating) as file:
                file.write(json.dumps(line).encode() + b"\n")

    def log_size(self) -> int:
        try:
            with self.open_log() as file:
                return os.fstat(file.fileno()).st_size
        except (OSError, ValueError):
            return 0

    def drop_log(self) -> None:
        """Give its room on the disk back."""
        with contextlib.suppress(OSError, ValueError):
            unlink_inside(self.place / "log", self.log_path or "task.log")

    def log_digest(self, *, most_bytes: int) -> tuple[int, str]:
        """Size and SHA-256 of the log as it is on disk; read again only after a change, however often one asks.

        A log of more bytes has no digest: a task can give its log any size, and others' reports wait meanwhile.
        """
        digest, size = hashlib.sha256(), 0
        with contextlib.suppress(OSError, ValueError), self.open_log() as file:
            facts = os.fstat(file.fileno())
            if self._digest is not None and self._digest[:2] == (facts.st_size, facts.st_mtime_ns):
                return self._digest[0], self._digest[2]
            if facts.st_size > most_bytes:
                return facts.st_size, ""
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
                if size > most_bytes:  # it still grows
                    return size, ""
            self._digest = (size, facts.st_mtime_ns, digest.hexdigest())
        return size, digest.hexdigest()


def read_job(directory: Path) -> Job | None:
    """The job of a directory, or None when it is not a whole one. Raises OSError when that cannot be told now."""

    def read(name: str) -> dict[str, Any]:  # in a directory that tasks of the agent's own user can write to
        return object_in(lambda: read_inside(directory, name, most_bytes=MOST_BYTES, uid=None)) or {}

    facts = read("job.json")
    try:
        job = Job(
            id=str(facts["id"]),
            attempt=int(facts["attempt"]),
            kind=str(facts["kind"]),
            queue=str(facts["queue"]),
            slots=int(facts["slots"]),
            log_path=str(facts["log_path"] or ""),
            boot_id=str(facts["boot_id"]),
            directory=directory,
            uid=None if facts.get("uid") is None else int(facts["uid"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    job.confirmed = (directory / "confirmed").exists()
    job.reported = (directory / "reported").exists()
    # Else its log is shipped anew, which changes nothing.
    with contextlib.suppress(OSError, TypeError, ValueError, OverflowError):
        shipped = read("shipped")
        job.shipped, job.log_done = int(shipped.get("size", 0)), bool(shipped.get("done", False))
    return job
