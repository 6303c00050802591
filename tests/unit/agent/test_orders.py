"""What the agent obeys, and when it says what it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent.claims import Claims
from agent.gate import Gate
from agent.heartbeat import Heartbeat
from agent.held import Held
from agent.intake import Intake
from agent.jobs import Job, Key
from agent.orders import Orders
from agent.task_kinds import Served
from tests.unit.agent.conftest import SETTINGS, Plane, refusal

Add = Callable[..., Job]


@pytest.mark.parametrize(
    ("requested", "ending", "jobs", "ready", "reported"),
    [
        ("active", False, 0, False, "starting"),
        ("active", False, 0, True, "idle"),
        ("active", False, 2, True, "running"),
        ("active", False, 2, False, "running"),
        ("active", True, 2, True, "terminating"),
        ("active", True, 0, True, "terminating"),
        ("maintenance", False, 2, True, "maintenance_pending"),
        ("maintenance", False, 0, True, "maintenance"),
        ("maintenance", True, 0, True, "terminating"),
        ("shutdown", True, 1, True, "terminating"),
        ("shutdown", False, 1, True, "terminating"),
    ],
)
def test_the_reported_state(requested: str, ending: bool, jobs: int, ready: bool, reported: str) -> None:
    orders = Orders(concurrency=4)
    orders.requested, orders.ending = requested, ending
    assert orders.reported(jobs=jobs, ready=ready) == reported


@pytest.mark.parametrize(("requested", "resting"), [("active", False), ("maintenance", True), ("shutdown", True)])
def test_work_is_taken_only_while_active(requested: str, resting: bool) -> None:
    orders = Orders(concurrency=4)
    orders.apply({"requested": requested, "revision": 3, "concurrency": 2, "comment": None})
    assert orders.resting is resting
    assert (orders.revision, orders.concurrency, orders.draining) == (3, 2, requested == "shutdown")


@pytest.mark.parametrize("instead", ["active", "maintenance"])
def test_an_ordered_shutdown_can_be_withdrawn(instead: str) -> None:
    orders = Orders(concurrency=4)
    orders.apply({"requested": "shutdown", "deadline_seconds": 5})
    orders.apply({"requested": instead})
    assert not orders.draining
    assert orders.seconds_left() is None
    assert orders.resting is (instead == "maintenance")


def test_a_drain_by_a_signal_outlasts_every_order() -> None:
    orders = Orders(concurrency=4)
    orders.apply({"requested": "shutdown"})
    orders.ending = True
    orders.apply({"requested": "active"})
    assert orders.draining
    assert orders.resting


def test_a_deadline_counts_from_the_answer_and_is_moved_or_removed_by_a_later_one() -> None:
    orders = Orders(concurrency=4)
    assert orders.seconds_left() is None
    left = []
    for seconds in (100, 7.5, 0, None):
        orders.apply({"requested": "shutdown", "deadline_seconds": seconds})
        left.append(orders.seconds_left())
    assert [round(seconds, 1) if seconds is not None else None for seconds in left] == [100.0, 7.5, 0.0, None]
    orders.apply({"requested": "shutdown", "deadline_seconds": 100})
    orders.apply({"requested": "shutdown"})  # an older control plane knows no deadlines
    assert orders.seconds_left() is None


def test_a_deadline_means_nothing_without_a_shutdown() -> None:
    orders = Orders(concurrency=4)
    orders.apply({"requested": "maintenance", "deadline_seconds": 5})
    assert orders.seconds_left() is None


@pytest.fixture
def heartbeat(plane: Plane, held: Held) -> Heartbeat:
    gone: list[tuple[Key, str]] = []
    beat = Heartbeat(
        client=plane,  # type: ignore[arg-type]
        held=held,
        orders=Orders(concurrency=4),
        interval_seconds=30.0,
        concurrency=4,
        queues=None,
        ready=lambda: True,
        sysinfo=lambda: {"load": 0},
        on_gone=lambda key, reason: gone.append((key, reason)),
    )
    beat.seed({"load": 0})
    beat.gone = gone  # type: ignore[attr-defined]
    return beat


def test_an_idle_agent_sends_no_heartbeats(heartbeat: Heartbeat, plane: Plane) -> None:
    heartbeat.send("idle")
    heartbeat._sent_at -= 1000
    assert heartbeat.step() > 0
    assert len(plane.said("heartbeat")) == 1


def test_held_jobs_are_told_every_interval(heartbeat: Heartbeat, plane: Plane, add_job: Add, held: Held) -> None:
    job = add_job()
    heartbeat.send("running")
    assert 29 < heartbeat.step() <= 30
    heartbeat._sent_at -= 30
    heartbeat.step()
    assert plane.said("heartbeat")[-1]["held"] == [{"id": job.id, "attempt": 1}]
    held.ended(job, {"state": "success"})
    heartbeat.send("running")
    assert plane.said("heartbeat")[-1]["held"] == [{"id": job.id, "attempt": 1}]  # until its report is accepted
    held.told(job)
    heartbeat.send("idle")
    assert plane.said("heartbeat")[-1]["held"] == []


def test_a_wanted_heartbeat_goes_out_at_once(heartbeat: Heartbeat, plane: Plane) -> None:
    heartbeat.send("idle")
    heartbeat.orders.want_heartbeat()
    assert heartbeat.step() == 0
    assert not heartbeat.orders.heartbeat_wanted()


def test_a_heartbeat_that_is_wanted_while_another_is_on_its_way_is_still_sent(
    heartbeat: Heartbeat, plane: Plane
) -> None:
    usual = plane.heartbeat

    def while_news_come(body: dict[str, Any], *, read_seconds: float) -> dict[str, Any]:
        heartbeat.orders.want_heartbeat()
        return usual(body, read_seconds=read_seconds)

    plane.heartbeat = while_news_come  # type: ignore[method-assign]
    heartbeat.orders.want_heartbeat()
    heartbeat.send("idle")
    plane.heartbeat = usual  # type: ignore[method-assign]
    assert heartbeat.step() == 0
    assert heartbeat.step() > 0
    assert len(plane.said("heartbeat")) == 2


@pytest.mark.parametrize("interval", [3.0, 30.0])
def test_a_failed_heartbeat_is_repeated_within_its_interval_whoever_asks_for_more(
    heartbeat: Heartbeat, plane: Plane, interval: float
) -> None:
    heartbeat.interval_seconds = interval
    backoff = heartbeat.backoff()
    assert max(backoff.next_seconds() for _ in range(20)) <= interval / 3
    assert backoff.next_seconds(retry_after=60.0) <= 1.1 * interval
    waits: list[float] = []
    plane.heartbeat = lambda body, *, read_seconds: waits.append(read_seconds) or {}  # type: ignore[method-assign,func-returns-value]
    heartbeat.send("idle")
    assert waits[0] <= 10


def test_what_follows_from_a_new_wish_is_told_at_once(heartbeat: Heartbeat, plane: Plane) -> None:
    orders = {"requested": "maintenance", "comment": "patch", "queues": None, "concurrency": 4, "revision": 2}
    plane.answers["heartbeat"] = [orders] * 3
    heartbeat.send("idle")
    assert heartbeat.step() == 0
    assert heartbeat.step() > 0
    assert [body["reported"] for body in plane.said("heartbeat")] == ["idle", "maintenance"]


def test_control_planes_that_differ_about_the_version_cause_neither_a_flood_nor_a_line_each(
    heartbeat: Heartbeat, plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts = [{"verdict": "outdated", "text": "upgrade"}, {"verdict": "ok", "text": ""}]
    plane.answers["heartbeat"] = [{"requested": "active", "revision": 1, "version": verdicts[n % 2]} for n in range(6)]
    for _ in range(6):
        heartbeat.send("idle")
        assert not heartbeat.orders.heartbeat_wanted()
    assert caplog.text.count("upgrade") == 1


def test_a_change_is_told_soon_but_not_for_every_short_task(heartbeat: Heartbeat, plane: Plane, add_job: Add) -> None:
    heartbeat.send("idle")
    add_job()
    assert 4 < heartbeat.step() <= 5
    heartbeat._sent_at -= 5
    heartbeat.step()
    assert plane.said("heartbeat")[-1]["reported"] == "running"


def test_orders_and_withdrawn_jobs_come_with_the_answer(heartbeat: Heartbeat, plane: Plane, held: Held) -> None:
    answer = {
        "requested": "maintenance",
        "revision": 9,
        "concurrency": 2,
        "gone": [{"id": "x", "attempt": 2, "reason": "r"}],
    }
    plane.answers["heartbeat"] = [answer]
    heartbeat.send("idle")
    assert heartbeat.orders.resting
    assert held.concurrency == 2
    assert heartbeat.gone == [(Key("x", 2), "r")]  # type: ignore[attr-defined]


class Started:
    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def order(self, job: Job) -> None:
        self.jobs.append(job)


@pytest.fixture
def intake(plane: Plane, held: Held) -> Intake:
    return Intake(
        client=plane,  # type: ignore[arg-type]
        spool=held.spool,
        held=held,
        gate=Gate(runner_ready=lambda: True, execution_api=lambda: ""),
        orders=Orders(concurrency=4),
        starter=Started(),
        settings=SETTINGS,
    )


def offer(number: int, **more: Any) -> dict[str, Any]:
    facts = {
        "id": f"00000000-0000-0000-0000-{number:012}",
        "attempt": 1,
        "kind": "ExecuteTask",
        "queue": "q",
        "slots": 1,
    }
    return {**facts, "log_path": "", "workload": {}, **more}


def test_only_what_was_confirmed_is_started(intake: Intake, plane: Plane, held: Held) -> None:
    first, second = offer(1), offer(2)
    refused = {"id": second["id"], "attempt": 1, "code": "stale_attempt"}
    plane.answers["confirm"] = [{"confirmed": [{"id": first["id"], "attempt": 1}], "refused": [refused]}]
    held.reserve()
    intake.take([first, second], reserved=4)
    assert [job.id for job in intake.starter.jobs] == [first["id"]]  # type: ignore[attr-defined]
    assert [job.id for job in held.all()] == [first["id"]]
    assert held.free_slots() == 3


def test_an_offer_that_came_twice_is_confirmed_and_started_once(intake: Intake, plane: Plane) -> None:
    intake.take([offer(1)], reserved=0)
    intake.take([offer(1)], reserved=0)
    assert len(plane.said("confirm")) == 1
    assert len(intake.starter.jobs) == 1  # type: ignore[attr-defined]


def test_offers_beyond_the_slots_that_are_free_go_back(intake: Intake, plane: Plane, held: Held, add_job: Add) -> None:
    """The control plane counts a job as gone once it is revoked; here its process still has its grace."""
    add_job(slots=2)
    offers = [offer(1), offer(2, slots=2), offer(3)]
    intake.take(offers, reserved=0)
    assert [job.id for job in intake.starter.jobs] == [offers[0]["id"], offers[2]["id"]]  # type: ignore[attr-defined]
    (back,) = [job for job in held.all() if job.result is not None]
    assert (back.id, back.result and back.result["state"]) == (offers[1]["id"], "not_started")
    assert [job["id"] for job in plane.said("confirm")[0]] == [offers[0]["id"], offers[2]["id"]]


def test_an_unreadable_offer_harms_no_other(intake: Intake) -> None:
    intake.take([offer(1, slots="x"), {"id": 3}, offer(2)], reserved=0)
    assert [job.id for job in intake.starter.jobs] == [offer(2)["id"]]  # type: ignore[attr-defined]


def test_a_draining_agent_gives_late_offers_back(intake: Intake, plane: Plane, held: Held) -> None:
    intake.orders.ending = True
    intake.take([offer(1)], reserved=0)
    (job,) = held.all()
    assert job.result is not None
    assert job.result["state"] == "not_started"
    assert plane.calls == []


def test_a_refused_confirmation_drops_the_jobs(intake: Intake, plane: Plane, held: Held) -> None:
    plane.answers["confirm"] = [refusal(400, "invalid_request")]
    intake.take([offer(1)], reserved=0)
    assert held.all() == []


class Asking:
    """A control plane that hands out nothing, and notes who asked for what."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.served: list[Served] = []
        #: Cleared, claims park until it is set.
        self.answers = threading.Event()
        self.answers.set()

    def claim(self, *, claim_id: str, free_slots: int, wait: float, revision: int, served: Served) -> dict[str, Any]:
        self.asked.append(free_slots)
        self.served.append(served)
        self.answers.wait(30)
        return {"jobs": [], "heartbeat_due": False}


