from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from agent.client import NOT_OURS, ApiError
from agent.held import Held
from agent.jobs import Job
from agent.reporter import FLUSH_SECONDS, Reporter
from tests.unit.agent.conftest import Plane, refusal, write_log

Add = Callable[..., Job]


@pytest.fixture
def reporter(plane: Plane, held: Held) -> Reporter:
    return Reporter(client=plane, held=held)  # type: ignore[arg-type]


def end(held: Held, job: Job, *, log_done: bool = True, **result: object) -> None:
    held.ended(job, {"state": "success", "exit_code": 0, "airflow_outcome": "success", "reason": ""} | result)
    job.log_done = log_done


def test_a_report_says_what_the_runner_left(reporter: Reporter, plane: Plane, held: Held, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"abc")
    end(held, job, airflow_outcome="deferred")
    reporter.step()
    (said,) = plane.said("report")
    assert said == {
        "attempt": 1,
        "state": "success",
        "exit_code": 0,
        "airflow_outcome": "deferred",
        "reason": "",
        "log_size": 3,
        "log_sha256": hashlib.sha256(b"abc").hexdigest(),
        "log_trouble": "",
    }
    assert held.all() == []


def test_of_a_log_that_the_control_plane_does_not_keep_whole_only_the_size_is_told(
    plane: Plane, held: Held, add_job: Add
) -> None:
    reporter = Reporter(client=plane, held=held, log_cap_bytes=3)  # type: ignore[arg-type]
    for text in (b"abc", b"abcd"):
        job = add_job()
        write_log(job, text)
        end(held, job)
        reporter.step()
    assert [(said["log_size"], said["log_sha256"]) for said in plane.said("report")] == [
        (3, hashlib.sha256(b"abc").hexdigest()),
        (4, ""),
    ]


def test_a_job_that_was_given_up_and_has_an_outcome_all_the_same_is_reported_and_forgotten(
    reporter: Reporter, plane: Plane, held: Held, add_job: Add
) -> None:
    heard, stale = add_job(), add_job()
    for job in (heard, stale):
        job.gone = True
        end(held, job, state="failed", airflow_outcome="failed")
    plane.answers["report"] = [{"state": "failed"}, refusal(409, "stale_attempt")]
    reporter.step()
    assert [said["airflow_outcome"] for said in plane.said("report")] == ["failed", "failed"]
    assert held.all() == []


def test_a_running_job_is_not_reported(reporter: Reporter, plane: Plane, add_job: Add) -> None:
    add_job()
    reporter.step()
    assert plane.calls == []


def test_the_log_has_a_few_seconds_and_no_more(reporter: Reporter, plane: Plane, held: Held, add_job: Add) -> None:
    job = add_job()
    end(held, job, log_done=False)
    assert 0 < reporter.step() <= FLUSH_SECONDS
    assert plane.calls == []
    job.ended_at -= FLUSH_SECONDS
    reporter.step()
    assert len(plane.said("report")) == 1
    assert job in held.all()  # for the rest of its log


def test_a_stale_report_makes_the_agent_forget(reporter: Reporter, plane: Plane, held: Held, add_job: Add) -> None:
    end(held, add_job())
    plane.answers["report"] = [refusal(409, "stale_attempt")]
    reporter.step()
    assert held.all() == []


@pytest.mark.parametrize("code", [NOT_OURS, "not_found"])
def test_an_address_that_is_not_there_now_loses_no_report(
    reporter: Reporter, plane: Plane, held: Held, add_job: Add, code: str
) -> None:
    job = add_job()
    end(held, job)
    plane.answers["report"] = [refusal(404, code)]
    reporter.step()
    assert held.all() == [job]
    job.report_after = 0.0
    reporter.step()
    assert held.all() == []


@pytest.mark.parametrize("status", [500, 503, 429, 400])
def test_a_bad_report_is_repeated_later_and_holds_up_no_other(
    reporter: Reporter, plane: Plane, held: Held, add_job: Add, status: int
) -> None:
    bad, good = add_job(), add_job()
    end(held, bad)
    end(held, good)
    plane.answers["report"] = [refusal(status)]
    reporter.step()
    assert held.all() == [bad]
    assert bad.report_after > 0
    bad.report_after = 0.0
    reporter.step()
    assert held.all() == []


def test_an_absent_control_plane_ends_the_round(reporter: Reporter, plane: Plane, held: Held, add_job: Add) -> None:
    for _ in range(3):
        end(held, add_job())
    plane.answers["report"] = [refusal(None), refusal(None)]
    with pytest.raises(ApiError):
        reporter.step()
    assert len(plane.said("report")) == 2
    assert len(held.all()) == 3


def test_one_lost_answer_holds_up_only_its_own_job(reporter: Reporter, plane: Plane, held: Held, add_job: Add) -> None:
    unlucky, *_ = jobs = [add_job() for _ in range(4)]
    for job in jobs:
        end(held, job)
    plane.answers["report"] = [refusal(None)]
    reporter.step()
    assert held.all() == [unlucky]


def test_a_start_that_did_not_happen_is_given_back_and_forgotten(
    reporter: Reporter, plane: Plane, held: Held, add_job: Add
) -> None:
    end(held, add_job(), state="not_started", reason="expired")
    reporter.step()
    assert plane.said("report")[0]["state"] == "not_started"
    assert held.all() == []
