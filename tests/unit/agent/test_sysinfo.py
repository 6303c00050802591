from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from agent import sysinfo
from agent.sysinfo import Meter


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the processor has done since the machine started: busy and altogether. It is idle until a test says more."""
    done = [1000.0, 5000.0]

    def times() -> tuple[float, float]:
        done[1] += 100.0
        return done[0], done[1]

    monkeypatch.setattr(sysinfo, "processor_seconds", times)
    return done


def later(meter: Meter) -> int:
    meter._looked_at -= sysinfo.WINDOW_SECONDS
    return int(meter.figures()["cpu_percent"])


def test_the_processors_share_is_that_of_the_last_while(tmp_path: Path, processor: list[float]) -> None:
    meter = Meter(state_dir=tmp_path, first_seconds=0.0)
    assert meter.figures()["cpu_percent"] == 0
    processor[0] += 40
    assert later(meter) == 40
    assert later(meter) == 0


def test_a_quiet_machine_does_not_look_busy(tmp_path: Path, processor: list[float]) -> None:
    meter = Meter(state_dir=tmp_path, first_seconds=0.0)
    seen = set()
    for busy in (0.3, 2.0, 1.1, 0.0):
        processor[0] += busy
        seen.add(later(meter))
    assert seen == {0}


def test_looks_that_follow_one_another_say_the_same(tmp_path: Path, processor: list[float]) -> None:
    meter = Meter(state_dir=tmp_path, first_seconds=0.0)
    processor[0] += 90
    assert [meter.figures()["cpu_percent"] for _ in range(3)] == [0, 0, 0]


def test_a_processor_that_waits_for_the_disk_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    times = psutil.cpu_times()
    free = getattr(times, "iowait", 0.0) + times.idle
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    busy, total = sysinfo.processor_seconds()
    assert total - busy == pytest.approx(free)
    assert total <= sum(times)


def test_the_disk_is_that_of_the_state_directory(tmp_path: Path) -> None:
    figures = Meter(state_dir=tmp_path, first_seconds=0.0).figures()
    disk = psutil.disk_usage(str(tmp_path))
    assert figures["disk_used_percent"] == pytest.approx(disk.percent, abs=1)
    assert isinstance(figures["disk_used_percent"], int)
    assert set(figures) == {
        "cpu_percent",
        "load_per_cpu",
        "memory_used_percent",
        "disk_used_percent",
        "disk_free_gb",
    }
