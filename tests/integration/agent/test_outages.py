"""Lost answers, killed processes, a control plane that is away: nothing is lost and nothing runs twice."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable

import psutil

from agent.runner_sockets import connect_to
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane, FakeJob, Refusal

Start = Callable[..., Agent]


def assert_right(jobs: list[FakeJob], agent: Agent) -> None:
    """Every job succeeded, started once, and its log is the task's."""
    assert [job.state for job in jobs] == ["success"] * len(jobs)
    assert sorted(start["job"] for start in agent.starts()) == sorted(f"{job.id}.1" for job in jobs)
    for job in jobs:
        assert job.report is not None
        assert job.report["log_sha256"] == hashlib.sha256(job.log).hexdigest()


def test_every_third_answer_is_lost(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: "drop" if number % 3 == 1 and path != "workers/register" else None
    agent = start_agent("--concurrency", "3")
    jobs = [plane.add({"seconds": 0.1, "bytes": 1000}) for _ in range(6)]
    plane.wait_for(lambda: all(job.report for job in jobs) and not agent.held(), seconds=50)
    assert_right(jobs, agent)


def test_a_lost_claim_answer_is_asked_for_under_the_same_id(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: "drop" if path == "jobs/claim" and number == 1 else None
    plane.add()
    start_agent()
    plane.wait_for(lambda: plane.count("jobs/claim") >= 2)
    first, second = [body for _, path, body in plane.requests if path == "jobs/claim"][:2]
    assert first["free_slots"] > 0
    assert first["claim_id"] == second["claim_id"]


def test_a_lost_first_answer_does_not_end_an_agent(plane: ControlPlane, start_agent: Start) -> None:
    """Nothing was ever heard from this address; still, one lost answer does not make it a wrong one."""
    plane.fault = lambda path, number: "drop" if path == "workers/register" and number == 1 else None
    start_agent()
    job = plane.add()
    plane.wait_for(lambda: job.state == "success")


def test_a_claim_is_not_started_before_it_is_confirmed(plane: ControlPlane, start_agent: Start) -> None:
    refusing = [True]
    plane.fault = lambda path, number: Refusal(503, "busy") if path == "jobs/confirm" and refusing[0] else None
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: plane.count("jobs/confirm") >= 2)
    assert agent.starts() == []
    assert (agent.held()[0] / "workload.json").exists()
    refusing[0] = False
    plane.wait_for(lambda: job.state == "success")


def test_a_job_that_is_refused_at_confirm_is_dropped(plane: ControlPlane, start_agent: Start) -> None:
    held_back = [True]
    plane.fault = lambda path, number: Refusal(503, "busy") if path == "jobs/confirm" and held_back[0] else None
    agent = start_agent()
    job = plane.add()
    plane.wait_for(agent.held)
    job.state = "revoked"
    held_back[0] = False
    plane.wait_for(lambda: not agent.held())
    assert agent.starts() == []


def test_a_restarted_agent_takes_its_tasks_over(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    jobs = [plane.add({"seconds": 5, "bytes": 200_000}) for _ in range(4)]
    plane.wait_for(lambda: len(agent.starts()) == 4)
    server = agent.fork_server().pid
    agent.kill()
    agent = start_agent()
    plane.wait_for(lambda: len(plane.registrations) == 2)
    assert len(plane.registrations[1]["held"]) == 4
    assert agent.fork_server().pid == server
    plane.wait_for(lambda: all(job.report for job in jobs) and not agent.held())
    assert_right(jobs, agent)
    later = plane.add()
    plane.wait_for(lambda: later.state == "success")
    assert [process.pid for process in agent.runners()] == [server]


def test_tasks_that_end_while_no_agent_runs_are_reported_by_the_next(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    jobs = [plane.add({"seconds": 1}) for _ in range(2)]
    plane.wait_for(lambda: len(agent.starts()) == 2)
    agent.kill()
    plane.wait_for(lambda: len(list(agent.state_dir.glob("jobs/*/exit.json"))) == 2)
    agent = start_agent()
    plane.wait_for(lambda: all(job.report for job in jobs) and not agent.held())
    assert_right(jobs, agent)


def test_an_agent_killed_between_confirm_and_start_starts_the_job_once(plane: ControlPlane, start_agent: Start) -> None:
    """The agent is frozen as it asks to confirm; the control plane agrees, but the agent dies before it knows."""
    frozen = []

    def freeze(path: str, number: int) -> None:
        if path == "jobs/confirm" and not frozen:
            frozen.append(agent.signal(signal.SIGSTOP))

    agent = start_agent()
    plane.fault = freeze  # type: ignore[assignment]
    job = plane.add({"seconds": 0.2})
    plane.wait_for(lambda: job.state == "running")
    agent.kill()
    assert agent.starts() == []
    agent = start_agent()
    plane.wait_for(lambda: job.report)
    assert_right([job], agent)


def test_a_machine_that_restarts_accounts_only_for_what_it_can(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent(EDGE_AGENT_BOOT_ID="one")
    job = plane.add({"seconds": 60})
    plane.wait_for(agent.starts)
    agent.clean_up()
    start_agent(EDGE_AGENT_BOOT_ID="two")
    plane.wait_for(lambda: len(plane.registrations) == 2)
    assert (plane.registrations[1]["boot_id"], plane.registrations[1]["held"]) == ("two", [])
    plane.wait_for(lambda: job.report)
    assert job.report is not None
    assert "restarted" in job.report["reason"]


def test_a_control_plane_that_is_away_stops_nothing(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--concurrency", "2")
    jobs = [plane.add({"seconds": 2}) for _ in range(2)]
    plane.wait_for(lambda: len(agent.starts()) == 2)
    plane.close()
    plane.wait_for(lambda: len(list(agent.state_dir.glob("jobs/*/exit.json"))) == 2)
    time.sleep(2)
    assert agent.process.poll() is None
    plane.reopen()
    plane.wait_for(lambda: all(job.report for job in jobs) and not agent.held(), seconds=40)
    assert_right(jobs, agent)
    later = plane.add()
    plane.wait_for(lambda: later.state == "success", seconds=40)


def test_a_gateway_without_a_control_plane_behind_it_loses_nothing(plane: ControlPlane, start_agent: Start) -> None:
    """Its pages are refusals by their status: one job ends meanwhile, of another the confirm's answer is lost."""
    agent = start_agent("--concurrency", "2")
    ending = plane.add({"seconds": 1, "bytes": 1000})
    plane.wait_for(agent.starts)
    away = []

    def gateway(path: str, number: int) -> Refusal | str | None:
        if path == "jobs/confirm" and not away:
            away.append(path)
            return "drop"
        return Refusal(404, "") if away else None

    plane.fault = gateway
    starting = plane.add({"bytes": 1000})
    plane.wait_for(lambda: list(agent.state_dir.glob("jobs/*/exit.json")))
    seen = {path: plane.count(path) for path in ("jobs/confirm", "jobs/report", "workers/heartbeat")}
    plane.wait_for(lambda: all(plane.count(path) > number + 1 for path, number in seen.items()))
    assert starting.state == "running"
    assert len(agent.held()) == 2
    plane.fault = lambda path, number: None
    plane.wait_for(lambda: ending.report and starting.report and not agent.held(), seconds=60)
    assert_right([ending, starting], agent)


def test_a_machine_without_free_descriptors_keeps_its_tasks(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent("--concurrency", "2")
    jobs = [plane.add({"seconds": 5}) for _ in range(2)]
    plane.wait_for(lambda: len(agent.starts()) == 2)
    process = psutil.Process(agent.process.pid)
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
    plane.wait_for(lambda: "cannot be looked at" in agent.stderr)
    process.rlimit(psutil.RLIMIT_NOFILE, limits)
    plane.wait_for(lambda: all(job.report for job in jobs) and not agent.held(), seconds=60)
    assert_right(jobs, agent)


def test_an_agent_that_was_registered_waits_for_its_control_plane(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    plane.wait_for(lambda: "is registered" in agent.stderr)
    agent.kill()
    plane.close()
    agent = start_agent()
    plane.wait_for(lambda: "no answer from" in agent.stderr)
    assert agent.process.poll() is None
    plane.reopen()
    plane.wait_for(lambda: len(plane.registrations) == 2)


def test_a_revoked_token_stops_claims_and_not_tasks(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    job = plane.add({"seconds": 2})
    plane.wait_for(agent.starts)
    plane.token = "ec_other_secret"
    plane.wait_for(lambda: list(agent.state_dir.glob("jobs/*/exit.json")))
    plane.order()
    plane.wait_for(lambda: "401 bad_token" in agent.stderr)
    waiting = plane.add()
    time.sleep(1)
    assert agent.process.poll() is None
    assert agent.stderr.count("401 bad_token") <= 2
    assert waiting.attempt == 0
    plane.token = "ec_testkey_testsecret"
    plane.wait_for(lambda: job.report and waiting.report, seconds=60)
    assert_right([job, waiting], agent)


def test_retry_after_is_obeyed(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: Refusal(429, "slow_down", retry_after=3) if path == "jobs/claim" else None
    start_agent()
    plane.wait_for(lambda: plane.count("jobs/claim"))
    time.sleep(2.5)
    assert plane.count("jobs/claim") == 1


def test_a_start_is_not_tried_while_airflow_is_away(plane: ControlPlane, start_agent: Start) -> None:
    plane.execution_healthy = False
    agent = start_agent()
    job = plane.add()
    plane.wait_for(lambda: "taking no work: Airflow's API" in agent.stderr)
    plane.wait_for(lambda: any(body["free_slots"] == 0 for _, path, body in plane.requests if path == "jobs/claim"))
    plane.wait_for(
        lambda: any("Airflow" in (beat["sysinfo"] or {}).get("not_working", "") for beat in plane.heartbeats)
    )
    assert job.attempt == 0
    plane.execution_healthy = True
    plane.wait_for(lambda: job.state == "success")


def test_limits_hold_when_the_control_plane_is_slow_and_offers_too_much(
    plane: ControlPlane, start_agent: Start
) -> None:
    def slow(path: str, number: int) -> None:
        if path in {"jobs/claim", "jobs/confirm", "jobs/report"}:
            time.sleep(0.3)

    plane.enforce_concurrency = False
    plane.fault = slow  # type: ignore[assignment]
    agent = start_agent("--concurrency", "1")
    jobs = [plane.add({"seconds": 0.5}) for _ in range(4)]
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, len([path for path in agent.held() if not (path / "exit.json").exists()]))
        return all(job.report for job in jobs)

    plane.wait_for(done, seconds=40)
    assert most == 1


def test_logs_are_cut_smaller_for_a_gateway(plane: ControlPlane, start_agent: Start) -> None:
    append = plane.append

    def small_only(job_id: str, attempt: int, offset: int, data: bytes) -> dict[str, object]:
        if len(data) > 5000:
            raise Refusal(413, "")
        return append(job_id, attempt, offset, data)

    plane.append = small_only  # type: ignore[method-assign]
    agent = start_agent()
    job = plane.add({"bytes": 100_000})
    plane.wait_for(lambda: job.report and not agent.held())
    assert_right([job], agent)


def test_a_full_log_harms_no_job(plane: ControlPlane, start_agent: Start) -> None:
    plane.settings["log_cap_bytes"] = 70_000
    agent = start_agent()
    job = plane.add({"bytes": 200_000})
    plane.wait_for(lambda: job.report and not agent.held())
    assert job.state == "success"
    assert job.report is not None
    assert (job.report["log_size"], job.report["log_sha256"]) == (200_000, "")
    assert len(job.log) == 65536


def test_a_log_that_is_never_accepted_harms_no_job(plane: ControlPlane, start_agent: Start) -> None:
    plane.fault = lambda path, number: Refusal(500, "broken") if path == "logs" else None
    start_agent()
    job = plane.add({"bytes": 1000})
    plane.wait_for(lambda: job.state == "success")
    plane.fault = lambda path, number: None
    plane.wait_for(lambda: len(job.log) == 1000, seconds=40)


def test_a_bad_offer_harms_no_other(plane: ControlPlane, start_agent: Start) -> None:
    agent = start_agent()
    offers = plane._offer

    def spoiled(job: FakeJob) -> dict[str, object]:
        offer = offers(job)
        return {**offer, "id": "../../escape"} if job is bad else offer

    plane._offer = spoiled  # type: ignore[method-assign]
    bad = plane.add()
    good = plane.add()
    plane.wait_for(lambda: good.state == "success")
    assert "makes no sense" in agent.stderr
    assert json.dumps(bad.workload) not in agent.stderr


def test_a_drained_agent_may_be_started_again_while_its_runner_still_ends(
    plane: ControlPlane, start_agent: Start
) -> None:
    """A runner that drains is found no more, and does not take its successor's place away when it goes."""
    agent = start_agent("--kill-grace-seconds", "30")
    slow = plane.add({"seconds": 4, "ignore_term": True})
    plane.wait_for(agent.starts)
    old = agent.fork_server()
    with connect_to(next(agent.state_dir.glob("runner/*.sock"))) as connection:  # type: ignore[union-attr]
        connection.sendall(b'{"op": "drain"}\n')
        plane.wait_for(lambda: not list(agent.state_dir.glob("runner/*.sock")))
    agent.kill()
    agent = start_agent()
    plane.wait_for(lambda: len(plane.registrations) == 2)
    quick = plane.add()
    plane.wait_for(lambda: quick.state == "success")
    plane.wait_for(lambda: slow.state == "success")
    plane.wait_for(lambda: not old.is_running())
    agent.kill()
    runners = agent.fork_servers()
    agent = start_agent()
    plane.wait_for(lambda: len(plane.registrations) == 3)
    last = plane.add()
    plane.wait_for(lambda: last.state == "success")
    assert agent.fork_servers() == runners
    assert_right([slow, quick, last], agent)
