"""Which jobs are ordered, and which are given back, whatever the runner does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.gate import Gate
from agent.held import Held
from agent.job_watch import START_SECONDS, JobWatch
from agent.jobs import Job, read_job, write

Add = Callable[..., Job]


class Runner:
    """A fork server that starts nothing, and notes what it was told."""

    def __init__(self) -> None:
        self.ready = True
        self.started: list[str] = []

    def start(self, directory: Path) -> None:
        self.started.append(directory.name)


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def watch(runner: Runner, held: Held) -> JobWatch:
    gate = Gate(runner_ready=lambda: runner.ready, execution_api=lambda: "")
    watch: Any = JobWatch(runner=runner, held=held, gate=gate, boot_id="boot-1", grace_seconds=1)  # type: ignore[arg-type]
    return watch  # type: ignore[no-any-return]


def confirmed(job: Job) -> Job:
    job.mark_confirmed()
    return job


def test_a_job_is_ordered_once(watch: JobWatch, runner: Runner, add_job: Add) -> None:
    job = confirmed(add_job())
    watch.order(job)
    watch.order(job)
    watch.look_at_all()
    assert runner.started == [job.name]


def test_a_job_that_was_given_back_is_never_ordered(watch: JobWatch, runner: Runner, add_job: Add, held: Held) -> None:
    stopped, ended = confirmed(add_job()), confirmed(add_job())
    stopped.stopping_at = 1.0
    held.ended(ended, {"state": "not_started"})
    for job in (stopped, ended):
        watch.order(job)
    assert runner.started == []


def test_a_job_that_no_runner_can_start_goes_back_and_can_start_nowhere_here(
    watch: JobWatch, runner: Runner, add_job: Add
) -> None:
    runner.ready = False
    job = confirmed(add_job())
    watch.look_at_all()
    assert job.result is None, "it may be back in a moment"
    job.held_since -= START_SECONDS + 1
    watch.look_at_all()
    assert job.result is not None
    assert job.result["state"] == "not_started"
    assert not job.give_up_start(), "a late fork finds the one start taken"
    runner.ready = True
    watch.look_at_all()
    assert runner.started == []


def test_a_disk_that_refuses_the_confirmation_leaves_nothing_to_start(
    watch: JobWatch, runner: Runner, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job()

    def full(*arguments: Any, **options: Any) -> None:
        watch.look_at_all()
        raise OSError("no space left")

    monkeypatch.setattr("agent.jobs.write", full)
    with pytest.raises(OSError, match="no space"):
        job.mark_confirmed()
    assert runner.started == []


def test_a_job_that_was_done_with_but_for_its_directory_is_forgotten_at_the_next_start(
    watch: JobWatch, add_job: Add, held: Held
) -> None:
    job = add_job()
    write(job.directory / "exit.json", b'{"state": "success"}')
    job.mark_reported()
    job.mark_shipped(0, done=True)
    held.forget = lambda job: None  # type: ignore[method-assign,assignment]  # killed right here
    held.settle(job)
    again = read_job(job.directory)
    assert again is not None
    del held.forget
    held._jobs.clear()
    watch.take_over(again)
    assert held.all() == []
    assert not job.directory.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": "odd"}', '{"state": null}'])
def test_a_result_that_says_nothing_is_a_failure_with_a_reason(watch: JobWatch, add_job: Add, content: str) -> None:
    job = confirmed(add_job())
    (job.directory / "exit.json").write_text(content)
    watch.look_at_all()
    assert job.result == {"state": "failed", "reason": "the result on disk cannot be read"}


def test_a_job_that_cannot_be_looked_at_hides_no_other(
    watch: JobWatch, runner: Runner, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = confirmed(add_job()), confirmed(add_job())

    def broken() -> None:
        raise OSError("input/output error")

    monkeypatch.setattr(bad, "look", broken)
    watch.look_at_all()
    assert runner.started == [good.name]


def test_what_a_failed_supervisor_left_behind_is_stopped_before_its_job_is_reported(
    watch: JobWatch, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []
    monkeypatch.setattr(watch, "_kill", lambda job: killed.append((job.id, job.result)))
    failed, ended = confirmed(add_job()), confirmed(add_job())
    (failed.directory / "exit.json").write_text('{"state": "failed", "airflow_outcome": ""}')
    (ended.directory / "exit.json").write_text('{"state": "failed", "airflow_outcome": "failed"}')
    watch.look_at_all()
    assert killed == [(failed.id, None)]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    whole = os.write
    monkeypatch.setattr("os.write", lambda handle, content: whole(handle, content[:3]))
    write(tmp_path / "workload.json", b"0123456789")
    assert (tmp_path / "workload.json").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"state": "failed", "reason": "stopped by the agent"}, "time is up; stopped by the agent"),
        ({"state": "failed"}, "time is up"),
        ({"state": "success", "reason": ""}, ""),
    ],
)
def test_a_job_that_had_to_stop_says_why_unless_it_succeeded(
    watch: JobWatch, add_job: Add, result: dict[str, str], reason: str
) -> None:
    job = confirmed(add_job())
    watch.stop(job, gone=False, because="time is up")
    watch.stop(job, gone=False, because="something later")
    job.finish(result)
    watch.look_at_all()
    assert job.result is not None
    assert job.result["reason"] == reason
