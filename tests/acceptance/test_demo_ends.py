"""How the demo ends: with everything it started, by itself, by Ctrl-C, and after a kill -9 in the middle."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.demo.environments import CHECKOUT

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(500)]

LAST_LINE = re.compile(r"demo: \S+ succeeded on demo-edge-1 in [\d.]+ s, \d+ tasks")


def start(state_dir: Path, *, once: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "DEMO_STATE_DIR": str(state_dir), "ONCE": once}
    command = [sys.executable, "-m", "deploy.demo"]
    return subprocess.Popen(command, cwd=CHECKOUT, env=environ, text=True, stdout=subprocess.PIPE)


def lines_until(demo: subprocess.Popen[str], text: str) -> list[str]:
    """Read what it prints up to the line with this text, or to its end."""
    assert demo.stdout is not None
    lines = []
    for line in demo.stdout:
        lines.append(line.rstrip())
        if text in line:
            break
    return lines


def mentioning(state_dir: Path) -> list[psutil.Process]:
    """All processes that have this demo's state directory in their command line or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            texts = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(state_dir) in text for text in texts):
            found.append(process)
    return found


def test_a_demo_after_a_killed_one_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    killed = start(tmp_path, once="")
    lines_until(killed, "Running edge_tour")
    assert mentioning(tmp_path)
    killed.kill()
    killed.wait()

    second = start(tmp_path, once="1")
    printed = lines_until(second, "never printed")
    assert second.wait() == 0, "\n".join(printed)
    assert LAST_LINE.fullmatch(printed[-1]), printed[-1]
    assert mentioning(tmp_path) == []


def test_ctrl_c_stops_what_the_demo_started_and_nothing_else(tmp_path: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    demo = start(tmp_path, once="")
    try:
        lines_until(demo, "control plane")
        demo.send_signal(signal.SIGINT)
        assert demo.wait(30) != 0
        assert mentioning(tmp_path) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_part_that_dies_ends_the_demo_at_once_and_is_named_with_its_log(tmp_path: Path) -> None:
    demo = start(tmp_path, once="1")
    lines_until(demo, "control plane")
    master = next(process for process in mentioning(tmp_path) if "gunicorn" in process.name())
    master.kill()
    began = time.monotonic()
    printed = lines_until(demo, "never printed")
    assert demo.wait() == 1
    assert time.monotonic() - began < 15
    assert any("control plane was killed by SIGKILL" in line for line in printed), printed
    assert any(str(tmp_path / "logs" / "control-plane.log") in line for line in printed), printed
    assert mentioning(tmp_path) == []
