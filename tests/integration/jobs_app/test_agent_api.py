"""The REST API as an agent meets it: through URLs, middleware, authentication and error bodies."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, connection
from django.utils import timezone
from rest_framework.test import APIClient

from jobs_app import logs
from jobs_app.models import Job, LogChunk, Queue
from tests.integration.people import OPS
from workers_app import auth, registry, wishes
from workers_app.models import Worker

Make = Callable[..., Any]
HUGE = 2**63


def refusal(answer: Any, status: int, code: str, *extra: str) -> str:
    """Check the one shape that every refusal has; return its sentence."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"code", "detail", *extra}
    assert body["code"] == code
    assert isinstance(body["detail"], str)
    assert len(body["detail"]) > 10
    return str(body["detail"])


def good(answer: Any) -> Any:
    assert answer.status_code == 200, answer.content
    return answer.json()


def everything(agent: Any, job_id: Any) -> dict[str, Callable[[], Any]]:
    """One call of each endpoint that needs a session, by its name."""
    return {
        "heartbeat": agent.heartbeat,
        "claim": agent.claim,
        "confirm": lambda: agent.confirm((job_id, 1)),
        "report": lambda: agent.report(job_id),
        "append": lambda: agent.append(job_id, 1, b"x"),
    }


ENDPOINTS = ["heartbeat", "claim", "confirm", "report", "append"]


class TestHealth:
    def test_it_says_so_to_everybody_when_the_database_answers(self, agent: Make) -> None:
        body = good(APIClient().get("/api/v1/edge/health"))
        assert body["status"] == "ok"
        assert body["version"] == "0.1.0"

    def test_it_tells_the_time_so_that_an_agent_can_see_its_own_clocks_error(self, agent: Make) -> None:
        assert "time" in good(APIClient().get("/api/v1/edge/health"))

    def test_it_says_when_the_database_is_away_and_when_to_come_again(self, agent: Make) -> None:
        def away(*_: Any) -> None:
            raise OperationalError("connection refused")

        with connection.execute_wrapper(away):
            answer = APIClient().get("/api/v1/edge/health")
        refusal(answer, 503, "unavailable")
        assert int(answer["Retry-After"]) > 0


class TestMe:
    def get(self, caller: Any, query: str = "") -> Any:
        headers = {name: text for name, text in caller.headers().items() if name == "Authorization"}
        return caller.client.get(f"/api/v1/edge/workers/me{query}", headers=headers)

    def test_it_says_whose_the_token_is_and_begins_no_session(self, agent: Make) -> None:
        caller = agent(name="press-7", team_name="paint", requested="maintenance", requested_comment="belt")
        before = Worker.objects.filter(pk=caller.worker.pk).values().get()
        body = good(self.get(caller))
        assert (body["name"], body["team_name"]) == ("press-7", "paint")
        assert (body["requested"], body["comment"]) == ("maintenance", "belt")
        assert body["outage_patience_seconds"] == settings.EDGECONTROL.outage_patience_seconds
        assert (body["queues"], body["allowed_queues"]) == ([], None)
        assert Worker.objects.filter(pk=caller.worker.pk).values().get() == before
        good(caller.heartbeat())

    def test_it_says_which_queues_may_be_served_which_are_known_and_which_stand_still(self, agent: Make) -> None:
        Queue.objects.create(name="laser", paused=True, pause_comment="lens")
        caller = agent(allowed_queues=["laser", "press"])
        queues = good(self.get(caller, "?queue=laser&queue=press&queue=paint"))["queues"]
        assert queues == [
            {"name": "laser", "allowed": True, "known": True, "paused": True, "comment": "lens"},
            {"name": "press", "allowed": True, "known": False, "paused": False, "comment": ""},
            {"name": "paint", "allowed": False, "known": False, "paused": False, "comment": ""},
        ]

    def test_it_judges_the_version_of_who_asks(self, agent: Make) -> None:
        caller = agent(agent_version="0.0.1")
        assert good(self.get(caller, "?agent_version=0.1.0&protocol=1"))["version"] == {"verdict": "ok", "text": ""}
        said = good(self.get(caller, "?agent_version=0.0.9&protocol=0"))["version"]
        assert said["verdict"] == "refused"
        assert "too old" in said["text"]
        refusal(self.get(caller, "?protocol=x"), 400, "invalid_request")

    def test_nobody_is_told_without_a_good_token(self, agent: Make) -> None:
        caller = agent()
        auth.revoke([caller.worker.pk], by=OPS)
        refusal(self.get(caller), 401, "bad_token")
        refusal(APIClient().get("/api/v1/edge/workers/me"), 401, "bad_token")

    def test_a_queue_that_no_queue_can_be_called_is_refused(self, agent: Make) -> None:
        refusal(self.get(agent(), f"?queue={'x' * 3000}"), 400, "invalid_request")