@pytest.fixture
def claims(held: Held, intake: Intake) -> Claims:
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: "")
    return Claims(
        client=Asking(),  # type: ignore[arg-type]
        held=held,
        gate=gate,
        orders=Orders(concurrency=4),
        intake=intake,
        wait_seconds=50.0,
    )


def asked(claims: Claims) -> list[int]:
    """For how many slots each poll asked, the smallest first: their threads run as they like."""
    for poll in claims._polls:
        poll.join()
    return sorted(claims.client.asked)  # type: ignore[attr-defined]


def test_all_free_slots_are_asked_for(claims: Claims, add_job: Add) -> None:
    add_job(slots=3)
    claims.step()
    assert asked(claims) == [1]


def test_slots_that_become_free_beside_a_parked_poll_are_asked_for_with_its_own(
    claims: Claims, add_job: Add, held: Held
) -> None:
    claims.client.answers.clear()  # type: ignore[attr-defined]
    job = add_job(slots=3)
    claims.step()
    parked = claims._polls[0]
    held.ended(job, {"state": "success"})
    held.told(job)
    assert 0 < claims.step() <= 1, "not at once, since short tasks follow one another"
    parked.started_at -= 5
    claims.step()
    claims.step()
    claims.client.answers.set()  # type: ignore[attr-defined]
    assert asked(claims) == [1, 4]
    assert held.free_slots() == 4, "nothing stays set aside"


