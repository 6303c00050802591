"""Which runner a job goes to, and what follows from one that does not work."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from agent import runners as module
from agent.accounts import Account
from agent.errors import BadStateDir, NoAirflow
from agent.jobs import Job
from agent.runner_link import RunnerAway
from agent.runners import Runners, Seat
from agent.task_kinds import Served, TaskKind

PRESS = Account(name="press", uid=4242, gid=4242, groups=(), home="/home/press", login_shell="/bin/sh")
Add = Callable[..., Job]


class Runner:
    """A runner that is asked; what it says and how it fails is set by the test."""

    def __init__(self, *connects: Exception | None) -> None:
        self.airflow_version = ""
        self.error = ""
        self.alive = self.ready = False
        self.handles: list[socket.socket] = []
        self.socket_path: Path | None = None
        #: What comes of each try to connect; after the last one it works.
        self.connects = list(connects)
        self.renews: list[Exception] = []
        self.tries = 0
        self.says: list[Any] = []
        self.started: list[Path] = []

    def renew(self) -> None:
        if self.renews:
            raise self.renews.pop(0)

    def connect(self, *, spare: Collection[Path] = ()) -> None:
        self.tries += 1
        error = self.connects.pop(0) if self.connects else None
        if error is not None:
            raise error
        self.alive, self.airflow_version = True, "3.3.2"

    def start(self, directory: Path) -> None:
        self.started.append(directory)

    def events(self, *, timeout: float) -> list[dict[str, Any]]:
        said, self.says = self.says, []
        for each in said:
            if isinstance(each, Exception):
                raise each
        return said

    def close(self, *, drain: bool) -> None:
        self.alive = self.ready = False


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds + 0.001))
    return now


def together(tmp_path: Path, **runners: Runner) -> Runners:
    """`usual` and, by their names, those of queues; `press` runs as another user."""
    seats = [
        Seat(
            TaskKind(
                python=f"/opt/{name}",
                given={},
                account=PRESS if name == "press" else None,
                queues=() if name == "usual" else (name,),
            ),
            runner,
        )
        for name, runner in runners.items()
    ]
    return Runners(seats, state_dir=tmp_path)


def no_airflow(what: str = "none there") -> NoAirflow:
    return NoAirflow(what)


def test_a_job_goes_to_the_runner_of_its_queue(tmp_path: Path, add_job: Add) -> None:
    usual, gpu = Runner(), Runner()
    runners = together(tmp_path, usual=usual, gpu=gpu)
    runners.connect()
    jobs = add_job(queue="gpu"), add_job(queue="other")
    for job in jobs:
        runners.start(job)
    assert (gpu.started, usual.started) == ([jobs[0].place], [jobs[1].place])


@pytest.mark.parametrize(("uid", "queue"), [(None, "press"), (4242, "other"), (4243, "press")])
def test_a_job_of_one_user_is_not_started_as_another(tmp_path: Path, add_job: Add, uid: int | None, queue: str) -> None:
    usual, press = Runner(), Runner()
    runners = together(tmp_path, usual=usual, press=press)
    runners.connect()
    job = add_job(queue=queue)
    job.uid = uid
    assert "another user" in runners.why_not(job)
    with pytest.raises(RunnerAway):
        runners.start(job)
    assert usual.started == press.started == []


def test_a_broken_one_leaves_its_queues_unserved_until_it_works(
    tmp_path: Path, add_job: Add, clock: list[float]
) -> None:
    usual, gpu = Runner(), Runner(no_airflow(), no_airflow())
    runners = together(tmp_path, usual=usual, gpu=gpu)
    runners.connect()
    job = add_job(queue="gpu")
    assert (runners.served(), runners.not_served()) == (Served(without=("gpu",)), {"gpu": "none there"})
    assert (runners.why_not(job), runners.why_not(add_job())) == ("none there", "")
    runners.mend()
    assert gpu.tries == 1, "not at once"
    for _ in range(2):
        clock[0] += 10
        runners.mend()
    assert (gpu.tries, runners.served()) == (3, Served(without=("gpu",))), "reached, but it may not work"
    gpu.ready = True
    assert runners.look()
    assert (runners.served(), runners.not_served(), runners.why_not(job)) == (Served(), {}, "")
    assert not runners.look()


def test_the_queues_of_the_others_are_served_where_the_usual_one_is_broken(tmp_path: Path) -> None:
    runners = together(tmp_path, usual=Runner(no_airflow("usual")), gpu=Runner(no_airflow("gpu")), arm=Runner())
    runners.connect()
    assert runners.served() == Served(only=("arm",))
    assert runners.not_served() == {"*": "usual", "gpu": "gpu", "arm": ""}
    assert runners.airflow_version == "3.3.2"


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (no_airflow("the usual one"), NoAirflow, "the usual one"),
        (BadStateDir("no space"), BadStateDir, "no space"),
        (RunnerAway("no answer"), NoAirflow, "--task-python"),
    ],
)
def test_an_agent_none_of_whose_runners_can_be_reached_ends(
    tmp_path: Path, error: Exception, expected: type[Exception], text: str
) -> None:
    runners = together(tmp_path, usual=Runner(error), gpu=Runner(no_airflow("gpu")))
    with pytest.raises(expected, match=text):
        runners.connect()


def test_an_agent_ends_when_the_last_of_its_runners_turns_out_to_be_broken(tmp_path: Path) -> None:
    usual, gpu = Runner(), Runner()
    runners = together(tmp_path, usual=usual, gpu=gpu)
    runners.connect()
    usual.says = [no_airflow("usual")]
    assert runners.events(timeout=1) == []
    gpu.says = [no_airflow("gpu")]
    with pytest.raises(NoAirflow, match="usual"):
        runners.events(timeout=1)


def test_what_once_worked_is_waited_for(tmp_path: Path) -> None:
    usual = Runner()
    runners = together(tmp_path, usual=usual)
    runners.connect()
    usual.ready = True
    runners.look()
    usual.says = [no_airflow("upgraded")]
    assert runners.events(timeout=1) == []
    assert (runners.served(), runners.not_served()) == (Served(only=()), {"*": "upgraded"})


@pytest.mark.parametrize("error", [BadStateDir("no space"), RunnerAway("no answer"), OSError("no descriptors")])
def test_a_runner_that_cannot_be_reached_now_is_tried_again(
    tmp_path: Path, error: Exception, clock: list[float]
) -> None:
    usual = Runner(None, error)
    runners = together(tmp_path, usual=usual, gpu=Runner())
    runners.connect()
    usual.alive = False
    clock[0] += 10
    assert runners.mend() == {None}
    assert runners.not_served()["*"] == str(error)
    assert runners.mend() == set()
    clock[0] += 10
    assert runners.mend() == {None}
    assert usual.alive


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no runner.py"), RecursionError("nested"), MemoryError(), AttributeError("replaced")]
)
@pytest.mark.parametrize("at", ["renew", "connect"])
def test_whatever_goes_wrong_with_one_hinders_no_other_and_is_said_once(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture, error: Exception, at: str
) -> None:
    press, gpu = Runner(), Runner()
    (press.renews if at == "renew" else press.connects).extend([error, error])
    runners = together(tmp_path, usual=Runner(), press=press, gpu=gpu)
    for _ in range(2):
        assert 4242 in runners.mend()
        clock[0] += 10
    assert (gpu.tries, press.alive) == (1, False)
    assert runners.not_served() == {"press": str(error) or repr(error)}
    assert runners.mend() == {4242}
    assert press.alive
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_runner_that_dies_before_it_is_ready_is_not_started_without_pauses(
    tmp_path: Path, clock: list[float]
) -> None:
    usual, gpu = Runner(), Runner()
    runners = together(tmp_path, usual=usual, gpu=gpu)
    runners.connect()
    for _ in range(200):  # ten seconds
        gpu.alive = False
        clock[0] += 0.05
        runners.mend()
    assert 3 <= gpu.tries <= 7
    assert runners.not_served() == {"gpu": "the task runner of /opt/gpu ends before it is ready"}
    assert usual.tries == 1


@pytest.mark.parametrize(
    "nonsense",
    [ValueError("no JSON"), KeyError("event"), TypeError("a list"), RecursionError("deep"), OverflowError("infinite")],
)
def test_a_runner_that_talks_nonsense_hinders_no_other(tmp_path: Path, nonsense: Exception) -> None:
    usual, press = Runner(), Runner()
    runners = together(tmp_path, usual=usual, press=press)
    runners.connect()
    press.says, usual.says = [nonsense], [{"event": "ended", "job": "a.1", "uid": 1}]
    assert runners.events(timeout=1) == [{"event": "ended", "job": "a.1", "uid": None}]
    assert not press.alive


def test_who_speaks_is_known_whatever_is_said(tmp_path: Path) -> None:
    press = Runner()
    runners = together(tmp_path, usual=Runner(), press=press)
    runners.connect()
    press.says = [{"event": "ended", "job": "a.1", "uid": None}, {"event": 7}, {}]
    assert runners.events(timeout=1) == [{"event": "ended", "job": "a.1", "uid": 4242}]
