"""What the agent tells about its machine; figures only, nothing is decided from them here."""

from __future__ import annotations

import getpass
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

GIGABYTE = 1024**3


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
    except (KeyError, OSError):
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def figures(*, state_dir: Path) -> dict[str, Any]:
    """Figures of this moment, rounded so that a quiet machine does not look busy."""
    load = psutil.getloadavg()[0] / (os.cpu_count() or 1)
    return {
        "load_per_cpu": round(load, 1),
        "memory_used_percent": round(psutil.virtual_memory().percent),
        "disk_free_gb": round(shutil.disk_usage(state_dir).free / GIGABYTE, 1),
    }