def test_a_parked_poll_is_asked_anew_when_a_queue_cannot_be_served_any_more(claims: Claims, held: Held) -> None:
    claims.client.answers.clear()  # type: ignore[attr-defined]
    claims.step()
    claims._polls[0].started_at -= 5
    claims.served = lambda: Served(without=("gpu",))
    claims.step()
    claims.client.answers.set()  # type: ignore[attr-defined]
    assert asked(claims) == [4, 4]
    assert set(claims.client.served) == {Served(), Served(without=("gpu",))}  # type: ignore[attr-defined]
    assert held.free_slots() == 4


def test_a_poll_whose_answer_was_lost_goes_on_asking_for_that_answer(claims: Claims, add_job: Add, held: Held) -> None:
    claims.client.answers.clear()  # type: ignore[attr-defined]
    job = add_job(slots=3)
    claims.step()
    claims._polls[0].failing, claims._polls[0].started_at = True, 0.0
    held.ended(job, {"state": "success"})
    held.told(job)
    claims.step()
    claims.client.answers.set()  # type: ignore[attr-defined]
    assert asked(claims) == [1]


def test_a_resting_agent_asks_for_orders_only(claims: Claims) -> None:
    claims.orders.requested = "maintenance"
    claims.step()
    assert asked(claims) == [0]


