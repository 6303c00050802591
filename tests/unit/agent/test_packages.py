from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from agent import packages
from agent.packages import Packages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where an installer has put one package."""
    folder = tmp_path / "site-packages"
    (folder / "one").mkdir(parents=True)
    (folder / "one-1.0.dist-info").mkdir()
    return folder


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    monkeypatch.setattr(packages, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(packages, "SETTLE_SECONDS", 0.0)
    return Packages(python=sys.executable, environ={**os.environ, "PYTHONPATH": str(folder)})


def touch(folder: Path) -> None:
    """As any change does, but never within the clock's resolution."""
    later = folder.stat().st_mtime_ns + 1_000_000
    os.utime(folder, ns=(later, later))


def test_an_upgrade_a_new_package_and_a_removal_are_changes(folder: Path, installed: Packages) -> None:
    seen = [installed.fingerprint()]
    (folder / "one-1.0.dist-info").rename(folder / "one-1.1.dist-info")
    touch(folder)
    seen.append(installed.fingerprint())
    (folder / "two.py").touch()
    touch(folder)
    seen.append(installed.fingerprint())
    shutil.rmtree(folder / "one")
    touch(folder)
    seen.append(installed.fingerprint())
    assert len(set(seen)) == 4


def test_the_same_version_installed_again_is_a_change(folder: Path, installed: Packages) -> None:
    before = installed.fingerprint()
    touch(folder / "one-1.0.dist-info")
    touch(folder)
    assert installed.fingerprint() != before


def test_what_python_itself_writes_beside_modules_is_none(folder: Path, installed: Packages) -> None:
    before = installed.fingerprint()
    (folder / "__pycache__").mkdir()
    touch(folder)
    assert installed.fingerprint() == before


def test_a_change_counts_once_it_is_over(folder: Path, installed: Packages) -> None:
    installed.fingerprint()
    assert not installed.changed()
    (folder / "two.py").touch()
    touch(folder)
    assert not installed.changed()
    (folder / "two-2.0.dist-info").mkdir()
    touch(folder)
    assert not installed.changed()
    assert installed.changed()
    installed.fingerprint()
    assert not installed.changed()


def test_it_looks_now_and_then_only(folder: Path, installed: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "LOOK_SECONDS", 600.0)
    installed.fingerprint()
    (folder / "two.py").touch()
    touch(folder)
    assert not any(installed.changed() for _ in range(5))


def test_an_interpreter_that_does_not_run_has_no_packages(tmp_path: Path) -> None:
    assert packages.folders(str(tmp_path / "none"), {}) == []
    assert Packages(python=str(tmp_path / "none"), environ={}).fingerprint()