class TestCredentials:
    @pytest.mark.parametrize("name", ENDPOINTS)
    @pytest.mark.parametrize(
        "authorization", [None, "", "Bearer", "Bearer x", "Basic dTpw", "Bearer ec_a_b", "Bearer ec_\u00e9_\u00ff"]
    )
    def test_without_a_good_token_nothing_happens(
        self, agent: Make, make_job: Make, name: str, authorization: str | None
    ) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        headers = {"Edge-Session": caller.session} | ({} if authorization is None else {"Authorization": authorization})
        caller.headers = lambda: headers
        answer = everything(caller, job.pk)[name]()
        refusal(answer, 401, "bad_token")
        assert answer["WWW-Authenticate"] == "Bearer"
        job.refresh_from_db()
        assert (job.state, job.log_size) == ("running", 0)

    def test_a_revoked_token_is_refused_at_the_next_request(self, agent: Make) -> None:
        caller = agent()
        good(caller.heartbeat())
        auth.revoke([caller.worker.pk], by=OPS)
        assert "python -m agent enrol" in refusal(caller.heartbeat(), 401, "bad_token")
        refusal(caller.register(), 401, "bad_token")

    @pytest.mark.parametrize("name", ENDPOINTS)
    def test_an_older_session_is_told_to_stop_for_good(self, agent: Make, make_job: Make, name: str) -> None:
        older = agent()
        job = make_job(worker=older.worker)
        newer = agent(older.worker)
        newer.session = str(uuid.uuid4())
        good(newer.register(held=[{"id": str(job.pk), "attempt": 1}]))
        refusal(everything(older, job.pk)[name](), 409, "session_replaced")
        job.refresh_from_db()
        assert (job.state, job.log_size) == ("running", 0)

    @pytest.mark.parametrize("name", ENDPOINTS)
    def test_a_worker_that_never_registered_has_no_session(self, agent: Make, make_job: Make, name: str) -> None:
        refusal(everything(agent(session=None), make_job().pk)[name](), 409, "session_replaced")

    def test_a_session_may_be_written_in_capitals(self, agent: Make) -> None:
        caller = agent()
        caller.session = caller.session.upper()
        good(caller.heartbeat())

    @pytest.mark.parametrize("session", [None, "", "x", "\u00e9"])
    def test_a_request_that_forgot_its_session_is_wrong_and_does_not_make_an_agent_stop(
        self, agent: Make, session: str | None
    ) -> None:
        caller = agent()
        caller.headers = lambda: (
            {"Authorization": f"Bearer {caller.token}"} | ({} if session is None else {"Edge-Session": session})
        )
        assert "Edge-Session" in refusal(caller.heartbeat(), 400, "invalid_request")

    @pytest.mark.parametrize("held", ["claimed", "running", "success", "failed", "lost", "revoked"])
    def test_a_token_is_useless_for_another_workers_job(self, agent: Make, make_job: Make, held: str) -> None:
        owner, thief = agent(), agent()
        job = make_job(worker=owner.worker, state=held)
        before = Job.objects.filter(pk=job.pk).values().get()
        for said in ("success", "failed", "refused", "not_started"):
            refusal(thief.report(job.pk, state=said), 409, "stale_attempt")
        refusal(thief.append(job.pk, 1, b"forged"), 409, "stale_attempt")
        assert good(thief.confirm((job.pk, 1)))["confirmed"] == []
        gone = good(thief.heartbeat(held=[{"id": str(job.pk), "attempt": 1}]))["gone"]
        assert [pair["id"] for pair in gone] == [str(job.pk)]
        assert Job.objects.filter(pk=job.pk).values().get() == before

    def test_another_worker_listing_a_job_does_not_keep_it_from_being_missed(
        self, agent: Make, make_job: Make, long_ago: Make
    ) -> None:
        owner, thief = agent(), agent()
        job = make_job(worker=owner.worker)
        long_ago(job, started_at=60)
        for _ in range(2):
            thief.heartbeat(held=[{"id": str(job.pk), "attempt": 1}])
            owner.heartbeat(held=[])
        job.refresh_from_db()
        assert job.state == "lost"


