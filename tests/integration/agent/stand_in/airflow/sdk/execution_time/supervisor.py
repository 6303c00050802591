"""What a real supervisor does: fork the task into a group of its own, /run, heartbeats, signals, /state."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from airflow.sdk.api import client as api_client
from airflow.sdk.execution_time import task_runner

MAX_FAILED_HEARTBEATS = 3
HEARTBEAT_SECONDS = 0.3
TICK_SECONDS = 0.05


def supervise_task(*, ti: dict[str, Any], client: Any, log_path: str, **rest: Any) -> int:
    task = ti["task"] if "task" in ti else ti["context_carrier"]
    if "raise" in task:
        raise RuntimeError(task["raise"])
    if "errno" in task:
        raise OSError(task["errno"], "made by the test")
    path = Path(os.environ["AIRFLOW__LOGGING__BASE_LOG_FOLDER"]) / log_path
    path.parent.mkdir(parents=True, exist_ok=True)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if task.get("ignore_term") else signal.SIG_DFL)
        os.close(go)
        if os.read(ready, 1) == b"":
            os._exit(1)
        task_runner.work = lambda: run_task(task, path)
        try:
            task_runner.main()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    who = json.dumps({"hostname": api_client.get_hostname(), "pid": pid}).encode()
    try:
        client.request("PATCH", f"task-instances/{ti['id']}/run", content=who)
    except Exception:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(pid, number))
    os.write(go, b"x")
    failures = 0
    beat_at = time.monotonic()
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() - beat_at > HEARTBEAT_SECONDS:
            beat_at = time.monotonic()
            try:
                client.request("PUT", f"task-instances/{ti['id']}/heartbeat", content=who)
                failures = 0
            except Exception:
                failures += 1
                if failures >= MAX_FAILED_HEARTBEATS:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    code = os.waitstatus_to_exitcode(status)
    state = task.get("state", "success") if code == 0 else "failed"
    with suppress(Exception):
        client.request("PATCH", f"task-instances/{ti['id']}/state", content=json.dumps({"state": state}).encode())
    return code


def run_task(task: dict[str, Any], path: Path) -> int:
    with path.open("ab", buffering=0) as log:
        keep(path)
        names = [name for name in os.environ if name.startswith(("EDGE", "AIRFLOW"))]
        there = [name for name in task.get("imports", []) if name in sys.modules]
        told = {"environ": dict(os.environ)} if task.get("tell") else {}
        witness("start", task, env=names, there=there, uid=os.getuid() if hasattr(os, "getuid") else None, **told)
        for name in task.get("imports", []):
            with suppress(Exception):
                importlib.import_module(name)
        for command in task.get("run", ()):
            subprocess.run(["/bin/sh", "-c", command], check=False)
        if task.get("child"):
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            _log_to_target(log, json.dumps({"child": child.pid}).encode() + b"\n")
        _log_to_target(log, os.urandom(task.get("bytes", 0)))
        if "text" in task:
            write_text(log, **task["text"])
        deadline = time.monotonic() + task.get("seconds", 0)
        until = Path(task["until"]) if "until" in task else None
        count, ticks = 0, int(task.get("work", 0) / TICK_SECONDS)  # a machine that stands still does no work
        while time.monotonic() < deadline or (until is not None and not until.exists()) or count < ticks:
            _log_to_target(log, json.dumps({"event": f"tick {count} äöü"}, ensure_ascii=False).encode() + b"\n")
            count += 1
            time.sleep(TICK_SECONDS)
    witness("end", task)
    sys.stdout.flush()
    return int(task.get("code", 0))


def write_text(log: BinaryIO, *, bytes: int, seed: int, seconds: float = 0.0) -> None:
    """As many bytes that try whoever carries them, the same for the same seed; in odd pieces over so many seconds.

    Characters of one to four bytes, NUL, and bytes that are no UTF-8; a piece ends in the midst of any of them.
    """
    dice = random.Random(seed)  # noqa: S311
    letters = ["Grüße aus ", "日本語のログ", "😀", "\0", "\r\n", "a" * 200]
    broken = [b"\xff\xfe", b"\xc3(", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"]
    pool = b"".join(
        dice.choice(broken) if dice.random() < 0.1 else dice.choice(letters).encode() for _ in range(20_000)
    )
    left, began = bytes, time.monotonic()
    while left > 0:
        size = min(left, dice.randrange(1, 70_000, 2))
        start = dice.randrange(len(pool))
        data = (b"%d\n" % left + pool[start:] + pool)[:size]
        _log_to_target(log, data)
        left -= len(data)
        time.sleep(max(0.0, began + seconds * (1 - left / bytes) - time.monotonic()))


def _log_to_target(log: BinaryIO, data: bytes) -> None:
    """The SDK's function of this name ends its caller too when the disk is full."""
    while data:
        data = data[log.write(data) or 0 :]


def witness(what: str, task: dict[str, Any], **more: Any) -> None:
    """Say outside of all that is tested that this task has begun, or done its work."""
    if file := os.environ.get("WITNESS"):
        said = {"what": what, "job": os.environ["EDGECONTROL_JOB"], "task": task.get("name"), "pid": os.getpid()}
        with Path(file).open("a") as lines:
            lines.write(json.dumps({**said, "at": time.monotonic(), **more}) + "\n")


def keep(log: Path) -> None:
    """Give the log's bytes a second name, since the agent drops a log that has arrived."""
    if folder := os.environ.get("KEPT_LOGS"):
        with suppress(FileExistsError):
            (Path(folder) / os.environ["EDGECONTROL_JOB"]).hardlink_to(log)
