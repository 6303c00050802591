"""The processes of one demo: how they start, how an early death shows, how they all end.

Nothing is ever ended by name. What a demo started is its children and all that descend from them, found by
their parents (orphans come back to this process) or, after a crash, by the mark in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import psutil

#: Every process of a demo carries this variable; its value is drawn anew for each run.
MARK = "DEMO_RUN_ID"

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class PartFailed(Exception):
    """One part of the demo failed; the message says which and why, `log` is its file."""

    def __init__(self, part: str, why: str, log: Path | None = None) -> None:
        super().__init__(f"{part} {why}")
        self.log = log


@dataclass
class Child:
    """A process that the demo started itself."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    #: False for a command that is expected to end.
    serves: bool
    #: Ask it to stop, two seconds apart; then it is killed.
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)

    @property
    def succeeded(self) -> bool:
        return self.popen.poll() == 0


class Processes:
    """All children of one demo, in the order of their start. Use it from the main thread only."""

    def __init__(self, state_dir: Path) -> None:
        self.record = state_dir / "processes.json"
        self.logs = state_dir / "logs"
        self.logs.mkdir(exist_ok=True)
        self.mark = uuid4().hex
        self.children: list[Child] = []
        adopt_orphans()

    def start(
        self,
        name: str,
        argv: list[str],
        *,
        env: dict[str, str],
        cwd: Path,
        serves: bool = True,
        **kwargs: Any,
    ) -> Child:
        """Start a process in a session of its own, with its output in `logs/<name>.log`."""
        log = self.logs / f"{name.lower().replace(' ', '-')}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                argv,
                env={**env, MARK: self.mark, "SPT_NOENV": "1"},  # setproctitle would overwrite the mark
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches the demo alone, which stops things in order
                preexec_fn=_in_the_child,
            )
        child = Child(name, popen, log, serves, **kwargs)
        self.children.append(child)
        self._write_record()
        return child

    def check(self) -> None:
        """Raise PartFailed when a child has ended that should not have."""
        for child in self.children:
            code = child.popen.poll()
            if code is not None and (child.serves or code != 0):
                why = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                raise PartFailed(child.name, why, child.log)

    def stop(self) -> None:
        """Stop all that was started and all that descends from it, the first part (the database) last."""
        if not self.children:
            return
        first, *others = self.children
        _ask_to_stop(others)
        ours, firsts = _descendants(psutil.Process()), _descendants(psutil.Process(first.popen.pid))
        _end(ours - firsts, grace=0.5)
        _ask_to_stop([first])
        _end(_descendants(psutil.Process()))
        self.children.clear()
        self.record.unlink(missing_ok=True)

    def stop_leftovers(self) -> int:
        """End what an earlier demo left behind when it was killed; return how many processes that were."""
        try:
            record = json.loads(self.record.read_text())
        except (OSError, ValueError):
            return 0
        leftovers = set(_of_an_earlier_demo(record["mark"], dict(record["started"])))
        _end(leftovers)
        self.record.unlink(missing_ok=True)
        return len(leftovers)

    def _write_record(self) -> None:
        started = []
        for child in self.children:
            with contextlib.suppress(psutil.Error):
                started.append((child.popen.pid, psutil.Process(child.popen.pid).create_time()))
        temporary = self.record.with_suffix(".new")
        temporary.write_text(json.dumps({"mark": self.mark, "started": started}))
        temporary.replace(self.record)


def only_one(state_dir: Path) -> IO[str]:
    """Hold the state directory for this process; raise PartFailed when another demo has it."""
    lock = (state_dir / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise PartFailed("make demo", f"is already running here (process {lock.read().strip()})") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _of_an_earlier_demo(mark: str, started: dict[int, float]) -> Iterable[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            created = started.get(process.pid)
            if created is not None and abs(created - process.create_time()) < 1:
                yield process
                yield from process.children(recursive=True)
            elif process.environ().get(MARK) == mark:
                yield process


def _ask_to_stop(children: list[Child]) -> None:
    for turn in range(2):
        asked = [child for child in children if child.popen.poll() is None and len(child.stop_signals) > turn]
        for child in asked:
            child.popen.send_signal(child.stop_signals[turn])
        until = time.monotonic() + 2
        while time.monotonic() < until and any(child.popen.poll() is None for child in asked):
            time.sleep(0.05)


def _descendants(process: psutil.Process) -> set[psutil.Process]:
    """Return the process, unless it is this one, and all below it."""
    try:
        return {process, *process.children(recursive=True)} - {psutil.Process()}
    except psutil.NoSuchProcess:
        return set()


def _end(processes: set[psutil.Process], grace: float = 4.0) -> None:
    _signal(processes, psutil.Process.terminate)
    _, alive = psutil.wait_procs(processes, timeout=grace)
    _signal(alive, psutil.Process.kill)
    psutil.wait_procs(alive, timeout=grace)


def _signal(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            send(process)


def _in_the_child() -> None:
    """Be told to stop when the demo dies, even by kill -9; and hear SIGINT, which a shell's `&` makes deaf to."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def adopt_orphans() -> None:
    """Make descendants that lose their parent children of this process, so that none can hide from it."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


_libc = ctypes.CDLL(None)
