"""`status`, `stop` and `maintenance`, each as the process that somebody at the machine starts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.errors import BadConfig, BadStateDir, NotRunning, Overruled
from tests.integration.agent.conftest import AGENT, ROOT, Agent, inherited_environment
from tests.integration.agent.control_plane import ControlPlane, FakeJob

Start = Callable[..., Agent]


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Command:
    """A command with the state directory of the test's agent, unless it names another."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        known = {"EDGE_AGENT_STATE_DIR": str(self.state_dir), "HOME": str(self.state_dir.parent)}
        process = subprocess.Popen(
            [*AGENT, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**inherited_environment(), **known, **environ},
        )
        self.started.append(process)
        return process

    def ended(self, process: subprocess.Popen[str]) -> Ran:
        out, err = process.communicate(timeout=30)
        return Ran(process.returncode, out, err)

    def __call__(self, *arguments: str, **environ: str) -> Ran:
        return self.ended(self.start(*arguments, **environ))


@pytest.fixture
def command(tmp_path: Path) -> Any:
    command = Command(tmp_path / "state")
    yield command
    for process in command.started:
        process.kill()
        process.wait()


def busy(plane: ControlPlane, agent: Agent) -> None:
    plane.wait_for(agent.starts)


def idle(plane: ControlPlane) -> None:
    plane.wait_for(lambda: "idle" in plane.reports())


class Leaving(NamedTuple):
    """An agent on its way to maintenance: it takes no more jobs, one still runs, and somebody waits for its end."""

    agent: Agent
    job: FakeJob
    waiting: subprocess.Popen[str]
    done: Path


@pytest.fixture
def leaving(plane: ControlPlane, start_agent: Start, command: Command, tmp_path: Path) -> Leaving:
    agent, done = start_agent(), tmp_path / "done"
    job = plane.add({"until": str(done)})
    busy(plane, agent)
    waiting = command.start("maintenance", "on", "--wait")
    plane.wait_for(lambda: plane.wishes and plane.reports()[-1:] == ["maintenance_pending"])
    return Leaving(agent, job, waiting, done)


def test_status_tells_people_and_scripts_what_the_agent_does(
    plane: ControlPlane, start_agent: Start, command: Command, tmp_path: Path
) -> None:
    agent = start_agent("--concurrency", "3")
    job = plane.add({"until": str(tmp_path / "done")}, queue="floor", slots=2)
    busy(plane, agent)
    known = command("status", "--json")
    assert known.code == 0
    assert known.json.keys() == {
        *("name", "url", "state_dir", "state", "pid", "since_seconds", "requested", "requested_by"),
        *("requested_by_name", "comment", "wish_untold", "registered", "jobs", "slots", "not_working", "versions"),
        *("last_contact_seconds", "undelivered", "sysinfo"),
    }
    expected = {"name": "edge-1", "url": plane.url, "state": "running", "pid": agent.process.pid, "not_working": ""}
    assert expected.items() <= known.json.items()
    assert known.json["slots"] == {"used": 2, "of": 3}
    (shown,) = known.json["jobs"]
    assert {"id": job.id, "attempt": 1, "queue": "floor", "slots": 2, "state": "running"}.items() <= shown.items()
    people = command("status")
    assert people.code == 0
    for part in (f"edge-1 at {plane.url}", "running: 1 job, 2 of 3 slots", job.id, "floor", "control plane 0.1.0"):
        assert part in people.out
    assert "\x1b" not in people.out, "colours are for terminals"
    (tmp_path / "done").touch()


def test_status_says_why_no_work_is_taken(plane: ControlPlane, start_agent: Start, command: Command) -> None:
    agent = start_agent()
    idle(plane)
    plane.close()
    plane.wait_for(lambda: "wait on disk" in agent.stderr)
    plane.wait_for(lambda: command("status", "--json").json["not_working"])
    told = command("status")
    assert (told.code, "not working" in told.out, plane.url in told.out) == (0, True, True)


def test_without_an_agent_status_shows_what_the_last_one_left(
    plane: ControlPlane, start_agent: Start, command: Command, tmp_path: Path
) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    busy(plane, agent)
    agent.kill()
    assert (agent.state_dir / "control.json").exists(), "a killed agent leaves it behind"
    known = command("status", "--json")
    assert known.code == NotRunning.exit_code
    assert (known.json["state"], known.json["pid"], known.json["url"]) == ("not running", None, plane.url)
    assert [(shown["id"], shown["state"]) for shown in known.json["jobs"]] == [(job.id, "running")]
    (tmp_path / "done").touch()
    plane.wait_for(lambda: command("status", "--json").json["undelivered"]["reports"] == 1)
    told = command("status")
    assert told.code == NotRunning.exit_code
    assert "not running" in told.out
    assert "1 report" in told.out
    assert told.err == f"edge-agent: no agent runs with the state directory {agent.state_dir}\n"


