"""What the agent tells about its machine; figures only, nothing is decided from them here."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

GIGABYTE = 1024**3
#: What the processor did is averaged over at least this, so that the agent's own looks at it do not show.
WINDOW_SECONDS = 30.0
FIRST_SECONDS = 0.1
#: The processor's share is told in steps of this many percent.
CPU_STEP = 5


def boot_id(override: str | None) -> str:
    """What changes when the machine restarts, and only then."""
    if override:
        return override
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def machine(*, state_dir: Path, task_python: str) -> dict[str, Any]:
    """Facts that stay while the agent runs."""
    return {
        "hostname": socket.gethostname(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / GIGABYTE, 1),
        "agent_python": sys.version.split()[0],
        "task_python": task_python,
        "user": user(),
        "state_dir": str(state_dir),
    }


def user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # ImportError: there is no list of users, as on Windows
        return str(os.getuid()) if hasattr(os, "getuid") else ""


class Meter:
    """Figures of this moment, rounded so that a quiet machine does not look busy."""

    def __init__(self, *, state_dir: Path, first_seconds: float = FIRST_SECONDS) -> None:
        """Takes `first_seconds`: what the processor did before it would say how busy the start of an agent is."""
        self._state_dir = state_dir
        self._seen = processor_seconds()
        time.sleep(first_seconds)
        self._cpu_percent = 0
        self._lock = threading.Lock()
        self._look_at_processor()

    def figures(self) -> dict[str, Any]:
        with self._lock:
            if time.monotonic() - self._looked_at >= WINDOW_SECONDS:
                self._look_at_processor()
        disk = psutil.disk_usage(str(self._state_dir))
        load = psutil.getloadavg()[0] / (os.cpu_count() or 1)
        return {
            "cpu_percent": self._cpu_percent,
            "load_per_cpu": round(load, 1),
            "memory_used_percent": round(psutil.virtual_memory().percent),
            "disk_used_percent": round(disk.percent),
            "disk_free_gb": round(disk.free / GIGABYTE, 1),
        }

    def _look_at_processor(self) -> None:
        busy, total = processor_seconds()
        busy_before, total_before = self._seen
        if total > total_before:
            share = min(1.0, max(0.0, (busy - busy_before) / (total - total_before)))
            self._cpu_percent = CPU_STEP * round(100 * share / CPU_STEP)
        self._seen, self._looked_at = (busy, total), time.monotonic()


def processor_seconds() -> tuple[float, float]:
    """Of all processors since the start of the machine: busy, and altogether."""
    times = psutil.cpu_times()
    # A guest's time is counted in `user` as well; a processor that waits for a disk is free.
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return total - times.idle - getattr(times, "iowait", 0.0), total
