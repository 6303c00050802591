"""One job from the offer to the report, on the real agent, runner and spool."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane, Refusal

Start = Callable[..., Agent]


def test_a_job_runs_and_its_log_arrives_byte_exact(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 0.5, "bytes": 300_000})
    plane.wait_for(lambda: job.report)
    plane.wait_for(lambda: not agent.held())
    assert job.report is not None
    assert (job.report["state"], job.report["airflow_outcome"], job.report["exit_code"]) == ("success", "success", 0)
    assert job.report["log_size"] == len(job.log)
    assert job.report["log_sha256"] == hashlib.sha256(job.log).hexdigest()
    assert plane.starts == [job.workload["ti"]["id"]]


def test_the_token_leaves_the_disk_and_the_environment_of_the_task_is_clean(
    plane: ControlPlane, start_agent: Start
) -> None:
    agent = start_agent(AIRFLOW__CORE__DAGS_FOLDER="/dags")
    plane.add({"seconds": 5})
    start = plane.wait_for(agent.starts)[0]
    assert not [name for name in start["env"] if name.startswith("EDGE_AGENT")]
    assert "AIRFLOW__CORE__DAGS_FOLDER" in start["env"]
    directory = agent.held()[0]
    assert "token" not in json.loads((directory / "workload.json").read_text())
    assert {oct(path.stat().st_mode & 0o777) for path in directory.glob("*.json")} == {"0o600"}
    assert oct(agent.state_dir.stat().st_mode & 0o777) == "0o700"


def test_the_log_of_a_running_task_is_seen_while_it_runs(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    job = plane.add({"seconds": 60})
    plane.wait_for(lambda: b"tick 20" in job.log)
    assert job.report is None


def test_what_airflow_accepted_decides_and_not_the_exit_code(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    failed = plane.add({"state": "up_for_retry"})
    deferred = plane.add({"state": "deferred"})
    plane.wait_for(lambda: failed.report and deferred.report)
    assert failed.report is not None
    assert deferred.report is not None
    assert (failed.report["state"], failed.report["airflow_outcome"]) == ("failed", "up_for_retry")
    assert (deferred.report["state"], deferred.report["airflow_outcome"]) == ("success", "deferred")


def test_a_result_that_airflow_never_took_is_a_failure(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["outage_patience_seconds"] = 1.0
    plane.execution_faults.append(lambda path: Refusal(503, "away") if path.endswith("/state") else None)
    start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert (job.report["state"], job.report["exit_code"], job.report["airflow_outcome"]) == ("failed", 0, "")
    assert "result not delivered" in job.report["reason"]


def test_results_are_delivered_once_airflow_is_back(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    job = plane.add({"seconds": 1})
    plane.wait_for(lambda: plane.starts)
    plane.execution_healthy = False
    plane.wait_for(lambda: b"cannot be reached" in job.log)
    assert job.report is None
    plane.execution_healthy = True
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert job.report["airflow_outcome"] == "success"
    assert plane.states == [(job.workload["ti"]["id"], "success")]


def test_a_start_that_airflow_does_not_want_is_refused(plane: ControlPlane, start_agent: Start) -> None:
    plane.execution_faults.append(lambda path: Refusal(409, "invalid_state") if path.endswith("/run") else None)
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert job.report["state"] == "refused"
    assert "409" in job.report["reason"]
    assert agent.starts() == []


def test_an_expired_token_gives_the_job_back_and_slows_the_agent_down(plane: ControlPlane, start_agent: Start) -> None:
    refuse = [True]
    plane.execution_faults.append(lambda path: Refusal(403, "expired") if refuse[0] and path.endswith("/run") else None)
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.attempt >= 2)
    assert "did not accept the job's token" in agent.stderr
    refuse[0] = False
    plane.wait_for(lambda: job.state == "success")
    assert job.attempt <= 4
    assert len(agent.starts()) == 1


def test_a_workload_that_cannot_be_read_fails_with_its_reason(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()
    job = plane.add(workload={"type": "ExecuteTask", "token": "t"})
    fine = plane.add()
    plane.wait_for(lambda: job.report and fine.report)
    assert job.report is not None
    assert job.report["state"] == "failed"
    assert "validation error" in job.report["reason"]
    assert b"validation error" in job.log
    assert fine.state == "success"


def test_a_log_path_cannot_leave_the_job(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add(log_path="../../../../escaped.log")
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert "leaves the job's directory" in job.report["reason"]
    plane.wait_for(lambda: not list((agent.state_dir / "jobs").iterdir()))  # nothing moves any more
    assert not list(agent.folder.rglob("escaped.log"))


def test_callbacks_run_too(plane: ControlPlane, start_agent: Start) -> None:
    start_agent()

    def callback(path: str) -> dict[str, object]:
        return {"type": "ExecuteCallback", "token": "t", "callback": {"id": "c", "data": {"path": path}}}

    good = plane.add(kind="ExecuteCallback", log_path="", workload=callback("works"))
    bad = plane.add(kind="ExecuteCallback", log_path="executor_callbacks/d/r/c", workload=callback("fails"))
    plane.wait_for(lambda: good.report and bad.report)
    assert (good.state, bad.state) == ("success", "failed")
    assert b"exited with code 1" in bad.log


def test_a_revoked_job_is_stopped_with_all_it_started(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--kill-grace-seconds", "1")
    job = plane.add({"seconds": 60, "child": True, "ignore_term": True})
    plane.wait_for(lambda: b"child" in job.log)
    child = json.loads(job.log.splitlines()[0])["child"]
    task = agent.starts()[0]["pid"]
    assert psutil.pid_exists(child)
    plane.order()
    job.state = "revoked"
    plane.wait_for(lambda: not agent.held())
    for pid in (child, task):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert job.report is None
    later = plane.add()
    plane.wait_for(lambda: later.state == "success")


def test_a_killed_supervisor_is_reported_after_its_leftovers_are_stopped(
    plane: ControlPlane, start_agent: Start
) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 60, "child": True})
    plane.wait_for(lambda: b"child" in job.log)
    child = json.loads(job.log.splitlines()[0])["child"]
    supervisor = psutil.Process(json.loads((agent.held()[0] / "started").read_text())["pid"])
    supervisor.send_signal(signal.SIGKILL)
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert job.report["state"] == "failed"
    assert "signal 9" in job.report["reason"]
    for pid in (child, agent.starts()[0]["pid"]):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    plane.wait_for(lambda: not agent.held())
    assert b"ended by signal 9" in job.log


def test_a_killed_runner_harms_no_job_and_is_replaced(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    long = plane.add({"seconds": 4})
    plane.wait_for(agent.starts)
    agent.fork_server().kill()
    later = plane.add()
    plane.wait_for(lambda: later.state == "success")
    plane.wait_for(lambda: long.state == "success")
    assert len(agent.starts()) == 2


def test_fresh_interpreters_do_the_same(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--task-start", "fresh")
    jobs = [plane.add({"seconds": 0.2}), plane.add({"code": 3})]
    plane.wait_for(lambda: all(job.report for job in jobs))
    assert [job.state for job in jobs] == ["success", "failed"]
    assert {start["job"] for start in agent.starts()} == {f"{job.id}.1" for job in jobs}


def test_a_long_state_directory_works(plane: ControlPlane, start_agent: Start, tmp_path: Path) -> None:
    start_agent("--state-dir", str(tmp_path / ("d" * 120)))
    job = plane.add()
    plane.wait_for(lambda: job.state == "success")
