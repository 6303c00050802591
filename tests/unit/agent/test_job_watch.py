"""Which jobs are ordered, and which are given back, whatever the runner does."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.files import write
from agent.gate import Gate
from agent.held import Held
from agent.job_watch import START_SECONDS, JobWatch
from agent.jobs import Found, Job, read_job

Add = Callable[..., Job]


class Runner:
    """Runners that start nothing, and note what they were told."""

    def __init__(self) -> None:
        self.ready = True
        self.started: list[str] = []
        self.refusal = ""
        #: The users whose runner is a new one at the next look.
        self.mended: set[int | None] = set()
        self.said: list[dict[str, Any]] = []

    def mend(self) -> set[int | None]:
        mended, self.mended = self.mended, set()
        return mended

    def look(self) -> bool:
        return False

    def why_not(self, job: Job) -> str:
        return self.refusal

    def can_start(self, queue: str) -> bool:
        return self.ready

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        said, self.said = self.said, []
        return said

    def start(self, job: Job) -> None:
        self.started.append(job.name)


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


@contextlib.contextmanager
def lock(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    """Have another process lock the job, as its supervisor does."""
    script = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(job.place / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


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
    assert job.waiting_since is not None
    job.waiting_since -= START_SECONDS + 1
    watch.look_at_all()
    assert job.result is not None
    assert job.result["state"] == "not_started"
    assert not job.give_up_start(), "a late fork finds the one start taken"
    runner.ready = True
    watch.look_at_all()
    assert runner.started == []


def test_a_job_that_a_hung_runner_does_not_start_goes_back(watch: JobWatch, runner: Runner, add_job: Add) -> None:
    job = confirmed(add_job())
    watch.look_at_all()
    assert runner.started == [job.name]
    assert job.waiting_since is not None
    job.waiting_since -= START_SECONDS + 1
    watch.look_at_all()
    assert job.result is not None
    assert job.result["state"] == "not_started"
    assert not job.give_up_start(), "should the runner go on, its fork finds the one start taken"


@pytest.mark.parametrize(
    "event",
    [{"event": "unstarted", "reason": "cannot fork"}, {"event": "ended", "status": 0}],
    ids=["unstarted", "ended"],
)
def test_a_job_goes_back_only_when_nobody_has_begun_to_start_it(
    watch: JobWatch, add_job: Add, event: dict[str, Any]
) -> None:
    """It was ordered twice, since the agent was restarted: one fork did not work, and the other has just begun."""
    begun, other = confirmed(add_job()), confirmed(add_job())
    assert begun.give_up_start()
    with lock(begun):
        for job in (begun, other):
            watch._follow({**event, "job": job.name})
    assert begun.result is None
    assert other.result is not None
    assert not other.give_up_start()


def test_a_job_that_is_stopped_after_its_order_starts_no_more(watch: JobWatch, add_job: Add, held: Held) -> None:
    job, begun = confirmed(add_job()), confirmed(add_job())
    watch.look_at_all()
    assert begun.give_up_start()
    with lock(begun):
        for each in (job, begun):
            watch.stop(each, gone=True)
        watch.look_at_all()
        assert held.all() == [begun]
    assert not job.directory.exists()


@pytest.mark.parametrize("kind", ["ExecuteTask", "ExecuteCallback"])
def test_what_was_given_back_is_given_back_by_the_next_agent_too(
    watch: JobWatch, add_job: Add, held: Held, kind: str
) -> None:
    job = confirmed(add_job(kind=kind))
    watch._follow({"event": "unstarted", "job": job.name, "reason": "cannot fork"})
    (again,) = held.spool.load()
    held._jobs.clear()
    assert watch.take_over(again) is Found.ENDED
    assert again.result is not None
    assert (again.result["state"], again.result["reason"]) == ("not_started", "cannot fork")


def no_descriptors(*arguments: Any, **options: Any) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_task_is_not_dead_because_no_descriptor_is_free(
    watch: JobWatch, add_job: Add, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    running, ended, kept = (confirmed(add_job()) for _ in range(3))
    for job in (running, ended, kept):
        assert job.give_up_start()
    ended.finish({"state": "success", "airflow_outcome": "success"})
    with lock(running):
        with monkeypatch.context() as patch:
            patch.setattr("agent.locks.os.open", no_descriptors)
            patch.setattr("agent.files.Path.read_bytes", no_descriptors)
            watch.look_at_all()
            watch.look_at_all()
            watch.stop(kept, gone=False)
            watch._follow({"event": "ended", "job": kept.name, "status": 0})
            assert watch.take_over(kept) is None
            assert list(watch.held.spool.load()) == []
        assert [job.result for job in (running, ended, kept)] == [None, None, None]
        assert all(job.directory.exists() for job in (running, ended, kept))
        assert caplog.text.count(f"{running.id} attempt 1 cannot be looked at") == 1
        watch.look_at_all()
    assert running.result is None
    assert ended.result == {"state": "success", "airflow_outcome": "success"} | ended.result  # type: ignore[operator]
    assert kept.result is not None
    assert kept.result["state"] == "not_started"


def test_one_job_that_cannot_be_looked_at_hides_no_other(
    watch: JobWatch, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = confirmed(add_job()), confirmed(add_job())
    monkeypatch.setattr(bad, "look", no_descriptors)
    good.finish({"state": "success"})
    for job in (bad, good):
        watch.take_over(job)
    watch.look_at_all()
    assert (bad.result, good.result and good.result["state"]) == (None, "success")


def test_what_was_ordered_of_a_runner_that_is_gone_is_ordered_of_the_next(
    watch: JobWatch, runner: Runner, add_job: Add
) -> None:
    job, other = confirmed(add_job()), confirmed(add_job())
    other.uid = 4242
    for each in (job, other):
        watch.order(each)
    runner.mended = {None}
    watch.step()
    watch.order(job)
    watch.order(other)
    assert runner.started == [job.name, other.name, job.name]


def test_a_job_that_nobody_here_can_start_goes_back_with_the_reason(
    watch: JobWatch, runner: Runner, add_job: Add
) -> None:
    job = confirmed(add_job())
    runner.refusal = "no Airflow in /opt/gpu"
    watch.order(job)
    assert job.result == {"state": "not_started", "reason": "no Airflow in /opt/gpu"}


@pytest.mark.parametrize("refusal", ["no Airflow in /opt/gpu", ""])
def test_a_queue_whose_runner_cannot_start_closes_the_machine_for_no_other(
    watch: JobWatch, runner: Runner, add_job: Add, refusal: str
) -> None:
    """Of two jobs at once neither; but what comes again is from a control plane that hands out all queues."""

    def turn_away(job: Job) -> None:
        job.waiting_since = time.monotonic() - START_SECONDS - 1
        runner.ready, runner.refusal = False, refusal
        watch.look_at_all()
        runner.ready, runner.refusal = True, ""
        assert job.result is not None

    first, second = confirmed(add_job()), confirmed(add_job())
    turn_away(first)
    turn_away(second)
    assert watch.gate.closed_because() == ""
    turn_away(confirmed(add_job(id=first.id, attempt=2)))
    assert "the last start did not work" in watch.gate.closed_because()


def test_a_runner_that_works_and_does_not_start_a_job_closes_the_machine_for_a_while(
    watch: JobWatch, add_job: Add
) -> None:
    job = confirmed(add_job())
    job.waiting_since = time.monotonic() - START_SECONDS - 1
    watch.look_at_all()
    assert "does not start it" in watch.gate.closed_because()


def test_a_runner_speaks_of_its_own_users_jobs_only(watch: JobWatch, runner: Runner, add_job: Add) -> None:
    job = confirmed(add_job())
    runner.said = [{"event": "unstarted", "job": job.name, "reason": "a lie", "uid": 4242}]
    watch.step()
    assert job.result is None


def of_another_user(job: Job) -> Job:
    """As if the job's task ran as another user, whose number happens to be ours."""
    job.uid = os.getuid()
    job.place.mkdir(parents=True)
    return job


