"""Parked polls against real notifications: who sends them, who is woken, and what a parked poll does not hold."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection
from rest_framework.test import APIClient

from edgecontrol import hub as module
from edgecontrol.hub import hub
from jobs_app import lifecycle
from jobs_app.models import Job
from tests.integration.people import OPS
from workers_app import auth, wishes
from workers_app.models import Worker

Make = Callable[..., Any]
#: Well below RECHECK_SECONDS: what takes longer was found by looking again, not by a notification.
SOON = 8

pytestmark = pytest.mark.usefixtures("transactional_db")


class Parked:
    """Watches polls as they park."""

    def __init__(self) -> None:
        self._polls = threading.Semaphore(0)
        self.connections: list[Any] = []

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self._polls.acquire(timeout=20), "the poll did not park"

    def note(self) -> None:
        self.connections.append(connection.connection)
        self._polls.release()


@pytest.fixture
def parked(monkeypatch: pytest.MonkeyPatch) -> Parked:
    parked, outside = Parked(), module.outside

    @contextmanager
    def watched() -> Iterator[None]:
        with outside():
            parked.note()
            yield

    monkeypatch.setattr(module, "outside", watched)
    return parked


@pytest.fixture
def polling(agent: Make, in_thread: Callable[..., Future[Any]], parked: Parked) -> Iterator[Callable[..., Future[Any]]]:
    """Park a claim in a thread; whatever is still parked at the end is woken and ends."""
    ended = threading.Event()
    wait, callers = module.Poll.wait, []

    def until_the_end(poll: module.Poll, seconds: float) -> bool:
        return wait(poll, seconds) and not ended.is_set()

    module.Poll.wait = until_the_end  # type: ignore[method-assign]

    def polling(caller: Any = None, **said: Any) -> Future[Any]:
        caller = caller or agent()
        callers.append(caller)
        answer = in_thread(caller.claim, **{"wait": 50} | said)
        parked.wait_for(1)
        return answer

    yield polling
    ended.set()
    for poll in list(hub._polls):
        poll.woken.set()
    module.Poll.wait = wait  # type: ignore[method-assign]


@pytest.fixture
def scheduler(second_connection: psycopg.Connection[Any]) -> Callable[..., list[uuid.UUID]]:
    """Airflow's side: writes jobs and says so, in one transaction of its own."""

    def queue(count: int = 1, *, queue: str = "default", team: str = "", slots: int = 1, say: bool = True) -> list[Any]:
        ids = [uuid.uuid4() for _ in range(count)]
        second_connection.execute("INSERT INTO queue (name) VALUES (%s) ON CONFLICT DO NOTHING", [queue])
        for pk in ids:
            second_connection.execute(
                "INSERT INTO job (id, kind, airflow_id, workload, token, queue, team_name, slots)"
                " VALUES (%s, 'ExecuteTask', gen_random_uuid(), '{}', 't', %s, %s, %s)",
                [pk, queue, team, slots],
            )
        if say:
            payload = json.dumps({"queue": queue, "team": team, "slots": slots, "count": count})
            second_connection.execute("SELECT pg_notify('edgecontrol_jobs', %s)", [payload])
        second_connection.commit()
        return ids

    return queue


def jobs(answer: Future[Any]) -> list[str]:
    response = answer.result(SOON)
    assert response.status_code == 200, response.content
    return [job["id"] for job in response.json()["jobs"]]