class TestRegister:
    def test_a_queue_name_that_no_index_takes_is_refused_by_its_length(self, agent: Make) -> None:
        caller = agent()
        for call in (caller.register, caller.heartbeat):
            good(call(queues=["q" * 256]))
            assert "256" in refusal(call(queues=["q" * 257]), 400, "invalid_request")

    def test_the_answer_brings_everything_that_the_agent_needs(self, agent: Make) -> None:
        caller = agent(name="site-7", session=None, reported="offline", state="offline")
        body = good(caller.register(queues=["a"], concurrency=4))
        ours = settings.EDGECONTROL
        assert body == {
            "name": "site-7",
            "heartbeat_seconds": ours.heartbeat_seconds,
            "claim_wait_seconds": ours.claim_wait_seconds,
            "outage_patience_seconds": ours.outage_patience_seconds,
            "execution_api_url": ours.execution_api_url,
            "log_chunk_bytes": ours.log_chunk_bytes,
            "log_cap_bytes": ours.log_cap_bytes,
            "server_version": "0.1.0",
            "requested": "active",
            "requested_by": "",
            "requested_by_name": "",
            "comment": "",
            "wish_taken": None,
            "queues": ["a"],
            "concurrency": 4,
            "revision": Worker.objects.get(pk=caller.worker.pk).revision,
            "deadline_seconds": None,
            "gone": [],
            "version": {"verdict": "ok", "text": ""},
        }
        good(caller.claim(revision=body["revision"]))

    def test_a_queue_that_a_worker_names_is_known_from_then_on(self, agent: Make) -> None:
        good(agent().register(queues=["new", "new"]))
        assert Queue.objects.filter(name="new").exists()

    @pytest.mark.parametrize("text", ["C:\\udata\\users", "\\u0000", "🦊 und \u00e9", "\\", '"'])
    def test_host_figures_are_stored_as_they_are(self, agent: Make, text: str) -> None:
        caller = agent(session=None)
        figures = {"path": text, text: [1, None, {"x": 0.5}]}
        good(caller.register(sysinfo=figures))
        assert Worker.objects.get(pk=caller.worker.pk).sysinfo == figures

    @pytest.mark.parametrize(("boot_id", "reason"), [("boot-1", "restarted"), ("boot-2", "rebooted")])
    def test_what_the_new_session_cannot_account_for_is_lost_and_what_is_not_its_own_is_named(
        self, agent: Make, make_job: Make, boot_id: str, reason: str
    ) -> None:
        caller = agent()
        kept, forgotten = make_job(worker=caller.worker), make_job(worker=caller.worker)
        elsewhere = make_job(worker=agent().worker)
        caller.session = str(uuid.uuid4())
        held = [{"id": str(job.pk), "attempt": 1} for job in (kept, elsewhere)]
        gone = good(caller.register(boot_id=boot_id, held=held))["gone"]
        assert [pair["id"] for pair in gone] == [str(elsewhere.pk)]
        forgotten.refresh_from_db()
        kept.refresh_from_db()
        assert (kept.state, forgotten.state) == ("running", "lost")
        assert reason in forgotten.reason

    def test_a_request_that_arrives_a_second_time_loses_nothing_that_was_claimed_since(
        self, agent: Make, make_job: Make
    ) -> None:
        caller = agent()
        caller.session = str(uuid.uuid4())
        first = good(caller.register(held=[]))
        job = make_job(worker=Worker.objects.get(pk=caller.worker.pk))
        again = good(caller.register(held=[]))
        job.refresh_from_db()
        assert (job.state, again["name"]) == ("running", first["name"])

    def test_a_request_of_an_agent_that_is_known_to_have_ended_begins_nothing(self, agent: Make) -> None:
        """It was stuck on its way while its agent was killed and started again."""
        caller, earlier = agent(session=None), str(uuid.uuid4())
        good(caller.register(replaces=earlier))
        refusal(caller.register(session=earlier), 409, "session_replaced")
        good(caller.heartbeat())

    def test_a_name_that_another_worker_has_is_refused_with_the_way_out(self, agent: Make) -> None:
        agent(name="taken")
        assert "--name" in refusal(agent(session=None).register(name="taken"), 409, "name_taken")

    @pytest.mark.parametrize("name", ["", "x" * 254, "a\nb", " a"])
    def test_an_unreadable_name_is_refused(self, agent: Make, name: str) -> None:
        refusal(agent().register(name=name), 400, "invalid_request")

    def test_an_agent_that_is_too_old_is_asked_to_update(self, agent: Make) -> None:
        caller = agent()
        session = Worker.objects.get(pk=caller.worker.pk).session
        caller.session = str(uuid.uuid4())
        assert "newer" in refusal(caller.register(protocol=0), 426, "outdated_agent")
        assert Worker.objects.get(pk=caller.worker.pk).session == session

    def test_a_newer_agent_is_welcome(self, agent: Make) -> None:
        good(agent().register(protocol=2, something_new={"x": 1}))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("session", "not a uuid"),
            ("boot_id", ""),
            ("queues", "a,b"),
            ("queues", [""]),
            ("concurrency", 0),
            ("concurrency", 10**9),
            ("sysinfo", None),
            ("sysinfo", {"a": "nul \0"}),
            ("sysinfo", {"a": "half \ud800"}),
            ("sysinfo", {"half \udc00": 1}),
            ("held", None),
            ("held", [{"id": "x", "attempt": 1}]),
            ("held", [{"id": str(uuid.uuid4()), "attempt": 0}]),
            ("agent_version", "\0"),
            ("agent_version", "1" * 201),
            ("airflow_version", "3" * 201),
            ("queues", [f"q{number}" for number in range(1001)]),
            ("sysinfo", {"a": "x" * 65_536}),
            ("protocol", "one"),
        ],
    )
    def test_a_wrong_field_is_refused_by_its_name(self, agent: Make, field: str, value: Any) -> None:
        assert field in refusal(agent().register(**{field: value}), 400, "invalid_request")


