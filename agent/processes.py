"""Finds and stops the processes of one job: the supervisor, the task, and whatever they have started."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import NamedTuple

import psutil

#: Set by the runner in every job's process and inherited by the programs that the job starts.
MARK = "EDGECONTROL_JOB"
#: Process start times are counted in ticks from a boot time that the system rounds.
CLOCK_SLACK_SECONDS = 2.0


class Supervisor(NamedTuple):
    """The process that a job's `started` file names."""

    pid: int
    started_at: float
    #: Clock ticks since the start of the machine, where the system counts them: nobody sets that clock.
    ticks: int | None = None
    #: The user whose word this is, where it is not the agent's own: no process of somebody else is meant then.
    uid: int | None = None


def of_job(name: str, *, supervisor: Supervisor | None) -> list[psutil.Process]:
    """All living processes of the job: the supervisor's session, the bearers of the job's mark, their children.

    A task starts its programs in sessions of their own, so that none of the three alone finds them all.
    """
    session = supervisor.pid if supervisor is not None and not _is_stranger(supervisor) else None
    uid = supervisor.uid if supervisor is not None else None
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid in found or process.pid == os.getpid():
                continue
            in_session = session is not None and _session(process.pid) == session and _is_of(process, uid)
            if in_session or _mark(process) == name:
                found[process.pid] = process
                for child in process.children(recursive=True):
                    found.setdefault(child.pid, child)
    return [process for process in found.values() if _alive(process)]


def kill(processes: list[psutil.Process]) -> None:
    """End them now. psutil checks that a process number still means the process that was found."""
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            process.kill()


def ask_to_stop(supervisor: Supervisor) -> bool:
    """SIGTERM to the job's supervisor, which hands it on to the task (`on_kill`). False when it is not there."""
    if _is_stranger(supervisor):
        return False
    try:
        os.kill(supervisor.pid, signal.SIGTERM)
    except OSError:
        return False
    return True


def _session(pid: int) -> int | None:
    return os.getsid(pid) if hasattr(os, "getsid") else None


def _mark(process: psutil.Process) -> str | None:
    return process.environ().get(MARK)


def _is_stranger(supervisor: Supervisor) -> bool:
    """Whether the number now belongs to a younger process, or to one that its user could not have started.

    A number is not given out again while a session bears it, so a stranger there also proves that the session is empty.
    """
    with contextlib.suppress(psutil.Error):
        if not _is_of(psutil.Process(supervisor.pid), supervisor.uid):
            return True
    if supervisor.ticks is not None and (ticks := start_ticks(supervisor.pid)) is not None:
        return ticks != supervisor.ticks
    try:
        return bool(psutil.Process(supervisor.pid).create_time() > supervisor.started_at + CLOCK_SLACK_SECONDS)
    except psutil.Error:
        return False


def _is_of(process: psutil.Process, uid: int | None) -> bool:
    return uid is None or bool(process.uids().real == uid)


def is_alive(pid: int, *, ticks: int | None) -> bool:
    """Whether the process that began then still lives; without `ticks`, any process of that number."""
    if ticks is not None and start_ticks(pid) != ticks:
        return False
    try:
        return _alive(psutil.Process(pid))
    except psutil.Error:
        return False


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since the start of the machine; None where that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