def test_nothing_is_asked_for_while_new_orders_are_being_fetched(claims: Claims, add_job: Add, held: Held) -> None:
    claims.client.answers.clear()  # type: ignore[attr-defined]
    job = add_job(slots=3)
    claims.step()
    claims._polls[0].started_at -= 5
    held.ended(job, {"state": "success"})
    held.told(job)
    claims.orders.want_heartbeat()
    claims.step()
    claims.orders.apply({"requested": "active", "revision": 2})
    assert len(claims._polls) == 1
    claims.step()
    claims.client.answers.set()  # type: ignore[attr-defined]
    assert asked(claims) == [1, 4]


def test_a_full_agent_parks_only_after_a_while(claims: Claims, add_job: Add, held: Held) -> None:
    add_job(slots=4)
    assert 0 < claims.step() <= 1
    assert asked(claims) == []
    held.full_since -= 5
    claims.step()
    assert asked(claims) == [0]


def test_an_empty_answer_at_once_is_not_asked_for_again_at_once(claims: Claims) -> None:
    claims.step()
    assert asked(claims) == [4]
    assert 0 < claims.step() <= 0.5
    assert asked(claims) == [4]


def test_nothing_is_asked_for_while_airflow_is_away(claims: Claims) -> None:
    claims.gate = Gate(runner_ready=lambda: True, execution_api=lambda: "no answer")
    assert 0 < claims.step() <= 1
    assert claims._closed_since is not None
    claims._closed_since -= 10
    claims.step()
    assert asked(claims) == [0]
    assert "no answer" in claims.closed_because


def test_a_failed_start_closes_the_gate_for_a_while() -> None:
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: "")
    assert gate.closed_because() == ""
    gate.start_failed("no luck")
    assert gate.closed_because() == "no luck"


def test_airflow_is_asked_rarely() -> None:
    answers = []
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: answers.append(1) or "")  # type: ignore[func-returns-value]
    for _ in range(10):
        gate.closed_because()
    assert len(answers) == 1


def test_why_a_log_does_not_get_through_is_told_once_even_of_a_job_that_has_ended(
    heartbeat: Heartbeat, plane: Plane, held: Held, add_job: Callable[..., Job]
) -> None:
    job = add_job()
    heartbeat.send("idle")
    held.ended(job, {"state": "success"})
    held.told(job)
    job.log_trouble = "answers 503"
    heartbeat._sent_at -= 1000
    assert heartbeat.step() == 0.0
    heartbeat.send("idle")
    told = [body["log_troubles"] for body in plane.said("heartbeat")]
    assert told == [[], [{"id": job.id, "attempt": 1, "trouble": "answers 503"}], []]