class TestHeartbeat:
    def test_a_shutdown_with_an_end_says_how_many_seconds_are_left(self, agent: Any) -> None:
        caller = agent()
        wishes.shut_down([caller.worker.pk], by=OPS, until=timezone.now() + timedelta(minutes=10))
        assert 590 < good(caller.heartbeat())["deadline_seconds"] <= 600
        # An end of maintenance is not the agent's business.
        wishes.request_maintenance([caller.worker.pk], by=OPS, comment="x", until=timezone.now() + timedelta(hours=1))
        assert good(caller.heartbeat())["deadline_seconds"] is None

    def test_the_answer_brings_the_orders(self, agent: Make) -> None:
        caller = agent(concurrency_override=3, allowed_queues=["a", "b"])
        wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
        body = good(caller.heartbeat(queues=["b", "c"]))
        assert body == {
            "requested": "maintenance",
            "requested_by": "operator",
            "requested_by_name": "ops",
            "comment": "disk",
            "wish_taken": None,
            "queues": ["b"],
            "concurrency": 3,
            "revision": Worker.objects.get(pk=caller.worker.pk).revision,
            "deadline_seconds": None,
            "gone": [],
            "version": {"verdict": "ok", "text": ""},
        }

    def test_a_revoked_job_is_named_with_the_reason(self, agent: Make, make_job: Make) -> None:
        caller = agent()
        job = make_job(worker=caller.worker, state="revoked", reason="revoked by ops")
        (gone,) = good(caller.heartbeat(held=[{"id": str(job.pk), "attempt": 1}]))["gone"]
        assert gone == {"id": str(job.pk), "attempt": 1, "reason": "revoked: revoked by ops"}

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("reported", "bored"),
            ("reported", "unknown"),
            ("jobs_active", -1),
            ("jobs_active", HUGE),
            ("concurrency", 0),
            ("queues", [None]),
            ("queues", [f"q{number}" for number in range(1001)]),
            ("sysinfo", []),
            ("sysinfo", {"a": "x" * 65_536}),
            ("held", {"id": 1}),
        ],
    )
    def test_a_wrong_field_is_refused_by_its_name(self, agent: Make, field: str, value: Any) -> None:
        assert field in refusal(agent().heartbeat(**{field: value}), 400, "invalid_request")

    @pytest.mark.parametrize("count", [0, 20])
    def test_a_heartbeat_costs_three_statements_whatever_is_held(
        self, agent: Make, make_job: Make, count: int, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        caller = agent()
        held = [{"id": str(make_job(worker=caller.worker).pk), "attempt": 1} for _ in range(count)]
        with django_assert_num_queries(3):
            good(caller.heartbeat(held=held))

    def test_it_brings_what_has_become_of_logs_that_do_not_get_through(self, agent: Make, make_job: Make) -> None:
        caller = agent()
        stuck, moving = (make_job(worker=caller.worker, log_trouble=said) for said in ("", "answers 503"))
        entries = [
            {"id": str(stuck.pk), "attempt": 1, "trouble": "answers 403\0"},
            {"id": str(moving.pk), "attempt": 1, "trouble": ""},
        ]
        good(caller.heartbeat(log_troubles=entries))
        for job in (stuck, moving):
            job.refresh_from_db()
        assert (stuck.log_trouble, moving.log_trouble) == ("answers 403\ufffd", "")


class TestClaim:
    def test_a_job_arrives_with_its_workload_and_its_token_put_back(self, agent: Make, make_job: Make) -> None:
        caller = agent()
        job = make_job(
            workload={"type": "ExecuteTask", "n": [1, {"x": None}]}, token="jwt", log_path="a/b.log", slots=2
        )
        body = good(caller.claim())
        assert body == {
            "jobs": [
                {
                    "id": str(job.pk),
                    "attempt": 1,
                    "kind": "ExecuteTask",
                    "queue": "default",
                    "slots": 2,
                    "log_path": "a/b.log",
                    "workload": {"type": "ExecuteTask", "n": [1, {"x": None}], "token": "jwt"},
                }
            ],
            "heartbeat_due": False,
        }

    def test_nothing_to_do_is_an_empty_answer(self, agent: Make) -> None:
        assert good(agent().claim()) == {"jobs": [], "heartbeat_due": False}

    @pytest.mark.parametrize("farewell", ["terminating", "offline"])
    def test_the_parked_claim_of_an_agent_that_is_leaving_brings_nothing_any_more(
        self, agent: Make, make_job: Make, farewell: str
    ) -> None:
        caller = agent()
        known = caller.worker.revision
        good(caller.heartbeat(reported=farewell))
        make_job()
        # A parked claim carries the revision from before the farewell.
        assert good(caller.claim(revision=known)) == {"jobs": [], "heartbeat_due": True}

    def test_new_orders_make_a_heartbeat_due(self, agent: Make, make_job: Make) -> None:
        caller = agent()
        make_job()
        revision = caller.worker.revision
        wishes.request_maintenance([caller.worker.pk], by=OPS, comment="disk")
        assert good(caller.claim(revision=revision, wait=30)) == {"jobs": [], "heartbeat_due": True}
        assert good(caller.heartbeat())["requested"] == "maintenance"

    def test_the_body_cannot_widen_what_the_server_allows(self, agent: Make, make_job: Make) -> None:
        caller = agent(concurrency=8, concurrency_override=1, allowed_queues=["default"], team_name="red")
        for columns in ({"team_name": "red"}, {"team_name": "red"}, {"team_name": "red", "queue": "other"}, {}):
            make_job(**columns)
        body = good(caller.claim(free_slots=10_000, queues=["other"], team_name="", concurrency=99))
        assert [job["queue"] for job in body["jobs"]] == ["default"]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("claim_id", "x"),
            ("free_slots", -1),
            ("free_slots", "many"),
            ("free_slots", HUGE),
            ("wait", -1),
            ("wait", "nan"),
            ("revision", None),
        ],
    )
    def test_a_wrong_field_is_refused_by_its_name(self, agent: Make, field: str, value: Any) -> None:
        assert field in refusal(agent().claim(**{field: value}), 400, "invalid_request")

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"[" * 100_000, 400, "invalid_request"),
            (b'{"a":' * 50_000, 400, "invalid_request"),
            (b"\xff\xfe{}", 400, "invalid_request"),
            (b"{}" + b" " * settings.DATA_UPLOAD_MAX_MEMORY_SIZE, 413, "too_large"),
        ],
    )
    def test_json_that_is_no_agents_is_refused(self, agent: Make, body: bytes, status: int, code: str) -> None:
        caller = agent()
        answer = caller.client.post(
            caller.PREFIX + "jobs/claim", body, content_type="application/json", headers=caller.headers()
        )
        refusal(answer, status, code)

    def test_a_very_large_machine_may_ask_too(self, agent: Make, make_job: Make) -> None:
        make_job()
        assert len(good(agent().claim(free_slots=10_000))["jobs"]) == 1

    def test_an_empty_claim_costs_few_statements(
        self, agent: Make, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        caller = agent()
        caller.worker.refresh_from_db()
        with django_assert_max_num_queries(8):
            good(caller.claim(revision=caller.worker.revision))


class TestConfirmAndReport:
    def test_a_job_goes_through_its_life(self, agent: Make, make_job: Make) -> None:
        caller, job = agent(), make_job()
        (claimed,) = good(caller.claim())["jobs"]
        pairs = ((claimed["id"], 1), (claimed["id"], 2))
        answer = good(caller.confirm(*pairs))
        assert answer["confirmed"] == [{"id": claimed["id"], "attempt": 1}]
        (refused,) = answer["refused"]
        assert (refused["attempt"], refused["code"]) == (2, "stale_attempt")
        assert refused["detail"]
        text = b"line one\n\x00\xff"
        assert good(caller.append(job.pk, 1, text)) == {"size": len(text)}
        said = {"airflow_outcome": "success", "log_size": len(text), "log_sha256": "0" * 64}
        assert good(caller.report(job.pk, **said)) == {"state": "success"}
        assert good(caller.report(job.pk, **said)) == {"state": "success"}
        assert good(caller.append(job.pk, 1, b"tail", offset=len(text))) == {"size": len(text) + 4}
        assert b"".join(logs.read(job_id=job.pk, attempt=1)) == text + b"tail"
        assert good(caller.claim()) == {"jobs": [], "heartbeat_due": False}

    def test_a_start_that_never_reached_airflow_is_handed_out_again(self, agent: Make, make_job: Make) -> None:
        caller, job = agent(), make_job()
        good(caller.claim())
        good(caller.confirm((job.pk, 1)))
        assert good(caller.report(job.pk, state="not_started", exit_code=None)) == {"state": "queued"}
        assert [found["attempt"] for found in good(caller.claim())["jobs"]] == [2]
        refusal(caller.report(job.pk, attempt=1), 409, "stale_attempt")

    def test_the_smallest_report_is_enough(self, agent: Make, make_job: Make) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        assert good(caller.post(f"jobs/{job.pk}/report", attempt=1, state="failed")) == {"state": "failed"}

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("attempt", 0),
            ("attempt", None),
            ("state", "lost"),
            ("state", "revoked"),
            ("state", "running"),
            ("exit_code", "zero"),
            ("exit_code", HUGE),
            ("log_size", -1),
            ("log_size", HUGE),
            ("log_sha256", "xyz"),
        ],
    )
    def test_a_wrong_field_is_refused_by_its_name(self, agent: Make, make_job: Make, field: str, value: Any) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        assert field in refusal(caller.report(job.pk, **{field: value}), 400, "invalid_request")
        job.refresh_from_db()
        assert job.state == "running"

    @pytest.mark.parametrize(
        ("said", "stored"), [("nul \0", "nul \ufffd"), ("half \ud800", "half ?"), ("x" * 5000, "x" * 4000)]
    )
    def test_no_report_is_lost_for_the_wording_of_its_reason(
        self, agent: Make, make_job: Make, said: str, stored: str
    ) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        good(caller.report(job.pk, state="failed", reason=said))
        job.refresh_from_db()
        assert (job.state, job.reason) == ("failed", stored)

    @pytest.mark.parametrize("exit_code", [-9, 0, 255, 3221225477])
    def test_the_exit_code_is_recorded(self, agent: Make, make_job: Make, exit_code: int) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        good(caller.report(job.pk, state="failed", exit_code=exit_code))
        job.refresh_from_db()
        assert job.exit_code == exit_code

    @pytest.mark.parametrize("attempt", [2**31, HUGE, 10**30])
    def test_an_attempt_beyond_all_numbers_is_refused(self, agent: Make, make_job: Make, attempt: int) -> None:
        caller = agent()
        job = make_job(worker=caller.worker)
        for answer in (
            caller.report(job.pk, attempt=attempt),
            caller.confirm((job.pk, attempt)),
            caller.append(job.pk, attempt, b"x"),
            caller.heartbeat(held=[{"id": str(job.pk), "attempt": attempt}]),
        ):
            assert answer.status_code in (200, 400, 404, 409), answer.content
            assert "detail" in answer.json() or not answer.json().get("confirmed")
        job.refresh_from_db()
        assert job.state == "running"

    def test_a_report_about_no_job_at_all_is_stale(self, agent: Make) -> None:
        refusal(agent().report(uuid.uuid4()), 409, "stale_attempt")


