"""The runner's part that knows what Airflow accepted; no process, no network, a clock that only the test moves."""

from __future__ import annotations

import contextlib
import errno
import ssl
from typing import Any

import pytest

from agent.runner import Delivery, Stopped, kind_of_call, log_file, outcome

START = "task-instances/42/run"
STATE = "task-instances/42/state"
BEAT = "task-instances/42/heartbeat"
SUCCESS = b'{"state": "success"}'


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class Answer(Exception):
    """An error that Airflow itself answered: the SDK could read its JSON."""

    def __init__(self, status: int, detail: object = "said Airflow") -> None:
        super().__init__(status)
        self.response = Response(status)
        self.detail = detail


class Gateway(Exception):
    """An error page of something in between."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.response = Response(status)


class Airflow:
    """Plays back answers; time passes only while the delivery sleeps."""

    def __init__(self, *answers: Exception | str, patience: float = 100.0) -> None:
        self.answers = list(answers)
        self.now = 0.0
        self.said: list[tuple[str, str]] = []
        self.asked = 0
        #: The calls, as they arrive.
        self.called: list[str] = []
        self.delivery = Delivery(
            patience_seconds=patience,
            network_errors=(ConnectionError,),
            on_start=lambda: setattr(self, "asked", self.asked + 1),
            tell=lambda level, text: self.said.append((level, text)),
            clock=lambda: self.now,
            sleep=lambda seconds: setattr(self, "now", self.now + seconds),
        )

    def call(self, url: str, body: bytes = b"{}") -> Any:
        def send(*said: str) -> str:
            self.called.append(f"heartbeat {said[0]}" if said else url)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return self.delivery.call(method="PATCH", url=url, body=body, send=send, beat=send)

    def outcome(self, *, exit_code: int | None = 0, error: BaseException | None = None) -> tuple[str, str, str]:
        result = outcome(delivery=self.delivery, exit_code=exit_code, error=error)
        return result["state"], result["airflow_outcome"], result["reason"]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (START, "start"),
        (STATE, "state"),
        (BEAT, "heartbeat"),
        ("variables/task-instances", "other"),
        ("xcoms/a/b", "other"),
    ],
)
def test_calls_are_told_apart(url: str, kind: str) -> None:
    assert kind_of_call("PATCH", url) == kind


def test_the_accepted_state_is_the_outcome_whatever_the_exit_code_says() -> None:
    airflow = Airflow("ok")
    airflow.call(START)
    airflow.call(STATE, b'{"state": "skipped"}')
    assert airflow.outcome(exit_code=1)[:2] == ("success", "skipped")


@pytest.mark.parametrize("state", ["failed", "up_for_retry"])
def test_a_failed_task_is_a_failed_job(state: str) -> None:
    airflow = Airflow("ok")
    airflow.call(START)
    airflow.call(STATE, b'{"state": "%s"}' % state.encode())
    assert airflow.outcome()[:2] == ("failed", state)


def test_exit_code_0_alone_proves_nothing() -> None:
    airflow = Airflow("ok")
    airflow.call(START)
    state, accepted, reason = airflow.outcome(exit_code=0)
    assert (state, accepted) == ("failed", "")
    assert "result not delivered" in reason


@pytest.mark.parametrize("error", [ConnectionError("refused"), Gateway(503), Gateway(404), Answer(502), Answer(500)])
def test_start_and_end_are_repeated_until_airflow_is_back(error: Exception) -> None:
    airflow = Airflow(error, error, error, "ok")
    assert airflow.call(START) == "ok"
    airflow.answers = [error, error, "ok"]
    airflow.call(STATE, SUCCESS)
    assert airflow.outcome()[:2] == ("success", "success")
    assert [level for level, _ in airflow.said] == ["warning", "info"] * 2


def test_a_start_that_never_arrived_is_given_back() -> None:
    airflow = Airflow(ConnectionError("refused"))
    with pytest.raises(ConnectionError) as caught:
        airflow.call(START)
    assert 100 <= airflow.now <= 111
    assert airflow.outcome(exit_code=None, error=caught.value)[0] == "not_started"


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_start_that_airflow_does_not_want_is_refused(status: int) -> None:
    airflow = Airflow(Answer(status))
    with pytest.raises(Answer):
        airflow.call(START)
    assert airflow.now == 0
    assert airflow.outcome(exit_code=None)[0] == "refused"


@pytest.mark.parametrize("status", [401, 403])
def test_a_start_with_an_expired_token_is_given_back(status: int) -> None:
    airflow = Airflow(Answer(status))
    with pytest.raises(Answer):
        airflow.call(START)
    assert airflow.outcome(exit_code=None)[0] == "not_started"


def test_an_end_refused_after_a_lost_answer_had_been_carried_out() -> None:
    """The trigger of a deferred task may fire before the repeat arrives: then Airflow refuses it."""
    airflow = Airflow("ok")
    airflow.call(START)
    airflow.answers = [ConnectionError("reset"), Answer(409)]
    airflow.call(STATE, b'{"state": "deferred"}')
    assert airflow.outcome()[:2] == ("success", "deferred")


def test_an_end_that_airflow_refuses_at_once_is_not_delivered() -> None:
    airflow = Airflow("ok")
    airflow.call(START)
    airflow.answers = [Answer(409)]
    with pytest.raises(Answer):
        airflow.call(STATE, SUCCESS)
    state, accepted, reason = airflow.outcome()
    assert (state, accepted) == ("failed", "")
    assert "did not accept the state success" in reason


def test_heartbeats_fail_only_when_the_patience_is_over() -> None:
    airflow = Airflow("ok", patience=60)
    airflow.call(START)
    airflow.answers = [ConnectionError("refused")]
    for airflow.now in (5.0, 30.0, 59.0):
        assert airflow.call(BEAT) is None
    airflow.now = 61.0
    with pytest.raises(ConnectionError):
        airflow.call(BEAT)


def test_any_answer_renews_the_patience() -> None:
    airflow = Airflow("ok", patience=60)
    airflow.call(START)
    airflow.now = 50.0
    airflow.call("variables/x")
    airflow.answers = [Gateway(503)]
    airflow.now = 100.0
    assert airflow.call(BEAT) is None


@pytest.mark.parametrize("status", [404, 409, 410])
def test_a_task_that_airflow_ended_fails_with_that_reason(status: int) -> None:
    airflow = Airflow("ok")
    airflow.call(START)
    airflow.answers = [Answer(status)]
    with pytest.raises(Answer):
        airflow.call(BEAT)
    state, _, reason = airflow.outcome(exit_code=-15)
    assert state == "failed"
    assert "ended the task while it was running" in reason


ME = b'{"hostname": "berlin-3", "unixname": "edge", "pid": 7, "start_date": "2026-01-01"}'
HEARTBEAT = 'heartbeat {"hostname": "berlin-3", "pid": 7}'


def test_an_end_is_repeated_only_while_airflow_sees_this_process_run() -> None:
    airflow = Airflow("ok", ConnectionError(), "still yours", "ok")
    airflow.call(START, ME)
    airflow.call(STATE, b'{"state": "deferred"}')
    assert airflow.called == [START, STATE, HEARTBEAT, STATE]
    assert airflow.delivery.accepted == "deferred"


@pytest.mark.parametrize("status", [404, 409, 410])
def test_an_end_whose_answer_was_lost_does_not_end_the_run_that_came_after_it(status: int) -> None:
    """The trigger has fired, and another machine runs the rest: Airflow would take our repeat for its word."""
    airflow = Airflow("ok", ConnectionError(), Answer(status, "running elsewhere"))
    airflow.call(START, ME)
    airflow.call(STATE, b'{"state": "deferred"}')
    assert airflow.called == [START, STATE, HEARTBEAT]
    assert airflow.delivery.accepted == "deferred"


def test_a_call_that_airflow_cannot_carry_out_is_not_repeated_for_minutes() -> None:
    airflow = Airflow(Answer(500))
    with pytest.raises(Answer):
        airflow.call("xcoms/a/b")
    assert airflow.now < 60


def test_errors_of_the_task_are_passed_on() -> None:
    airflow = Airflow(ValueError("bug"))
    with pytest.raises(ValueError, match="bug"):
        airflow.call("xcoms/a/b")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError(errno.ENOSPC, "no space"), "not_started"),
        (OSError(errno.ENOENT, "no file"), "not_started"),
        (PermissionError(errno.EACCES, "another user's key"), "not_started"),
        (ssl.SSLError("half a certificate"), "not_started"),
        (Stopped(), "not_started"),
        (ValueError("no workload"), "failed"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x" * 5000), "failed"),
    ],
)
def test_faults_before_the_start(error: BaseException, state: str) -> None:
    assert Airflow("ok").outcome(exit_code=None, error=error)[0] == state


@pytest.mark.parametrize("answered", [True, False])
def test_a_fault_of_the_machine_after_airflow_was_asked_is_not_given_back(answered: bool) -> None:
    """Airflow may have heard of the start: it would refuse another, or run the task twice."""
    error = PermissionError(errno.EACCES, "another user's key")
    airflow = Airflow("ok" if answered else error)
    with contextlib.suppress(PermissionError):
        airflow.call(START)
    assert airflow.outcome(exit_code=None, error=error)[0] == "failed"


@pytest.mark.parametrize("path", ["../workload.json", "/etc/passwd", "a/../../../x", ".."])
def test_a_log_path_stays_in_its_job(tmp_path: Any, path: str) -> None:
    with pytest.raises(ValueError, match="leaves the job's directory"):
        log_file(tmp_path, path)


def test_a_usual_log_path_is_kept(tmp_path: Any) -> None:
    assert log_file(tmp_path, "dag_id=a/x.log") == tmp_path / "log/dag_id=a/x.log"
    assert log_file(tmp_path, "") == tmp_path / "log/task.log"