def test_stop_drains_and_waits_for_the_end_if_asked(
    plane: ControlPlane, start_agent: Start, command: Command, tmp_path: Path
) -> None:
    agent = start_agent()
    job = plane.add({"until": str(tmp_path / "done")})
    busy(plane, agent)
    told = command("stop")
    assert (told.code, told.out) == (0, "the agent takes no more jobs and ends with the last of 1 job\n")
    assert command("stop").code == 0, "once more is not the second signal that stops the jobs"
    waiting = command.start("stop", "--wait")
    assert waiting.stdout is not None
    assert "ends with the last of 1 job" in waiting.stdout.readline()
    plane.wait_for(lambda: "terminating" in plane.reports())
    assert waiting.poll() is None
    (tmp_path / "done").touch()
    assert command.ended(waiting) == (0, "the agent has ended\n", "")
    assert agent.wait(seconds=1) == 0, "it has ended when the command says so"
    assert (job.state, plane.reports()[-1]) == ("success", "offline")


def test_stop_by_force_ends_the_jobs(plane: ControlPlane, start_agent: Start, command: Command) -> None:
    agent = start_agent("--kill-grace-seconds", "1")
    job = plane.add({"seconds": 600, "ignore_term": True})
    busy(plane, agent)
    assert command("stop", "--force", "--wait").code == 0
    assert agent.wait(seconds=1) == 130
    assert job.state == "failed"


def test_stop_by_force_ends_the_jobs_of_an_agent_that_does_not_reach_the_control_plane(
    plane: ControlPlane, start_agent: Start, command: Command
) -> None:
    first = start_agent("--kill-grace-seconds", "1")
    job = plane.add({"seconds": 600})
    busy(plane, first)
    first.kill()
    plane.close()
    agent = start_agent("--kill-grace-seconds", "1")
    plane.wait_for(lambda: command("status", "--json").code == 0)
    assert command("stop", "--force", "--wait").code == 0
    assert agent.wait(seconds=1) == 130
    (left,) = command("status", "--json").json["jobs"]
    assert (left["id"], left["state"]) == (job.id, "failed")


def test_who_waits_for_maintenance_outlasts_a_restart_of_the_agent(
    plane: ControlPlane, start_agent: Start, command: Command, leaving: Leaving
) -> None:
    leaving.agent.kill()
    again = start_agent()
    plane.wait_for(lambda: plane.session == plane.registrations[-1]["session"] and len(plane.registrations) == 2)
    assert leaving.waiting.poll() is None
    leaving.done.touch()
    assert command.ended(leaving.waiting).code == 0
    assert again.process.poll() is None


def test_maintenance_holds_at_once_and_is_told(plane: ControlPlane, start_agent: Start, command: Command) -> None:
    start_agent()
    idle(plane)
    on = command("maintenance", "on", "--comments", "new belt")
    assert (on.code, on.out, on.err) == (0, "maintenance: no job runs\n", "")
    plane.wait_for(lambda: plane.reports()[-1:] == ["maintenance"])
    (wish,) = plane.wishes
    assert (wish["requested"], wish["comment"], wish["by"]) == ("maintenance", "new belt", "machine")
    waiting = plane.add()
    assert "maintenance by somebody at the machine: new belt" in command("status").out
    off = command("maintenance", "off", "--wait")
    assert (off.code, off.out) == (0, "active: it takes jobs\nit takes jobs\n")
    plane.wait_for(lambda: waiting.state == "success")
    assert waiting.attempt == 1
    assert "asked for on the machine by" in plane.wishes[1]["comment"]


def test_maintenance_waits_for_the_last_job(plane: ControlPlane, command: Command, leaving: Leaving) -> None:
    assert leaving.waiting.stdout is not None
    assert leaving.waiting.stdout.readline() == "maintenance: no new jobs, 1 job still to end\n"
    assert leaving.waiting.poll() is None
    leaving.done.touch()
    assert command.ended(leaving.waiting) == (0, "no job runs\n", "")
    plane.wait_for(lambda: leaving.job.state == "success")


def test_who_waits_hears_that_somebody_wants_otherwise(plane: ControlPlane, command: Command, leaving: Leaving) -> None:
    plane.order(requested="active", requested_by="operator", requested_by_name="anna")
    ran = command.ended(leaving.waiting)
    assert (ran.code, ran.err) == (Overruled.exit_code, "edge-agent: active is wanted meanwhile by operator anna\n")
    leaving.done.touch()