class TestLogs:
    @pytest.fixture
    def caller(self, agent: Make) -> Any:
        return agent()

    @pytest.fixture
    def job(self, caller: Any, make_job: Make) -> Job:
        return make_job(worker=caller.worker)

    def test_a_wrong_offset_is_answered_with_the_size(self, caller: Any, job: Job) -> None:
        good(caller.append(job.pk, 1, b"hello"))
        answer = caller.append(job.pk, 1, b"x", offset=9)
        refusal(answer, 409, "wrong_offset", "size")
        assert answer.json()["size"] == 5

    def test_a_known_offset_changes_nothing(self, caller: Any, job: Job) -> None:
        for _ in range(2):
            assert good(caller.append(job.pk, 1, b"hello")) == {"size": 5}
        assert LogChunk.objects.count() == 1

    @pytest.mark.parametrize("offset", ["", "-1", "x", "1.5", "0x10", "\u0663", "9" * 19])
    def test_an_offset_that_is_no_number_is_refused(self, caller: Any, job: Job, offset: str) -> None:
        assert "offset" in refusal(caller.append(job.pk, 1, b"x", offset=offset), 400, "invalid_request")

    def test_a_chunk_of_the_largest_size_is_taken_and_one_byte_more_is_too_large(self, caller: Any, job: Job) -> None:
        limit = settings.EDGECONTROL.log_chunk_bytes
        assert str(limit) in refusal(caller.append(job.pk, 1, b"x" * (limit + 1)), 413, "too_large")
        assert good(caller.append(job.pk, 1, b"x" * limit)) == {"size": limit}

    def test_the_cap_has_a_code_of_its_own_and_the_job_is_unharmed(
        self, caller: Any, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settings, "EDGECONTROL", settings.EDGECONTROL.model_copy(update={"log_cap_bytes": 10}))
        good(caller.append(job.pk, 1, b"x" * 10))
        refusal(caller.append(job.pk, 1, b"y", offset=10), 413, "log_full")
        good(caller.report(job.pk, log_size=11))

    @pytest.mark.parametrize("content_type", ["application/json", "text/plain", "multipart/form-data"])
    def test_anything_but_bytes_is_refused(self, caller: Any, job: Job, content_type: str) -> None:
        answer = caller.append(job.pk, 1, b"{}", content_type=content_type)
        refusal(answer, 415, "unsupported_media_type")

    def test_an_empty_chunk_asks_for_the_size(self, caller: Any, job: Job) -> None:
        good(caller.append(job.pk, 1, b"hello"))
        assert good(caller.append(job.pk, 1, b"", offset=5)) == {"size": 5}

    def test_an_append_costs_two_statements(
        self, caller: Any, job: Job, django_assert_max_num_queries: Callable[..., Any]
    ) -> None:
        # Who is it, and the append; the transaction's own begin and commit are counted, too.
        with django_assert_max_num_queries(4):
            good(caller.append(job.pk, 1, b"hello"))