def test_a_parked_claim_gets_a_job_as_soon_as_it_is_queued(
    polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    answer = polling()
    (job,) = scheduler()
    assert jobs(answer) == [str(job)]


def test_it_stays_parked_while_jobs_are_queued_that_it_cannot_take(
    agent: Make, polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    answer = polling(agent(queues=["default"]))
    scheduler(queue="other")
    scheduler(team="red")
    scheduler(slots=9)
    assert not answer.done()
    (job,) = scheduler()
    assert jobs(answer) == [str(job)]


def test_a_job_wakes_the_claim_that_can_run_it_and_not_one_that_waits_longer(
    polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    without, only, able = polling(without_queues=["gpu"]), polling(only_queues=["other"]), polling()
    (job,) = scheduler(queue="gpu")
    assert jobs(able) == [str(job)]
    assert not without.done()
    assert not only.done()


def test_a_released_job_wakes_another_parked_claim(
    make_worker: Make, make_job: Make, polling: Callable[..., Future[Any]]
) -> None:
    holder = make_worker()
    job = make_job(worker=holder)
    answer = polling()
    lifecycle.report(
        worker_id=holder.pk,
        job_id=job.pk,
        report=lifecycle.Report(attempt=1, state=lifecycle.ReportState.NOT_STARTED),
    )
    assert jobs(answer) == [str(job.pk)]


@pytest.mark.parametrize("free_slots", [0, 8])
def test_an_operators_wish_ends_the_parked_claim_of_that_worker_alone(
    agent: Make, polling: Callable[..., Future[Any]], free_slots: int
) -> None:
    caller, other = agent(), agent()
    answer, others = polling(caller, free_slots=free_slots), polling(other)
    wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
    assert answer.result(SOON).json() == {"jobs": [], "heartbeat_due": True}
    assert not others.done()


def test_a_revision_that_somebody_else_bumps_ends_the_parked_claim(
    agent: Make, polling: Callable[..., Future[Any]], second_connection: psycopg.Connection[Any]
) -> None:
    # As Airflow's side does when it supersedes a held job.
    caller = agent()
    answer = polling(caller)
    pk = caller.worker.pk
    second_connection.execute("UPDATE worker SET revision = revision + 1 WHERE id = %s", [pk])
    second_connection.execute("SELECT pg_notify('edgecontrol_worker', %s)", [json.dumps({"worker": pk})])
    second_connection.commit()
    assert answer.result(SOON).json()["heartbeat_due"] is True


def test_revoking_a_held_job_ends_the_holders_parked_claim(
    agent: Make, make_job: Make, polling: Callable[..., Future[Any]]
) -> None:
    caller = agent()
    job = make_job(worker=caller.worker)
    answer = polling(caller)
    lifecycle.revoke([job.pk], by=OPS)
    assert answer.result(SOON).json()["heartbeat_due"] is True


def test_a_revoked_token_ends_the_parked_claim_and_then_everything(
    agent: Make, polling: Callable[..., Future[Any]]
) -> None:
    caller = agent()
    answer = polling(caller)
    auth.revoke([caller.worker.pk], by=OPS)
    assert answer.result(SOON).json() == {"jobs": [], "heartbeat_due": True}
    assert caller.heartbeat().status_code == 401


def test_a_newer_claim_of_the_same_worker_ends_the_older_one_empty(
    agent: Make, polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    caller = agent()
    older = polling(caller)
    newer = polling(caller)
    assert older.result(SOON).json() == {"jobs": [], "heartbeat_due": False}
    (job,) = scheduler()
    assert jobs(newer) == [str(job)]


def test_a_newer_session_ends_the_parked_claim_of_the_older_one(
    agent: Make, polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    caller = agent()
    older = polling(caller)
    newer = agent(Worker.objects.get(pk=caller.worker.pk))
    newer.session = str(uuid.uuid4())
    newer.register()
    assert jobs(older) == []
    assert caller.heartbeat().json()["code"] == "session_replaced"


def test_the_same_claim_repeated_while_the_first_one_is_parked_brings_the_job_to_whoever_is_still_there(
    agent: Make, polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    caller, claim_id = agent(), str(uuid.uuid4())
    polling(caller, claim_id=claim_id)
    repeated = polling(caller, claim_id=claim_id)
    (job,) = scheduler()
    for poll in list(hub._polls):
        poll.woken.set()
    assert jobs(repeated) == [str(job)]
    assert Job.objects.get(pk=job).attempt == 1


def test_one_batch_is_shared_among_parked_claims(
    polling: Callable[..., Future[Any]], scheduler: Callable[..., Any]
) -> None:
    answers = [polling(free_slots=1) for _ in range(3)]
    ids = scheduler(3)
    assert sorted(job for answer in answers for job in jobs(answer)) == sorted(str(pk) for pk in ids)


def test_a_lost_notification_costs_a_while_and_no_job(
    polling: Callable[..., Future[Any]], scheduler: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECHECK_SECONDS", 0.2)
    answer = polling()
    (job,) = scheduler(say=False)
    assert jobs(answer) == [str(job)]


def test_a_listener_whose_connection_breaks_comes_back_and_finds_what_it_missed(
    polling: Callable[..., Future[Any]],
    scheduler: Callable[..., Any],
    second_connection: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_RECONNECT_SECONDS", 0.1)
    answer = polling()
    second_connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%%'"
    )
    (job,) = scheduler()
    assert jobs(answer) == [str(job)]


def test_parked_claims_hold_neither_a_connection_nor_a_place_among_the_working_requests(
    agent: Make, polling: Callable[..., Future[Any]], parked: Parked, scheduler: Callable[..., Any]
) -> None:
    answers = [polling(free_slots=1) for _ in range(settings.EDGECONTROL.database_pool + 4)]
    assert parked.connections == [None] * len(answers)
    # With all connections taken by parked polls, this would wait for one of them.
    assert APIClient().get("/api/v1/edge/health").status_code == 200
    assert agent().heartbeat().status_code == 200
    scheduler(len(answers))
    assert len({job for answer in answers for job in jobs(answer)}) == len(answers)


def test_a_claim_that_waits_for_nothing_is_answered_at_once(agent: Make) -> None:
    assert agent().claim(wait=0).json() == {"jobs": [], "heartbeat_due": False}


def test_a_wait_is_over_when_the_agent_said_so(agent: Make) -> None:
    assert agent().claim(wait=0.05).json() == {"jobs": [], "heartbeat_due": False}


def test_without_room_for_more_parked_claims_the_agent_is_asked_to_come_again(
    agent: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PARKED_SHARE", 0)
    answer = agent().claim(wait=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert int(answer["Retry-After"]) > 0


def test_without_room_for_more_parked_claims_a_waiting_job_is_still_handed_out(
    agent: Make, make_job: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PARKED_SHARE", 0)
    job = make_job()
    assert [found["id"] for found in agent().claim(wait=30).json()["jobs"]] == [str(job.pk)]


def test_stopping_ends_every_parked_claim_with_an_empty_answer(
    polling: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [polling() for _ in range(3)]
    monkeypatch.setattr(hub, "stopping", False)
    hub.stop()
    assert [answer.result(SOON).json() for answer in answers] == [{"jobs": [], "heartbeat_due": False}] * 3


def test_a_burst_beyond_the_connections_queues_and_does_not_fail(
    agent: Make, in_thread: Callable[..., Future[Any]]
) -> None:
    callers = [agent() for _ in range(24)]
    answers = [in_thread(caller.heartbeat) for caller in callers]
    assert {answer.result(30).status_code for answer in answers} == {200}


def test_a_request_that_gets_no_turn_is_asked_to_come_again(agent: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORK_WAIT_SECONDS", 0.01)
    caller = agent()
    taken = [module._work.acquire(timeout=5) for _ in range(settings.EDGECONTROL.database_pool)]
    try:
        answer = caller.heartbeat()
    finally:
        for _ in taken:
            module._work.release()
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert int(answer["Retry-After"]) > 0