def test_what_an_operator_wants_shows_on_the_machine(plane: ControlPlane, start_agent: Start, command: Command) -> None:
    start_agent()
    idle(plane)
    plane.order(requested="maintenance", requested_by="operator", requested_by_name="anna", comment="disk")
    plane.wait_for(lambda: plane.reports()[-1:] == ["maintenance"])
    assert "maintenance by operator anna: disk" in command("status").out


def test_maintenance_begins_while_the_control_plane_is_away_and_outlasts_a_restart(
    plane: ControlPlane, start_agent: Start, command: Command
) -> None:
    agent = start_agent()
    idle(plane)
    plane.close()
    on = command("maintenance", "on", "--comments", "new belt")
    assert on.code == 0
    assert "maintenance: no job runs; the control plane has not heard it yet" in on.out
    assert command("status", "--json").json["state"] == "maintenance"
    agent.kill()
    again = start_agent()
    plane.wait_for(lambda: command("status", "--json").code == 0)
    assert command("status", "--json").json["requested"] == "maintenance"
    waiting = plane.add()
    plane.reopen()
    plane.wait_for(lambda: plane.reports()[-1:] == ["maintenance"])
    assert [wish["comment"] for wish in plane.wishes] == ["new belt"]
    assert (waiting.attempt, again.starts()) == (0, [])


def test_what_is_handed_out_before_the_control_plane_has_heard_of_it_goes_back(
    plane: ControlPlane, start_agent: Start, command: Command
) -> None:
    plane.knows_wishes = False  # it does not hear of it at all: an older one
    agent = start_agent()
    idle(plane)
    plane.wait_for(lambda: plane.parked)
    assert command("maintenance", "on").code == 0
    job = plane.add()
    plane.wait_for(lambda: job.report is not None)
    assert (job.report or {})["state"] == "not_started"
    assert (job.report or {})["reason"] == "its machine is in maintenance"
    assert agent.starts() == []


def test_without_an_agent_the_wish_waits_for_its_next_start(
    plane: ControlPlane, start_agent: Start, command: Command
) -> None:
    command.state_dir.mkdir(mode=0o700)
    on = command("maintenance", "on", "--comments", "new belt", "--wait")
    assert (on.code, on.out) == (0, "no agent runs; maintenance is wanted from its next start on\nno job runs\n")
    assert "maintenance by somebody at the machine" in command("status").out
    waiting = plane.add()
    agent = start_agent()
    plane.wait_for(lambda: plane.reports()[-1:] == ["maintenance"])
    assert plane.wishes[0]["comment"] == "new belt"
    assert (waiting.attempt, agent.starts()) == (0, [])


def test_each_of_two_agents_is_asked_by_its_state_directory(
    plane: ControlPlane, start_agent: Start, command: Command, tmp_path: Path
) -> None:
    agent = start_agent()
    idle(plane)
    elsewhere = ControlPlane()
    (tmp_path / "other").mkdir()
    other = Agent(folder=tmp_path / "other", url=elsewhere.url, flags=[], environ={})
    try:
        idle(elsewhere)
        assert command("status", "--json").json["pid"] == agent.process.pid
        assert command("status", "--json", "--state-dir", str(other.state_dir)).json["pid"] == other.process.pid
        assert command("stop", "--wait", "--state-dir", str(other.state_dir)).code == 0
        assert other.wait(seconds=1) == 0
        assert agent.process.poll() is None
    finally:
        other.clean_up()
        elsewhere.close()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["stop"], NotRunning.exit_code, "no agent runs with the state directory {place}"),
        (["maintenance", "on"], BadStateDir.exit_code, "there is no state directory {place}"),
        (["maintenance"], BadConfig.exit_code, "the following arguments are required: on|off"),
        (["maintenance", "perhaps"], BadConfig.exit_code, "invalid choice: 'perhaps'"),
        (["maintenance", "on", "--comments", "x" * 1001], BadConfig.exit_code, "--comments has more than 1000"),
        (["status", "--jsn"], BadConfig.exit_code, "--jsn is not known: did you mean --json?"),
        (["stop", "--queues", "a"], BadConfig.exit_code, "--queues is a flag of run, doctor, not of this command"),
        (["statsu"], BadConfig.exit_code, "there is no command statsu: did you mean status?"),
        ([], BadConfig.exit_code, "which command? There are enrol, run, status,"),
        (["stop", "--config", "missing.toml"], BadConfig.exit_code, "cannot read the settings file missing.toml"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    command: Command, arguments: list[str], code: int, line: str
) -> None:
    ran = command(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert line.format(place=command.state_dir) in ran.err
    assert ran.err.count("\n") == 1
    assert ran.err.startswith("edge-agent: ")
    assert not command.state_dir.exists()