class TestWrongRequests:
    PATHS = ("workers/register", "workers/heartbeat", "jobs/claim", "jobs/confirm")

    @pytest.mark.parametrize(("path", "method"), list(itertools.product(PATHS, ["get", "put", "delete", "patch"])))
    def test_a_wrong_method_is_refused(self, agent: Make, path: str, method: str) -> None:
        caller = agent()
        answer = getattr(caller.client, method)(caller.PREFIX + path, headers=caller.headers())
        refusal(answer, 405, "method_not_allowed")

    def test_health_cannot_be_posted_to(self, agent: Make) -> None:
        refusal(APIClient().post("/api/v1/edge/health"), 405, "method_not_allowed")

    @pytest.mark.parametrize(
        "path",
        ["", "nothing", "jobs/claim/", "jobs/not-a-uuid/report", "logs/not-a-uuid/1", f"logs/{uuid.UUID(int=1)}/-1"],
    )
    def test_an_unknown_address_is_answered_in_the_same_shape(self, agent: Make, path: str) -> None:
        caller = agent()
        refusal(caller.post(path), 404, "not_found")

    @pytest.mark.parametrize("body", ["", "{", "[]", "7", "null", '"x"', "\xff", '{"a": NaN}'])
    def test_a_body_that_is_no_object_is_refused(self, agent: Make, body: str) -> None:
        caller = agent()
        answer = caller.client.post(
            caller.PREFIX + "jobs/confirm",
            body.encode("latin-1"),
            content_type="application/json",
            headers=caller.headers(),
        )
        refusal(answer, 400, "invalid_request")

    def test_a_body_of_another_type_is_refused(self, agent: Make) -> None:
        caller = agent()
        answer = caller.client.post(
            caller.PREFIX + "jobs/confirm", b"x", content_type="application/xml", headers=caller.headers()
        )
        refusal(answer, 415, "unsupported_media_type")

    def test_an_answer_in_a_language_that_nobody_speaks_is_refused(self, agent: Make) -> None:
        caller = agent()
        answer = caller.client.get("/api/v1/edge/health", headers={"Accept": "application/xml"})
        assert answer.status_code == 406
        assert set(answer.json()) == {"code", "detail"}

    @pytest.mark.parametrize("name", ENDPOINTS)
    def test_a_database_that_goes_away_is_worth_repeating(self, agent: Make, make_job: Make, name: str) -> None:
        caller = agent()
        calls = everything(caller, make_job(worker=caller.worker).pk)

        def away(*_: Any) -> None:
            raise OperationalError("connection refused")

        caller.worker.refresh_from_db = lambda: None
        with connection.execute_wrapper(away):
            answer = calls[name]()
        refusal(answer, 503, "unavailable")
        assert int(answer["Retry-After"]) > 0

    def test_a_bug_is_answered_in_the_same_shape(self, agent: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        def bug(**_: Any) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(registry, "heartbeat", bug)
        answer = agent().heartbeat()
        assert "bug" not in refusal(answer, 500, "server_error")
