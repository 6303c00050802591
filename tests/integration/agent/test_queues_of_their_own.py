"""Tasks of some queues in another interpreter, with other variables, as another user; the real agent and runners."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pydantic
import pytest

from agent import accounts
from agent.errors import BadConfig
from tests.integration.agent.conftest import STAND_IN, Agent
from tests.integration.agent.control_plane import ControlPlane, FakeJob

Start = Callable[..., Agent]
USER = "nobody"


def config(folder: Path, text: str) -> str:
    file = folder / "agent.toml"
    file.write_text(text)
    return str(file)


def only_start(plane: ControlPlane, agent: Agent, job: FakeJob) -> dict[str, Any]:
    """What the one start of the job has witnessed."""

    def found() -> dict[str, Any] | None:
        return next((said for said in agent.starts() if said["job"].startswith(job.id)), None)

    said: dict[str, Any] = plane.wait_for(found)
    return said


# --- variables


def test_a_task_is_told_what_it_needs_and_nothing_of_the_agents_own(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    settings = config(
        tmp_path,
        """
        [environment]
        SITE = "plant 7"
        REGION = "north"
        AIRFLOW__CORE__FERNET_KEY = "as the settings say"
        [queues.gpu.environment]
        REGION = "south"
        CUDA_VISIBLE_DEVICES = "1"
        """,
    )
    private = {
        "EDGE_AGENT_LOG_LEVEL": "debug",
        "EDGECONTROL_SECRET_KEY": "the control plane's",
        "NOTIFY_SOCKET": "/run/none",
        "WATCHDOG_USEC": "1000000",
        "LISTEN_FDS": "1",
        "INVOCATION_ID": "f00",
        "JOURNAL_STREAM": "8:1",
        "CREDENTIALS_DIRECTORY": "/run/credentials",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://secret",
        "AIRFLOW__API_AUTH__JWT_SECRET": "secret",
        "AIRFLOW__API__SECRET_KEY": "secret",
    }
    passed = {"AIRFLOW__CORE__DAGS_FOLDER": "/dags", "REGION": "as the agent was started"}
    agent = start_agent("--config", settings, AIRFLOW__CORE__FERNET_KEY="secret", **private, **passed)
    plain, gpu = plane.add({"tell": True}), plane.add({"tell": True}, queue="gpu")
    seen, seen_by_gpu = (only_start(plane, agent, job)["environ"] for job in (plain, gpu))
    for environ in (seen, seen_by_gpu):
        assert not environ.keys() & {"EDGE_AGENT_TOKEN", *private}
        assert "secret" not in environ.values()
        assert (environ["AIRFLOW__CORE__DAGS_FOLDER"], environ["SITE"]) == ("/dags", "plant 7")
        assert environ["AIRFLOW__CORE__FERNET_KEY"] == "as the settings say"
        assert environ["EDGECONTROL_JOB"] in {f"{plain.id}.1", f"{gpu.id}.1"}
        assert environ["HOME"] == os.environ["HOME"]
    assert (seen["REGION"], seen.get("CUDA_VISIBLE_DEVICES")) == ("north", None)
    assert (seen_by_gpu["REGION"], seen_by_gpu["CUDA_VISIBLE_DEVICES"]) == ("south", "1")
    plane.wait_for(lambda: plain.report and gpu.report)


def test_a_restarted_agent_finds_all_its_runners_again(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    settings = config(tmp_path, '[queues.gpu.environment]\nCUDA_VISIBLE_DEVICES = "1"\n')
    agent = start_agent("--config", settings)
    jobs = [plane.add({"seconds": 3}), plane.add({"seconds": 3}, queue="gpu")]
    plane.wait_for(lambda: len(agent.starts()) == 2)
    sockets = sorted(agent.state_dir.glob("runner/*.sock"))
    agent.kill()
    agent = start_agent("--config", settings)
    plane.wait_for(lambda: all(job.report for job in jobs))
    assert [job.report["state"] for job in jobs if job.report] == ["success", "success"]
    assert sorted(agent.state_dir.glob("runner/*.sock")) == sockets
    assert len(sockets) == 2
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    plane.wait_for(lambda: not agent.runners())


# --- interpreters


def make_python(path: Path) -> None:
    """An interpreter of its own, which its tasks can tell from the others."""
    new = path.with_name("new")
    new.write_text(f'#!/bin/sh\nTHROUGH=it exec {sys.executable} "$@"\n')
    new.chmod(0o755)
    new.rename(path)


def test_queues_without_a_working_interpreter_are_not_served_and_the_others_are(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    broken, marked = tmp_path / "gpu-python", tmp_path / "python"
    make_python(marked)
    settings = config(tmp_path, f'[queues.gpu]\npython = "{broken}"\n[queues.arm]\npython = "{marked}"\n')
    gpu = plane.add({}, queue="gpu")
    agent = start_agent("--config", settings)
    plain, arm = plane.add({"tell": True}), plane.add({"tell": True}, queue="arm")
    assert "THROUGH" not in only_start(plane, agent, plain)["environ"]
    assert only_start(plane, agent, arm)["environ"]["THROUGH"] == "it"
    plane.wait_for(lambda: plain.report and arm.report)
    assert (gpu.state, gpu.attempt) == ("queued", 0)
    reasons = plane.wait_for(lambda: plane.registrations[-1]["sysinfo"].get("not_served"))
    assert list(reasons) == ["gpu"]
    assert str(broken) in reasons["gpu"]
    assert "queue gpu: the task interpreter" in agent.stderr
    assert agent.process.poll() is None


def test_a_queue_is_served_once_its_interpreter_works(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    python = tmp_path / "gpu-python"
    gpu = plane.add({}, queue="gpu")
    agent = start_agent("--config", config(tmp_path, f'[queues.gpu]\npython = "{python}"\n'))
    plane.wait_for(lambda: plane.parked and plane.parked[-1].get("without_queues") == ["gpu"])
    make_python(python)
    plane.wait_for(lambda: gpu.report, seconds=40)  # it is tried again after seconds
    assert gpu.report is not None
    assert gpu.report["state"] == "success"
    plane.wait_for(lambda: any("not_served" not in (beat["sysinfo"] or {"not_served": 1}) for beat in plane.heartbeats))
    assert agent.process.poll() is None


def test_one_working_queue_keeps_an_agent_whose_usual_interpreter_is_broken(
    plane: ControlPlane, start_agent: Start, tmp_path: Path
) -> None:
    settings = config(tmp_path, f'task_python = "/no/such/python"\n[queues.gpu]\npython = "{sys.executable}"\n')
    agent = start_agent("--config", settings)
    plain, gpu = plane.add({}), plane.add({}, queue="gpu")
    plane.wait_for(lambda: gpu.report)
    assert (plain.state, plain.attempt) == ("queued", 0)
    assert "/no/such/python" in plane.registrations[-1]["sysinfo"]["not_served"]["*"]
    assert agent.process.poll() is None


def test_an_agent_none_of_whose_interpreters_works_ends(start_agent: Start, tmp_path: Path) -> None:
    settings = config(tmp_path, 'task_python = "/no/such/python"\n[queues.gpu]\npython = "/nor/this"\n')
    agent = start_agent("--config", settings)
    assert agent.wait() == 6
    assert "/no/such/python" in agent.stderr.splitlines()[-1]


# --- slots


def test_a_job_of_three_slots_leaves_one_of_four(plane: ControlPlane, start_agent: Start) -> None:
    """Counted by the agent itself: this control plane hands out as much as is asked for."""
    plane.enforce_concurrency = False
    agent = start_agent("--concurrency", "4")
    until = agent.folder / "go on"
    large = plane.add({"until": str(until)}, slots=3)
    only_start(plane, agent, large)
    plane.wait_for(lambda: plane.parked and plane.parked[-1]["free_slots"] == 1)
    small, second, pair = plane.add({"until": str(until)}), plane.add({}), plane.add({}, slots=2)
    only_start(plane, agent, small)
    plane.wait_for(lambda: plane.parked and plane.parked[-1]["free_slots"] == 0)
    assert (second.attempt, pair.attempt) == (0, 0)
    until.touch()
    plane.wait_for(lambda: all(job.report for job in (large, small, second, pair)))
    assert len(agent.starts()) == 4


# --- users


def python_of(user: pwd.struct_passwd) -> str | None:
    """An interpreter that this user can start, and that finds what the stand-in imports."""
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            tried = subprocess.run(
                [python, "-c", "import httpx, pydantic, agent"],
                env={"PYTHONPATH": os.pathsep.join(site())},
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
            if tried.returncode == 0:
                return python
    return None


def site() -> list[str]:
    return [str(STAND_IN), str(Path(pydantic.__file__).parents[1]), str(STAND_IN.parents[3])]


class Shared:
    """A place that other users can pass, an agent there, and its tasks as another user."""

    def __init__(self, folder: Path, plane: ControlPlane, start: Start, python: str) -> None:
        self.folder = folder
        self.plane = plane
        self.state_dir = folder / "state"
        self.user = pwd.getpwnam(USER)
        self.witness = folder / "witness"
        self.witness.touch(mode=0o666)
        self.witness.chmod(0o666)
        self.config = folder / "agent.toml"
        self.say(f'[queues.press]\nuser = "{USER}"\npython = "{python}"\n')
        self.python = python
        self._start = start

    def say(self, text: str) -> None:
        self.config.write_text(text)

    def start(self, *flags: str) -> Agent:
        self.agent = self._start(
            "--state-dir",
            str(self.state_dir),
            "--config",
            str(self.config),
            *flags,
            PYTHONPATH=os.pathsep.join(site()),
            WITNESS=str(self.witness),
            SSH_AUTH_SOCK="/tmp/the-agents-own",
        )
        self.agent.folder, self.agent.state_dir, self.agent.witness_file = self.folder, self.state_dir, self.witness
        return self.agent

    def add(self, task: dict[str, Any], **options: Any) -> FakeJob:
        return self.plane.add(task, queue="press", **options)

    def place(self, job: FakeJob) -> Path:
        return self.state_dir / "tasks" / f"{job.id}.{job.attempt}"


@pytest.fixture
def shared(plane: ControlPlane, start_agent: Start) -> Iterator[Shared]:
    if os.geteuid() != 0:
        pytest.skip("only root can run tasks as another user")
    python = python_of(pwd.getpwnam(USER))
    if python is None:
        pytest.skip(f"{USER} can run no interpreter with what the stand-in needs")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own lets nobody else pass
    folder.chmod(0o711)
    found = Shared(folder, plane, start_agent, python)
    yield found
    if hasattr(found, "agent"):
        found.agent.clean_up()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_task_runs_as_the_user_of_its_queue(plane: ControlPlane, shared: Shared) -> None:
    agent = shared.start()
    theirs, ours = shared.add({"tell": True, "bytes": 100_000}), plane.add({})
    said = only_start(plane, agent, theirs)
    assert (said["uid"], only_start(plane, agent, ours)["uid"]) == (shared.user.pw_uid, 0)
    assert (said["environ"]["HOME"], said["environ"]["USER"]) == (shared.user.pw_dir, USER)
    assert "SSH_AUTH_SOCK" not in said["environ"]
    plane.wait_for(lambda: theirs.report and ours.report and not agent.held())
    assert theirs.report is not None
    assert (theirs.report["state"], theirs.report["airflow_outcome"]) == ("success", "success")
    assert theirs.report["log_sha256"] == hashlib.sha256(theirs.log).hexdigest()
    assert len(theirs.log) >= 100_000
    plane.wait_for(lambda: not list((shared.state_dir / "tasks").iterdir()))


def test_such_a_task_reaches_its_own_files_and_nothing_else_of_the_agent(plane: ControlPlane, shared: Shared) -> None:
    agent = shared.start()
    until = shared.folder / "go on"
    job, ours = shared.add({"until": str(until)}), plane.add({"until": str(until)})
    for each in (job, ours):
        only_start(plane, agent, each)

    def reaches(path: Path, *test: str) -> bool:
        how = shared.user
        done = subprocess.run(
            ["/usr/bin/test", *(test or ("-r",)), str(path)],
            user=how.pw_uid,
            group=how.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
        )
        return done.returncode == 0

    assert reaches(shared.place(job) / "workload.json")
    assert "token" not in json.loads((shared.place(job) / "workload.json").read_text())
    runners = shared.state_dir / f"runner-of-{shared.user.pw_uid}"
    others = [path for path in shared.state_dir.rglob("*") if shared.place(job) not in (path, *path.parents)]
    assert shared.state_dir / "jobs" / f"{ours.id}.1" / "job.json" in others
    theirs = {*runners.rglob("sockets*"), *runners.glob("sockets/*"), *runners.glob("runner-*.py")}
    assert {path for path in others if reaches(path)} <= theirs
    assert {path for path in others if reaches(path, "-w")} <= theirs - set(runners.glob("runner-*.py"))
    assert not reaches(shared.state_dir)
    until.touch()
    plane.wait_for(lambda: job.report and ours.report)


def test_a_task_of_another_user_outlives_the_agent_and_is_reported_by_the_next(
    plane: ControlPlane, shared: Shared
) -> None:
    agent = shared.start()
    until = shared.folder / "go on"
    job = shared.add({"until": str(until)})
    only_start(plane, agent, job)
    agent.kill()
    agent = shared.start()
    plane.wait_for(lambda: len(plane.registrations) == 2)
    assert [held["id"] for held in plane.registrations[-1]["held"]] == [job.id]
    until.touch()
    plane.wait_for(lambda: job.report and not agent.held())
    assert job.report is not None
    assert (job.report["state"], len(agent.starts())) == ("success", 1)
    again = shared.add({})
    plane.wait_for(lambda: again.report)
    assert len(list(shared.state_dir.glob(f"runner-of-{shared.user.pw_uid}/sockets/*.sock"))) == 1


def test_all_that_a_killed_task_of_another_user_leaves_behind_is_stopped(plane: ControlPlane, shared: Shared) -> None:
    agent = shared.start("--kill-grace-seconds", "1")
    job = shared.add({"seconds": 60, "child": True, "ignore_term": True})
    task = psutil.Process(only_start(plane, agent, job)["pid"])
    child = psutil.Process(plane.wait_for(lambda: children_in(job)))
    assert {task.uids().real, child.uids().real} == {shared.user.pw_uid}
    with plane.changed:
        job.state = "revoked"
    plane.wait_for(lambda: not (task.is_running() or child.is_running()))
    plane.wait_for(lambda: not agent.held())


def children_in(job: FakeJob) -> int | None:
    lines = [json.loads(line) for line in job.log.splitlines() if b'"child"' in line]
    return lines[0]["child"] if lines else None


#: What a task of another user does in its own directory, that the agent must not follow.
TRICKS = {
    "the log is a link": "cd {place}/log; f=$(find . -type f); ln -sf {secret} $f",
    "a folder of the log is a link": "cd {place}/log; mv dag_id=d aside; ln -s {folder} dag_id=d",
    "all of the log is a link": "cd {place}; mv log aside; ln -s {folder} log",
    "the log is a pipe": "cd {place}/log; f=$(find . -type f); rm $f; mkfifo $f",
    "the lock is a link": "cd {place}; ln -sf {secret} lock",
    "the lock is a pipe": "cd {place}; rm lock; mkfifo lock",
    "the room for the result is a link": "cd {place}; ln -sf {secret} exit.reserved",
    "a result of its own": "cd {place}; ln -sf {secret} exit.json",
    "the process is init": 'cd {place}; echo \'{{"pid": 1, "started_at": 1e18}}\' > started',
    "the process is everybody": 'cd {place}; echo \'{{"pid": -1, "started_at": 1e18}}\' > started',
    "the process is the agent": 'cd {place}; echo \'{{"pid": {agent}, "started_at": 1e18}}\' > started',
}


def test_the_agent_follows_nothing_that_a_task_has_put_in_the_place_of_its_files(
    plane: ControlPlane, shared: Shared
) -> None:
    agent = shared.start("--kill-grace-seconds", "1", "--concurrency", str(len(TRICKS)))
    secret = shared.folder / "secret" / "run_id=r" / "task_id=t" / "attempt=1.log"
    secret.parent.mkdir(parents=True)
    secret.write_text("of the agent alone")
    secret.chmod(0o600)
    before = secret.stat()
    done = shared.folder / "done"
    done.mkdir()
    done.chmod(0o777)
    place = f"{shared.state_dir}/tasks/$EDGECONTROL_JOB"
    facts = {"place": place, "secret": secret, "folder": shared.folder / "secret", "agent": agent.process.pid}
    jobs = [
        shared.add({"run": [f"set -e; {what.format(**facts)}; touch '{done}/{trick}'"], "seconds": 60, "child": True})
        for trick, what in TRICKS.items()
    ]
    plane.wait_for(lambda: {path.name for path in done.iterdir()} == set(TRICKS))
    with plane.changed:
        for job in jobs:
            job.state = "revoked"
    plane.wait_for(lambda: not agent.held())
    for begun in agent.starts():
        plane.wait_for(lambda pid=begun["pid"]: not psutil.pid_exists(pid))
    other = shared.add({})
    plane.wait_for(lambda: other.report)
    assert agent.process.poll() is None
    assert not [job for job in jobs if b"of the agent" in job.log]
    after = secret.stat()
    assert (secret.read_text(), after.st_mode, after.st_uid) == ("of the agent alone", before.st_mode, before.st_uid)


def test_what_a_task_says_of_its_job_does_not_have_it_started_as_somebody_else(
    plane: ControlPlane, shared: Shared
) -> None:
    """It undoes its own start and names another queue; what the next agent believes is out of its reach."""
    agent = shared.start()
    place = f"{shared.state_dir}/tasks/$EDGECONTROL_JOB"
    stopped, until = shared.folder / "stopped", shared.folder / "go on"
    undo = (
        f"cd {place}; sed -i s/press/default/ job.json; rm started lock; "
        f"while [ ! -e {stopped} ]; do sleep 0.05; done; kill -9 $(ps -o ppid= $PPID)"
    )
    job = shared.add({"run": [undo], "until": str(until)})
    only_start(plane, agent, job)
    agent.kill()
    stopped.touch()
    agent = shared.start()
    plane.wait_for(lambda: job.report or job.attempt > 1 or len(agent.starts()) > 1)
    until.touch()
    plane.wait_for(lambda: job.report or len(agent.starts()) > 1)
    assert {start["uid"] for start in agent.starts()} == {shared.user.pw_uid}


def test_a_job_that_was_written_for_one_user_is_not_started_as_another(plane: ControlPlane, shared: Shared) -> None:
    """The agent came back with other settings, and that user may have changed what is in it."""
    agent = shared.start()
    plane.fault = lambda path, number: "drop" if path == "jobs/confirm" and not agent_is_back else None
    agent_is_back: list[bool] = []
    job = shared.add({})
    plane.wait_for(lambda: plane.count("jobs/confirm"))
    agent.kill()
    shared.say("")
    agent_is_back.append(True)
    agent = shared.start()
    plane.wait_for(lambda: job.attempt == 2 and job.report and job.report["attempt"] == 2)
    assert [(start["job"], start["uid"]) for start in agent.starts()] == [(f"{job.id}.2", 0)]


@pytest.mark.parametrize("start", ["fork", "fresh"])
def test_every_job_of_another_user_has_a_process_of_that_user_however_it_starts(
    plane: ControlPlane, shared: Shared, start: str
) -> None:
    shared.start("--task-start", start, "--task-user", USER, "--task-python", shared.python)
    jobs = [plane.add({}), shared.add({})]
    plane.wait_for(lambda: all(job.report for job in jobs))
    assert [job.report["state"] for job in jobs if job.report] == ["success", "success"]
    assert {begun["uid"] for begun in shared.agent.starts()} == {shared.user.pw_uid}
    shared.agent.signal(signal.SIGTERM)
    assert shared.agent.wait() == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [('task_user = "no-such-user"', "no-such-user"), ('[queues.a]\nuser = "no-such-user"', "queues.a.user")],
)
def test_a_user_that_does_not_exist(start_agent: Start, tmp_path: Path, text: str, says: str) -> None:
    agent = start_agent("--config", config(tmp_path, text))
    assert agent.wait() == 2
    assert says in agent.stderr.splitlines()[-1]


def test_a_state_directory_that_the_user_cannot_reach(shared: Shared) -> None:
    hidden = shared.folder / "hidden"
    hidden.mkdir(mode=0o700)
    shared.state_dir = hidden / "state"
    agent = shared.start()
    assert agent.wait() == 2
    assert "cannot reach the state directory" in agent.stderr.splitlines()[-1]


def test_certificates_that_the_user_cannot_read(shared: Shared) -> None:
    key = shared.folder / "its key.pem"
    key.touch(mode=0o600)
    names = "AIRFLOW__API__CLIENT_SSL_KEY", "AIRFLOW__API__CLIENT_SSL_CERT"
    shared.say(shared.config.read_text() + "[queues.press.environment]\n" + "".join(f'{n} = "{key}"\n' for n in names))
    agent = shared.start()
    assert agent.wait() == 2
    assert f"'{USER}', as whom tasks are to run, cannot read {key}" in agent.stderr.splitlines()[-1]
    user = accounts.account_of(USER, setting="task_user")
    assert user is not None
    with pytest.raises(BadConfig, match="cannot read"):
        accounts.check_files(user, [str(shared.config), str(key)])
    shutil.chown(key, group=user.gid)
    key.chmod(0o640)
    accounts.check_files(user, [str(shared.config), str(key)])


def test_an_agent_that_may_not_become_another_user(shared: Shared) -> None:
    agent = shared.folder / "agent"
    agent.mkdir()
    shutil.chown(agent, USER)
    user = shared.user
    done = subprocess.run(
        [python_of(user) or "", "-m", "agent", "run", "--url", "http://127.0.0.1:1", "--task-user", "daemon"],
        env={"PYTHONPATH": os.pathsep.join(site()), "EDGE_AGENT_TOKEN": "ec_key_secret", "HOME": str(agent)},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "must be started as root" in done.stderr) == (2, True), done.stderr