@pytest.mark.skipif(sys.platform != "linux", reason="tasks run as another user on Linux only")
def test_a_job_whose_order_went_out_twice_is_stopped_whichever_of_its_processes_got_the_lock(
    watch: JobWatch, runner: Runner, add_job: Add
) -> None:
    job = of_another_user(confirmed(add_job()))
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as other, lock(job) as holder:
        runner.said = [{"event": "started", "job": job.name, "pid": other.pid, "uid": job.uid}]
        watch.step()
        watch.stop(job, gone=True)
        assert other.wait(timeout=30) == -signal.SIGTERM
        watch.look_at_all()
        assert holder.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="tasks run as another user on Linux only")
def test_a_task_that_takes_a_lock_of_its_own_does_not_displace_its_supervisor(watch: JobWatch, add_job: Add) -> None:
    job = of_another_user(confirmed(add_job()))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as noted:
        job.note_supervisor(noted.pid)
        with lock(job):
            watch.look_at_all()
        supervisor = job.supervisor(boot_id="boot-1")
        assert supervisor is not None
        assert supervisor.pid == noted.pid
        noted.communicate(b"\n", timeout=30)


@pytest.mark.parametrize("content", [b"{}", b"[]", b"x", b'{"state": "paused"}'])
def test_a_result_that_says_nothing_is_a_failure(watch: JobWatch, add_job: Add, content: bytes) -> None:
    job = confirmed(add_job())
    (job.directory / "exit.json").write_bytes(content)
    watch.look_at_all()
    assert job.result == {"state": "failed", "reason": "the result on disk cannot be read"}


