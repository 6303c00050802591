from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import runner
from agent.runner import Lessons, newest_import, note_imports


@pytest.fixture
def lessons() -> Iterator[Lessons]:
    lessons = Lessons(leave_server=lambda: None)
    yield lessons
    if lessons.rehearsal:
        os.waitpid(lessons.rehearsal, 0)


def test_only_modules_of_airflow_are_written_down_and_only_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runner.sys.modules, "airflow.providers.before", runner)
    since = newest_import()
    for name in (
        "airflow.providers.one",
        "airflowing",
        "of_a_dag",
        "numpy.random",
        "airflow.unusual-name",
        "airflow.b",
    ):
        monkeypatch.setitem(runner.sys.modules, name, runner)
    note_imports(tmp_path, since=since)
    assert (tmp_path / "imported").read_text() == "airflow.providers.one\nairflow.b\n"


def test_only_modules_of_airflow_are_read_and_each_once(tmp_path: Path, lessons: Lessons) -> None:
    names = ["airflow.a", "os", "airflow.b", "airflow.a", "airflow.c d", "../x", "airflow.ü", ""]
    (tmp_path / "imported").write_text("\n".join(names))
    lessons.read(tmp_path)
    lessons.read(tmp_path)
    assert lessons.untried == ["airflow.a", "airflow.b"]


def test_what_is_learned_is_bounded(tmp_path: Path, lessons: Lessons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LEARNED_LIMIT", 3)
    (tmp_path / "imported").write_text("".join(f"airflow.m{number}\n" for number in range(10)))
    lessons.read(tmp_path)
    assert lessons.untried == ["airflow.m0", "airflow.m1", "airflow.m2"]


def test_a_job_that_says_nothing_teaches_nothing(tmp_path: Path, lessons: Lessons) -> None:
    lessons.read(tmp_path)
    assert lessons.wait_seconds(5.0) == 5.0


def test_an_import_that_does_not_end_is_forgotten(
    tmp_path: Path, lessons: Lessons, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hanging_for_ever.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lessons.untried = ["hanging_for_ever", "later"]
    lessons.step()
    while not lessons._heard:
        lessons.hear()
    assert lessons.wait_seconds(5.0) > 0
    lessons.deadline = time.monotonic()
    lessons.step()
    assert (lessons.harmless, lessons.untried) == ([], ["later"])
    assert os.waitpid(lessons.rehearsal, 0)[1] == 9
    lessons.rehearsal = 0
