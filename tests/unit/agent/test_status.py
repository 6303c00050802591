"""What `status` can say of jobs, and what of them never reaches a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import status
from agent.commands.status import lines, show, size, span
from agent.jobs import Job
from agent.wishes import leave
from tests.unit.agent.conftest import write_log

Add = Callable[..., Job]


@pytest.mark.parametrize(
    ("ti", "name"),
    [
        ({"dag_id": "etl", "task_id": "load", "map_index": -1}, "etl.load"),
        ({"dag_id": "etl", "task_id": "load", "map_index": 3}, "etl.load[3]"),
        ({"dag_id": "d" * 999, "task_id": "t"}, "d" * 250 + ".t"),
        ({"dag_id": 1, "task_id": None}, ""),
        ("x", ""),
        (None, ""),
    ],
)
def test_a_job_is_called_as_its_task_where_that_can_be_told(add_job: Add, ti: Any, name: str) -> None:
    assert status.task_name(add_job(workload={"token": "secret", "ti": ti})) == name


def test_a_job_waits_runs_stops_and_ends(add_job: Add) -> None:
    job = add_job()
    states = [status.state(job)]
    (job.place / "started").touch()
    states.append(status.state(job))
    job.stopping_at = 1.0
    states.append(status.state(job))
    job.result = {"state": "failed"}
    states.append(status.state(job))
    assert states == ["waiting", "running", "stopping", "failed"]


def test_what_is_on_disk_is_said_without_changing_it(add_job: Add, tmp_path: Path) -> None:
    waiting, died, ended = add_job(queue="floor"), add_job(), add_job()
    for job in (waiting, died, ended):
        job.mark_confirmed()
    (died.place / "started").touch()
    write_log(ended, b"x" * 100)
    ended.mark_shipped(40, done=False)
    ended.finish({"state": "success"})
    (tmp_path / "jobs" / ".half").mkdir()
    (tmp_path / "jobs" / "broken.1").mkdir()
    leave(tmp_path, "maintenance", "belt")
    before = sorted(tmp_path.rglob("*"))
    known = status.on_disk(tmp_path)
    assert {job["id"]: job["state"] for job in known["jobs"]} == {
        waiting.id: "waiting",
        died.id: "died",
        ended.id: "success",
    }
    assert known["undelivered"] == {"reports": 1, "log_bytes": 60}
    assert (known["state"], known["requested"], known["requested_by"]) == ("not running", "maintenance", "machine")
    assert known["comment"] == "belt"
    assert sorted(tmp_path.rglob("*")) == before
    assert "secret" not in json.dumps(known)
    assert [job["id"] for job in status.active(known)] == [waiting.id]


def test_nothing_is_on_disk_where_there_is_no_state_directory(tmp_path: Path) -> None:
    known = status.on_disk(tmp_path / "missing")
    assert (known["jobs"], known["requested"], known["undelivered"]) == ([], "active", {"reports": 0, "log_bytes": 0})


def test_what_others_have_written_does_not_speak_to_the_terminal(
    add_job: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(workload={"ti": {"dag_id": "etl\x1b[2J", "task_id": "a\nb"}})
    leave(tmp_path, "maintenance", "belt\x1b]0;title\x07")
    show(status.on_disk(tmp_path))
    said = capsys.readouterr().out
    assert "etl?[2J.a?b" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_every_line_is_one_of_the_table_or_of_the_facts(tmp_path: Path, add_job: Add) -> None:
    job = add_job()
    texts = [text for text, _ in lines(status.on_disk(tmp_path))]
    assert texts[0] == "this machine"
    assert texts[-2].split() == ["JOB", "ATTEMPT", "QUEUE", "SLOTS", "STATE", "FOR", "LOG", "TASK"]
    assert texts[-1].split()[:5] == [job.id, "1", "default", "1", "waiting"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (200_000, "2 d")]
)
def test_a_span_in_words(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KB"), (5 << 20, "5.0 MB"), (3 << 30, "3.0 GB")]
)
def test_a_size_in_words(count: int, text: str) -> None:
    assert size(count) == text