class Processes:
    """What each look finds of a job; each kill ends what was found."""

    def __init__(self, *looks: list[str]) -> None:
        self.looks = list(looks)
        self.killed: list[str] = []

    def of_job(self, name: str, *, supervisor: object) -> list[str]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def kill(self, found: list[str]) -> None:
        self.killed += found


@pytest.mark.parametrize("died", [True, False], ids=["without a result", "by its own failure"])
def test_an_end_is_told_only_when_nothing_of_the_job_is_left(
    watch: JobWatch, add_job: Add, monkeypatch: pytest.MonkeyPatch, died: bool
) -> None:
    """A task that is being killed forks once more; one of its processes then hangs in the kernel."""
    monkeypatch.setattr("agent.job_watch.KILLED_WAIT_SECONDS", 0.05)
    monkeypatch.setattr("agent.job_watch.psutil.wait_procs", lambda alive, timeout: time.sleep(0.001))
    job = confirmed(add_job())
    assert job.give_up_start()
    if not died:
        job.finish({"state": "failed", "reason": "the supervisor failed"})
    processes = Processes(["task"], ["its child"], ["stuck"])
    monkeypatch.setattr("agent.job_watch.processes", processes)
    watch.look_at_all()
    assert processes.killed[:3] == ["task", "its child", "stuck"]
    assert job.result is None
    processes.looks = [["stuck"], []]
    watch.look_at_all()
    assert job.result is not None


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


@pytest.mark.parametrize("was_confirmed", [True, False])
def test_what_an_earlier_start_of_the_machine_left_unstarted_is_not_started_now(
    watch: JobWatch, runner: Runner, add_job: Add, held: Held, was_confirmed: bool
) -> None:
    """It may be a copy of the disk of a machine that has started it since."""
    job = add_job()
    job.boot_id = "boot-0"
    if was_confirmed:
        job.mark_confirmed()
    held._jobs.clear()
    assert watch.take_over(job) is (Found.WAITING if was_confirmed else Found.UNCONFIRMED)
    watch.look_at_all()
    assert (held.all(), runner.started, job.directory.exists()) == ([], [], False)


def test_the_log_of_an_earlier_start_of_the_machine_stays_as_it_is(watch: JobWatch, add_job: Add, held: Held) -> None:
    job = confirmed(add_job())
    job.boot_id = "boot-0"
    assert job.give_up_start()
    held._jobs.clear()
    assert watch.take_over(job) is Found.DIED
    assert job.log_size() == 0
    assert "restarted" in (job.result or {})["reason"]


@pytest.mark.parametrize(("outcome", "left"), [("success", 1), ("", 0)])
def test_a_job_that_is_gone_is_still_reported_when_airflow_accepted_its_outcome(
    watch: JobWatch, add_job: Add, held: Held, outcome: str, left: int
) -> None:
    """The control plane may have given it up while this agent stood still, and says so before we have looked."""
    unseen, seen = confirmed(add_job()), confirmed(add_job())
    for job in (unseen, seen):
        assert job.give_up_start()
    result = {"state": "success" if outcome else "failed", "airflow_outcome": outcome}
    unseen.finish(result)
    with lock(seen):
        for job in (unseen, seen):
            watch.stop(job, gone=True)
    seen.finish(result)
    watch.look_at_all()
    assert unseen.result is not None, "it had ended before it was gone: the answer to its report tells"
    assert len([job for job in held.all() if job is seen]) == left
