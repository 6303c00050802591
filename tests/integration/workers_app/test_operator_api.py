"""The operator API of workers, enrolment tokens and the record of changes, as a script and as a browser meet it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.test import APIClient

from edgecontrol import __version__
from tests.integration.fleet import FLEET, Fleet, good, member, refused
from tests.integration.people import OPS
from workers_app import auth, enrolment, operations, personal_tokens, wishes
from workers_app.models import Change, EnrolmentToken, PersonalToken, Worker

Make = Callable[..., Any]


@pytest.fixture
def fleet(http: None) -> Fleet:
    return Fleet(member("administrator", name="maria"))


@pytest.fixture
def browser(fleet: Fleet) -> Client:
    client = Client(headers={"Accept": "text/html"})
    client.force_login(fleet.user)
    return client


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


def cost(call: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as queries:
        good(call())
    return len(queries)


class TestCallers:
    ADDRESSES = ["", "workers", "jobs", "queues", "enrolment-tokens", "changes", "me"]

    @pytest.mark.parametrize("address", ADDRESSES)
    @pytest.mark.parametrize("method", ["get", "post"])
    def test_nobody_gets_in_without_a_credential(self, http: None, address: str, method: str) -> None:
        answer = getattr(APIClient(), method)(FLEET + address)
        refused(answer, 401, "not_authenticated")
        assert answer["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize("address", ADDRESSES)
    def test_a_workers_token_opens_nothing_here(self, agent: Make, address: str) -> None:
        answer = APIClient().get(FLEET + address, headers=agent().headers())
        refused(answer, 401, "bad_token")

    def test_a_personal_token_opens_nothing_that_agents_use(self, agent: Make, fleet: Fleet) -> None:
        caller = agent()
        caller.token = fleet.token
        refused(caller.heartbeat(), 401, "bad_token")
        refused(caller.register(), 401, "bad_token")

    @pytest.mark.parametrize("token", ["", "x", "ecp_", "ecp_a_b", "ecp_" + "0" * 12 + "_" + "0" * 64])
    def test_garbage_opens_nothing(self, fleet: Fleet, token: str) -> None:
        fleet.client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
        refused(fleet.get("workers/"), 401, "bad_token")

    def test_a_token_ends_with_its_revocation_its_time_and_its_owner(self, http: None) -> None:
        revoked, expired, left = (Fleet(member("viewer", name=name)) for name in ("a", "b", "c"))
        for fleet in (revoked, expired, left):
            good(fleet.get("workers/"))
        personal_tokens.revoke([PersonalToken.objects.get(user=revoked.user).pk], by=OPS)
        PersonalToken.objects.filter(user=expired.user).update(expires_at=timezone.now() - timedelta(seconds=1))
        User.objects.filter(pk=left.user.pk).update(is_active=False)
        for fleet in (revoked, expired, left):
            refused(fleet.get("workers/"), 401, "bad_token")

    def test_a_session_reads_and_must_show_its_csrf_token_to_change(self, http: None, make_worker: Make) -> None:
        worker = make_worker()
        client = APIClient(enforce_csrf_checks=True)
        client.force_login(member("operator"))
        good(client.get(f"{FLEET}workers/"))
        address = f"{FLEET}workers/{worker.pk}/request_maintenance/"
        assert "CSRF" in refused(client.post(address, {"comment": "x"}, format="json"), 403, "not_allowed")
        assert fresh(worker).requested == "active"
        page = client.get(address, headers={"Accept": "text/html"}).content.decode()
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
        assert token is not None
        good(client.post(address, {"comment": "x"}, format="json", headers={"X-CSRFToken": token[1]}))
        assert fresh(worker).requested == "maintenance"

    def test_what_is_missing_is_named(self, http: None, make_worker: Make) -> None:
        viewer = Fleet(member("viewer"))
        detail = refused(viewer.post(f"workers/{make_worker().pk}/shutdown_worker/"), 403, "not_allowed")
        assert "workers_app.operate_worker" in detail

    def test_a_change_names_who_asked_and_from_where(self, fleet: Fleet, make_worker: Make) -> None:
        good(fleet.post(f"workers/{make_worker('press-7').pk}/request_maintenance/", comment="disk"))
        change = Change.objects.get(action="request_maintenance")
        assert (change.actor_kind, change.actor, change.origin) == ("person", "maria", "127.0.0.1")
        assert (change.subject, change.comment) == ("press-7", "disk")


class TestWorkers:
    def test_a_worker_is_shown_with_all_that_operators_ask(
        self, fleet: Fleet, make_worker: Make, make_job: Make
    ) -> None:
        worker = make_worker(
            "press-7",
            queues=["a", "b"],
            allowed_queues=["b", "c"],
            team_name="print",
            concurrency=8,
            concurrency_override=5,
            agent_version=__version__,
            airflow_version="3.3.2",
            sysinfo={"load_per_cpu": 0.5},
            jobs_active=2,
        )
        make_job(worker=worker, slots=2)
        make_job(worker=worker, state="claimed")
        make_job(worker=worker, state="success")
        until = timezone.now() + timedelta(hours=2)
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk", until=until)
        row = fresh(worker)
        assert row.requested_at is not None
        assert row.last_heartbeat is not None
        shown = good(fleet.get(f"workers/{worker.pk}/"))
        assert shown == {
            "id": worker.pk,
            "name": "press-7",
            "state": "maintenance request",
            "requested": "maintenance",
            "comment": "disk",
            "by": "ops",
            "by_kind": "operator",
            "at": row.requested_at.isoformat().replace("+00:00", "Z"),
            "until": until.isoformat().replace("+00:00", "Z"),
            "reported": "idle",
            "queues": ["b"],
            "agent_queues": ["a", "b"],
            "allowed_queues": ["b", "c"],
            "queues_override": None,
            "team": "print",
            "slots": {"effective": 5, "used": 3, "agent": 8, "override": 5},
            "jobs": 2,
            "agent_version": __version__,
            "airflow_version": "3.3.2",
            "outdated": False,
            "last_heartbeat": row.last_heartbeat.isoformat().replace("+00:00", "Z"),
            "silent": False,
            "first_online": None,
            "sysinfo": {"load_per_cpu": 0.5},
        }
        assert good(fleet.get("workers/"))["results"] == [shown]

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ({}, ["away", "hall-1", "hall-2", "press-7"]),
            ({"state": "idle"}, ["hall-1", "press-7"]),
            ({"state": ["idle", "unknown"]}, ["away", "hall-1", "press-7"]),
            ({"state": "idle,maintenance mode"}, ["hall-1", "hall-2", "press-7"]),
            ({"queue": "a"}, ["away", "hall-1", "press-7"]),
            ({"queue": "b"}, ["away", "hall-2"]),
            ({"queue": "nobody's"}, ["away"]),
            ({"team": "print"}, ["press-7"]),
            ({"name": "hall-1"}, ["hall-1"]),
            ({"pattern": "hall-*"}, ["hall-1", "hall-2"]),
            ({"pattern": "*-[1-3]"}, ["hall-1", "hall-2"]),
            ({"version": "0.0.9"}, ["hall-1"]),
            ({"outdated": "true"}, ["hall-1"]),
            ({"outdated": "0"}, ["away", "hall-2", "press-7"]),
            ({"silent": "1"}, ["away"]),
            ({"silent": "False"}, ["hall-1", "hall-2", "press-7"]),
            ({"search": "HALL"}, ["hall-1", "hall-2"]),
            ({"search": "hall disk"}, ["hall-2"]),
            ({"search": "prin"}, ["press-7"]),
            ({"state": "idle", "queue": "a", "pattern": "h*"}, ["hall-1"]),
            ({"ordering": "-name"}, ["press-7", "hall-2", "hall-1", "away"]),
            ({"ordering": "state,-name"}, ["press-7", "hall-1", "hall-2", "away"]),
            ({"ordering": "-last_heartbeat"}, ["hall-1", "hall-2", "press-7", "away"]),
            ({"limit": 2}, ["away", "hall-1"]),
            ({"limit": 2, "offset": 2}, ["hall-2", "press-7"]),
            ({"offset": 9}, []),
            ({"format": "json", "name": "away"}, ["away"]),
        ],
    )
    def test_the_list_has_those_that_were_asked_for_in_the_order_that_was_asked_for(
        self, fleet: Fleet, make_worker: Make, query: dict[str, Any], names: list[str]
    ) -> None:
        make_worker("hall-1", queues=["a"], agent_version="0.0.9")
        make_worker(
            "hall-2", queues=["a"], queues_override=["b"], agent_version=__version__, heard_seconds_ago=1,
            requested_comment="new disk", state="maintenance mode", reported="maintenance",
        )  # fmt: skip
        make_worker("press-7", queues=["a", "b"], allowed_queues=["a"], team_name="print", heard_seconds_ago=2)
        make_worker("away", state="unknown", reported="running", heard_seconds_ago=900)
        assert fleet.names("workers/", **query) == names

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("sate=idle", "sate: There is no such parameter; did you mean state?"),
            ("que=a", "did you mean queue?"),
            ("xyz=1", "there are: limit, name, offset, ordering, outdated, pattern, queue, search, silent, state"),
            ("state=idel", "state: idel is none of starting, idle"),
            ("state=idle&state=away", "away is none of"),
            ("silent=yes", "silent: It is true or false."),
            ("outdated=2", "outdated: It is true or false."),
            ("queue=", "queue: It has no value"),
            ("state=", "state: It has no value"),
            ("queue=a&queue=b", "queue: It is given more than once."),
            ("search=a&search=b", "search: It is given more than once."),
            ("queue=a%00b", "queue"),
            ("pattern=[z-a]", "pattern"),
            ("ordering=nam", "did you mean name?"),
            ("ordering=name,id", "ordering"),
            ("ordering=requested_by", "ordering"),
            ("limit=0", "limit: It is a whole number from 1 to 1000."),
            ("limit=1001", "limit: It is a whole number from 1 to 1000."),
            ("limit=ten", "limit"),
            ("limit=-1", "limit"),
            ("offset=-1", "offset"),
            ("offset=" + "9" * 30, "offset"),
            ("cursor=x", "cursor: There is no such parameter"),
        ],
    )
    def test_what_is_not_understood_is_refused_and_never_taken_for_everything(
        self, fleet: Fleet, make_worker: Make, query: str, said: str
    ) -> None:
        make_worker()
        assert said in refused(fleet.get(f"workers/?{query}"), 400, "invalid_request")

    def test_a_row_takes_no_filters(self, fleet: Fleet, make_worker: Make) -> None:
        assert "no parameters" in refused(fleet.get(f"workers/{make_worker().pk}/?state=idle"), 400, "invalid_request")

    def test_pages_show_each_once_also_where_all_are_equal(self, fleet: Fleet, make_worker: Make) -> None:
        names = sorted(make_worker(f"w{number:02}").name for number in range(25))
        seen, address = [], f"{FLEET}workers/?ordering=-state&limit=10"
        while address:
            page = good(fleet.client.get(address))
            assert page["count"] == 25
            seen.append([row["name"] for row in page["results"]])
            address = page["next"]
        assert [len(page) for page in seen] == [10, 10, 5]
        assert sorted(chain(*seen)) == names
        assert good(fleet.client.get(good(fleet.client.get(f"{FLEET}workers/?limit=10&offset=20"))["previous"]))

    @pytest.mark.parametrize("address", ["0", "999999", "9" * 18, "9" * 19, "x", "-1", "1.5", "\u0661"])
    def test_who_does_not_exist_is_not_found(self, fleet: Fleet, address: str) -> None:
        refused(fleet.get(f"workers/{address}/"), 404, "not_found")
        refused(fleet.post(f"workers/{address}/exit_maintenance/"), 404, "not_found")

    @pytest.mark.parametrize("method", ["put", "patch", "delete"])
    def test_workers_are_changed_by_operations_alone(self, fleet: Fleet, make_worker: Make, method: str) -> None:
        worker = make_worker()
        for address in ("workers/", f"workers/{worker.pk}/"):
            answer = getattr(fleet.client, method)(FLEET + address, {"name": "x"}, format="json")
            refused(answer, 405, "method_not_allowed")
        assert fresh(worker).name == worker.name

    def test_the_list_costs_the_same_whatever_the_size_of_the_fleet(
        self, fleet: Fleet, make_worker: Make, make_job: Make
    ) -> None:
        make_job(worker=make_worker(agent_version="0.0.1"))
        few = cost(lambda: fleet.get("workers/", limit=1000))
        Worker.objects.bulk_create(
            Worker(name=f"w{number}", session=uuid.uuid4(), agent_version="0.0.1", queues=["a"])
            for number in range(1000)
        )
        for worker in Worker.objects.all()[:20]:
            make_job(worker=worker)
        assert cost(lambda: fleet.get("workers/", limit=1000)) == few <= 7
        filters = {"queue": "a", "outdated": "true", "silent": "false", "pattern": "w*", "search": "w", "limit": 1000}
        assert cost(lambda: fleet.get("workers/", **filters)) <= few + 1


CALLS: dict[str, dict[str, Any]] = {
    "request_maintenance": {"comment": "disk", "until": "2h"},
    "update_maintenance_comment": {"comment": "still"},
    "exit_maintenance": {},
    "shutdown_worker": {"comment": "move", "until": "2030-01-01T00:00:00Z"},
    "cancel_shutdown": {},
    "add_worker_queues": {"queues": ["x", "y/z"]},
    "remove_worker_queues": {"queues": ["a"]},
    "set_worker_queues": {"queues": ["x"]},
    "set_worker_concurrency": {"concurrency": 3},
    "revoke_token": {"comment": "stolen"},
    "remove_worker": {"comment": "sold"},
}


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day on which the moments above lie less than a year ahead."""
    monkeypatch.setattr(operations, "FURTHEST_AHEAD", timedelta(days=10_000))


class TestOperations:
    def test_every_operation_of_the_table_is_called_below(self) -> None:
        assert set(CALLS) == {operation.name for operation in operations.WORKERS}

    def made_for(self, name: str, make_worker: Make, **columns: Any) -> Worker:
        """A worker to which this can be done."""
        if name == "remove_worker":
            columns = {"state": "offline", "reported": "offline"} | columns
        worker: Worker = make_worker(queues=["a"], **columns)
        if name in ("update_maintenance_comment", "exit_maintenance"):
            wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        if name == "cancel_shutdown":
            wishes.shut_down([worker.pk], by=OPS)
        if name == "revoke_token":
            auth.issue(worker=worker, by=OPS)
        return worker

    def seen(self, pk: int) -> Any:
        """What an operation can change about a worker."""
        columns = ("requested", "requested_comment", "queues_override", "concurrency_override")
        row = Worker.objects.filter(pk=pk).values(*columns).first()
        until = Worker.objects.filter(pk=pk, requested_until__isnull=False).exists()
        tokens = [token.revoked_at is None for token in auth.WorkerToken.objects.filter(worker=pk)]
        changes = Change.objects.filter(subject_id=pk, subject_kind="worker").exclude(action="issue_token")
        return row, until, tokens, list(changes.values_list("action", "comment", "before", "after").order_by("id"))

    @pytest.mark.parametrize("name", CALLS)
    def test_one_worker_and_many_come_to_the_same_and_the_same_as_the_table_itself(
        self, at: None, fleet: Fleet, make_worker: Make, name: str
    ) -> None:
        one, many, plain = (self.made_for(name, make_worker) for _ in range(3))
        assert good(fleet.post(f"workers/{one.pk}/{name}/", **CALLS[name])) == {"done": [one.name], "skipped": []}
        body = {"names": [many.name], **CALLS[name]}
        assert good(fleet.post(f"workers/{name}/", **body)) == {"done": [many.name], "skipped": []}
        operation = next(each for each in operations.WORKERS if each.name == name)
        operation.run([plain.pk], by=OPS, **CALLS[name])
        expected = self.seen(plain.pk)
        for worker in (one, many):
            row, until, tokens, changes = self.seen(worker.pk)
            assert (row, until, tokens) == expected[:3]
            assert [change[:2] for change in changes] == [change[:2] for change in expected[3]]
        assert expected[3]

    @pytest.mark.parametrize("name", CALLS)
    def test_a_name_that_nobody_has_is_skipped_and_the_others_are_done(
        self, at: None, fleet: Fleet, make_worker: Make, name: str
    ) -> None:
        worker = self.made_for(name, make_worker)
        answer = good(fleet.post(f"workers/{name}/", names=["nobody", worker.name, "nobody"], **CALLS[name]))
        assert answer == {"done": [worker.name], "skipped": [{"name": "nobody", "why": "no such worker"}]}

    @pytest.mark.parametrize("name", CALLS)
    def test_a_misspelt_parameter_is_refused_and_nothing_is_done(
        self, at: None, fleet: Fleet, make_worker: Make, name: str
    ) -> None:
        worker = self.made_for(name, make_worker)
        before = self.seen(worker.pk)
        for address, body in ((f"workers/{worker.pk}/{name}/", {}), (f"workers/{name}/", {"names": [worker.name]})):
            said = refused(fleet.post(address, **body, **CALLS[name], coment="x"), 400, "invalid_request")
            assert said.startswith("coment: ")
            assert ("comment?" in said) is ("comment" in CALLS[name])
        assert self.seen(worker.pk) == before

    def test_a_worker_that_is_skipped_is_a_conflict_with_the_reason(self, fleet: Fleet, make_worker: Make) -> None:
        worker = make_worker("press-7")
        said = refused(fleet.post(f"workers/{worker.pk}/exit_maintenance/"), 409, "skipped")
        assert said == "press-7: it is not in maintenance"
        answer = good(fleet.post("workers/exit_maintenance/", names=["press-7"]))
        assert answer == {"done": [], "skipped": [{"name": "press-7", "why": "it is not in maintenance"}]}

    @pytest.mark.parametrize(
        ("name", "body", "column", "value"),
        [
            ("set_worker_queues", {"queues": ["a,b", " c "]}, "queues_override", ["a,b", "c"]),
            ("set_worker_queues", {"queues": "a, b"}, "queues_override", ["a", "b"]),
            ("set_worker_queues", {"queues": []}, "queues_override", None),
            ("set_worker_queues", {"queues": None}, "queues_override", None),
            ("set_worker_queues", {}, "queues_override", None),
            ("set_worker_concurrency", {"concurrency": 7}, "concurrency_override", 7),
            ("set_worker_concurrency", {"concurrency": "7"}, "concurrency_override", 7),
            ("set_worker_concurrency", {"concurrency": None}, "concurrency_override", None),
            ("set_worker_concurrency", {}, "concurrency_override", None),
            ("request_maintenance", {"comment": " disk "}, "requested_comment", "disk"),
            ("request_maintenance", {"comment": "disk", "until": None}, "requested_until", None),
            ("request_maintenance", {"comment": "disk", "until": ""}, "requested_until", None),
        ],
    )
    def test_parameters_have_the_natural_types_of_json_and_those_that_people_type(
        self, fleet: Fleet, make_worker: Make, name: str, body: dict[str, Any], column: str, value: Any
    ) -> None:
        worker = make_worker(queues_override=["z"], concurrency_override=9)
        good(fleet.post(f"workers/{worker.pk}/{name}/", **body))
        assert getattr(fresh(worker), column) == value

    @pytest.mark.parametrize(
        ("name", "body", "said"),
        [
            ("request_maintenance", {}, "comment: is needed"),
            ("request_maintenance", {"comment": None}, "comment: "),
            ("request_maintenance", {"comment": "  "}, "comment: is needed"),
            ("request_maintenance", {"comment": 5}, "comment: must be a text"),
            ("request_maintenance", {"comment": "x" * 1001}, "comment: has more than 1000"),
            ("request_maintenance", {"comment": "\ud800"}, "comment: "),
            ("request_maintenance", {"comment": "x", "until": "yesterday"}, "until: must be a span"),
            ("request_maintenance", {"comment": "x", "until": "2001-01-01"}, "until: lies in the past"),
            ("request_maintenance", {"comment": "x", "until": 90}, "until: must be a span"),
            ("add_worker_queues", {"queues": []}, "queues: is needed"),
            ("add_worker_queues", {"queues": [5]}, "queues: must be names"),
            ("add_worker_queues", {"queues": {"a": 1}}, "queues: must be names"),
            ("add_worker_queues", {"queues": ["a\0"]}, "queues: has a queue name"),
            ("set_worker_concurrency", {"concurrency": 0}, "concurrency: must be a whole number"),
            ("set_worker_concurrency", {"concurrency": True}, "concurrency: must be a whole number"),
            ("set_worker_concurrency", {"concurrency": [3]}, "concurrency: must be a whole number"),
        ],
    )
    def test_a_wrong_parameter_is_refused_by_its_name_and_nothing_is_done(
        self, fleet: Fleet, make_worker: Make, name: str, body: dict[str, Any], said: str
    ) -> None:
        worker = make_worker()
        before = self.seen(worker.pk)
        for address, names in ((f"workers/{worker.pk}/{name}/", {}), (f"workers/{name}/", {"names": [worker.name]})):
            assert refused(fleet.post(address, **body, **names), 400, "invalid_request").startswith(said)
        assert self.seen(worker.pk) == before

    @pytest.mark.parametrize(
        "names",
        [
            None,
            [],
            [""],
            "",
            " ",
            5,
            [5],
            {"a": 1},
            [None],
            [["a"]],
            ["\ud800"],
            [f"w{number}" for number in range(1001)],
        ],
    )
    def test_names_are_a_list_of_one_to_a_thousand(self, fleet: Fleet, names: Any) -> None:
        assert "names: " in refused(fleet.post("workers/exit_maintenance/", names=names), 400, "invalid_request")

    @pytest.mark.parametrize("body", [[], "text", 5, ["comment"]])
    def test_a_body_that_is_no_object_is_refused(self, fleet: Fleet, make_worker: Make, body: Any) -> None:
        worker = make_worker()
        for address in (f"workers/{worker.pk}/exit_maintenance/", "workers/exit_maintenance/"):
            refused(fleet.post(address, body), 400, "invalid_request")

    def test_a_body_that_is_no_json_is_refused(self, fleet: Fleet, make_worker: Make) -> None:
        answer = fleet.client.post(
            f"{FLEET}workers/{make_worker().pk}/request_maintenance/", b"{comment", content_type="application/json"
        )
        refused(answer, 400, "invalid_request")

    def test_an_operation_without_parameters_needs_no_body(self, fleet: Fleet, make_worker: Make) -> None:
        worker = make_worker()
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        good(fleet.client.post(f"{FLEET}workers/{worker.pk}/exit_maintenance/"))
        assert fresh(worker).requested == "active"

    def test_a_query_beside_the_body_is_refused(self, fleet: Fleet, make_worker: Make) -> None:
        address = f"workers/{make_worker().pk}/request_maintenance/?comment=x"
        refused(fleet.post(address, comment="disk"), 400, "invalid_request")

    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_final_slash_may_be_there_or_not(self, fleet: Fleet, make_worker: Make, slash: str) -> None:
        worker = make_worker()
        good(fleet.get(f"workers{slash}"))
        good(fleet.get(f"workers/{worker.pk}{slash}"))
        good(fleet.post(f"workers/{worker.pk}/request_maintenance{slash}", comment="disk"))
        good(fleet.post(f"workers/exit_maintenance{slash}", names=[worker.name]))
        good(fleet.post(f"enrolment-tokens{slash}", name="new"), 201)

    def test_names_with_any_printable_character_are_found(self, fleet: Fleet, make_worker: Make) -> None:
        names = ["a,b", "a/b", "Halle \u00dc \U0001f98a", 'quote"', "100%"]
        for name in names:
            make_worker(name)
        assert set(good(fleet.post("workers/request_maintenance/", names=names, comment="x"))["done"]) == set(names)

    def test_a_thousand_workers_are_a_few_statements(self, fleet: Fleet, make_worker: Make) -> None:
        make_worker("first")
        few = cost(lambda: fleet.post("workers/request_maintenance/", names=["first"], comment="x"))
        Worker.objects.bulk_create(Worker(name=f"w{number}", session=uuid.uuid4()) for number in range(1000))
        names = [f"w{number}" for number in range(1000)]
        answer: list[Any] = []

        def all_of_them() -> Any:
            answer.append(fleet.post("workers/request_maintenance/", names=names, comment="x"))
            return answer[0]

        assert cost(all_of_them) <= few + 5
        assert len(answer[0].json()["done"]) == 1000
        assert Change.objects.filter(action="request_maintenance").count() == 1001


class TestEnrolmentTokens:
    def test_the_text_is_shown_once_with_what_to_do_on_the_machine(self, fleet: Fleet) -> None:
        answer = fleet.post("enrolment-tokens/", name="press-7", queues=["a", "b/c"], team="print")
        made = good(answer, 201)
        assert answer["Cache-Control"] == "no-store"
        text = made.pop("enrolment_token")
        assert re.fullmatch(r"ece_[0-9a-f]{12}_[0-9a-f]{64}", text)
        commands = made.pop("commands")
        assert "python -m agent enrol --url http://testserver" in commands
        assert commands[-1] == "python -m agent run"
        assert text not in " ".join(commands)
        assert {name: made[name] for name in ("name", "queues", "team", "replace", "usable", "created_by")} == {
            "name": "press-7",
            "queues": ["a", "b/c"],
            "team": "print",
            "replace": False,
            "usable": True,
            "created_by": "maria",
        }
        secret = text.split("_")[2]
        for address in ("enrolment-tokens/", f"enrolment-tokens/{made['id']}/", "changes/"):
            assert secret not in fleet.get(address).content.decode()
        assert good(fleet.get(f"enrolment-tokens/{made['id']}/")) == made
        worker = enrolment.enrol(token=text, key="0" * 12, digest="0" * 64)
        after = good(fleet.get(f"enrolment-tokens/{made['id']}/"))
        assert after["worker"] == {"id": worker.pk, "name": "press-7"}
        assert after["usable"] is False
        assert (worker.allowed_queues, worker.team_name) == (["a", "b/c"], "print")

    def test_the_address_in_the_commands_is_the_public_one_if_there_is_one(
        self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from django.conf import settings

        monkeypatch.setattr(settings.EDGECONTROL, "public_url", "https://edge.example.com")
        made = good(fleet.post("enrolment-tokens/", name="press-7"), 201)
        assert "python -m agent enrol --url https://edge.example.com" in made["commands"]

    @pytest.mark.parametrize(
        ("said", "queues"),
        [({}, None), ({"queues": None}, None), ({"queues": []}, []), ({"queues": "a,b"}, ["a", "b"])],
    )
    def test_left_out_is_every_queue_and_an_empty_list_is_none(self, fleet: Fleet, said: Any, queues: Any) -> None:
        assert good(fleet.post("enrolment-tokens/", name="press-7", **said), 201)["queues"] == queues

    def test_it_is_valid_for_as_long_as_was_said(self, fleet: Fleet) -> None:
        for said, seconds in (({}, 900), ({"valid_for_seconds": 60}, 60), ({"valid_for_seconds": 604_800}, 604_800)):
            made = good(fleet.post("enrolment-tokens/", name="press-7", **said), 201)
            token = EnrolmentToken.objects.get(pk=made["id"])
            assert token.expires_at is not None
            assert (token.expires_at - token.created_at).total_seconds() == seconds

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({}, "name: "),
            ({"name": ""}, "name: "),
            ({"name": " a"}, "printable"),
            ({"name": "a\nb"}, "printable"),
            ({"name": "x" * 254}, "253"),
            ({"name": "\ud800"}, "name: "),
            ({"name": "a", "valid_for_seconds": 59}, "valid_for_seconds: "),
            ({"name": "a", "valid_for_seconds": 604_801}, "valid_for_seconds: "),
            ({"name": "a", "queue": ["x"]}, "queue: There is no such parameter; did you mean queues?"),
            ({"name": "a", "queues": [5]}, "queues: must be names"),
            ({"name": "a", "team": "\0"}, "team: "),
            ({"name": "a", "replace": "perhaps"}, "replace: "),
        ],
    )
    def test_a_wrong_request_is_refused_and_makes_nothing(self, fleet: Fleet, body: Any, said: str) -> None:
        assert said in refused(fleet.post("enrolment-tokens/", **body), 400, "invalid_request")
        assert not EnrolmentToken.objects.exists()

    def test_a_name_that_is_taken_is_a_conflict_unless_the_machine_was_set_up_anew(
        self, fleet: Fleet, make_worker: Make
    ) -> None:
        make_worker("press-7", allowed_queues=["a"], team_name="print")
        refused(fleet.post("enrolment-tokens/", name="press-7"), 409, "name_taken")
        made = good(fleet.post("enrolment-tokens/", name="press-7", replace=True), 201)
        assert (made["replace"], made["queues"], made["team"]) == (True, ["a"], "print")
        said = refused(fleet.post("enrolment-tokens/", name="press-7", replace=True, team="x"), 400, "invalid_request")
        assert "keeps" in said

    def test_only_who_may_revoke_tokens_may_replace_a_worker(self, fleet: Fleet, make_worker: Make) -> None:
        make_worker("press-7")
        caller = Fleet(member("operator"))
        refused(caller.post("enrolment-tokens/", name="press-7", replace=True), 403, "not_allowed")
        assert not EnrolmentToken.objects.exists()
        good(caller.post("enrolment-tokens/", name="press-8"), 201)

    def test_a_token_that_nobody_has_used_can_be_revoked_once(self, fleet: Fleet) -> None:
        first, second = (good(fleet.post("enrolment-tokens/", name=name), 201) for name in ("a", "b"))
        address = f"enrolment-tokens/{first['id']}/revoke_enrolment_token/"
        assert good(fleet.post(address)) == {"done": [first["key"]], "skipped": []}
        assert "revoked already" in refused(fleet.post(address), 409, "skipped")
        keys = [first["key"], second["key"], "f" * 12]
        assert good(fleet.post("enrolment-tokens/revoke_enrolment_token/", names=keys)) == {
            "done": [second["key"]],
            "skipped": [
                {"name": first["key"], "why": "it is revoked already"},
                {"name": "f" * 12, "why": "no such enrolment token"},
            ],
        }
        with pytest.raises(enrolment.BadEnrolmentToken):
            enrolment.enrol(token=second["enrolment_token"], key="0" * 12, digest="0" * 64)

    def test_the_list_tells_what_can_still_be_used(self, fleet: Fleet, long_ago: Make) -> None:
        for name in ("usable", "used", "revoked", "expired"):
            good(fleet.post("enrolment-tokens/", name=name), 201)
        rows = {token.name: token for token in EnrolmentToken.objects.all()}
        EnrolmentToken.objects.filter(name="used").update(used_at=timezone.now())
        enrolment.revoke([rows["revoked"].pk], by=OPS)
        long_ago(rows["expired"], expires_at=1)
        assert fleet.names("enrolment-tokens/", usable="true") == ["usable"]
        assert set(fleet.names("enrolment-tokens/", usable="false")) == {"used", "revoked", "expired"}
        assert fleet.names("enrolment-tokens/", name="used") == ["used"]
        assert fleet.names("enrolment-tokens/") == ["expired", "revoked", "used", "usable"]
        few = cost(lambda: fleet.get("enrolment-tokens/"))
        for number in range(30):
            good(fleet.post("enrolment-tokens/", name=f"m{number}"), 201)
        assert cost(lambda: fleet.get("enrolment-tokens/")) == few <= 6


class TestChanges:
    def make(self, **columns: Any) -> Change:
        filled = {
            "actor_kind": "person",
            "actor": "maria",
            "action": "pause_queue",
            "subject_kind": "queue",
            "subject_id": "a",
            "subject": "a",
        }
        return Change.objects.create(**filled | columns)

    def test_a_change_is_shown_with_what_it_was_before(self, fleet: Fleet, make_worker: Make) -> None:
        worker = make_worker("press-7")
        wishes.set_concurrency([worker.pk], by=OPS, concurrency=3)
        change = good(fleet.get("changes/", action="set_worker_concurrency"))["results"][0]
        at = change.pop("at")
        assert at.endswith("Z")
        assert change == {
            "id": Change.objects.get(action="set_worker_concurrency").pk,
            "actor_kind": "person",
            "actor": "ops",
            "origin": "127.0.0.1",
            "action": "set_worker_concurrency",
            "kind": "worker",
            "subject_id": str(worker.pk),
            "subject": "press-7",
            "before": {"concurrency_override": None},
            "after": {"concurrency_override": 3},
            "comment": "",
        }
        assert good(fleet.get(f"changes/{change['id']}/")) == {**change, "at": at}

    @pytest.mark.parametrize(
        ("query", "comments"),
        [
            ({"kind": "queue"}, ["3", "2", "1"]),
            ({"actor": "otto"}, ["2"]),
            ({"actor_kind": "machine"}, ["4"]),
            ({"actor_kind": ["machine", "command"]}, ["4", "3"]),
            ({"action": "resume_queue"}, ["2"]),
            ({"subject": "b"}, ["3"]),
            ({"subject_id": "17"}, ["4"]),
            ({"search": "PRESS"}, ["4"]),
            ({"ordering": "id", "kind": "queue"}, ["1", "2", "3"]),
        ],
    )
    def test_the_list_is_newest_first_and_has_what_was_asked_for(
        self, fleet: Fleet, query: dict[str, Any], comments: list[str]
    ) -> None:
        self.make(comment="1")
        self.make(comment="2", actor="otto", action="resume_queue")
        self.make(comment="3", subject="b", actor_kind="command")
        self.make(comment="4", subject_kind="worker", subject_id="17", subject="press-7", actor_kind="machine")
        assert [row["comment"] for row in good(fleet.get("changes/", **query))["results"]] == comments

    def test_a_span_of_time_has_its_first_moment_and_not_its_last(self, fleet: Fleet) -> None:
        day = timezone.now().replace(microsecond=0)
        moments = [day - timedelta(hours=hours) for hours in (3, 2, 1)]
        for moment in moments:
            self.make(at=moment, comment=moment.isoformat())
        query = {"after": moments[1].isoformat(), "before": moments[2].isoformat(), "kind": "queue"}
        assert [row["comment"] for row in good(fleet.get("changes/", **query))["results"]] == [moments[1].isoformat()]

    @pytest.mark.parametrize(
        "query", ["after=soon", "before=2026-13-01", "at=now", "ordering=actor", "cursor=x", "kind=wrker"]
    )
    def test_what_is_not_understood_is_refused(self, fleet: Fleet, query: str) -> None:
        refused(fleet.get(f"changes/?{query}"), 400, "invalid_request")

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
    def test_the_record_is_only_read(self, fleet: Fleet, method: str) -> None:
        change = self.make()
        for address in ("changes/", f"changes/{change.pk}/"):
            refused(getattr(fleet.client, method)(FLEET + address, {}, format="json"), 405, "method_not_allowed")

    def test_pages_do_not_shift_while_it_grows(self, fleet: Fleet) -> None:
        for number in range(25):
            self.make(comment=str(number))
        first = good(fleet.get("changes/", kind="queue", limit=10))
        self.make(comment="new")
        second = good(fleet.client.get(first["next"]))
        third = good(fleet.client.get(second["next"]))
        seen = [[int(row["comment"]) for row in page["results"]] for page in (first, second, third)]
        assert list(chain(*seen)) == list(range(24, -1, -1))
        assert third["next"] is None
        back = good(fleet.client.get(third["previous"]))
        assert back["results"] == second["results"]
        newest = good(fleet.client.get(good(fleet.client.get(back["previous"]))["previous"]))
        assert [row["comment"] for row in newest["results"]] == ["new"]
        assert newest["previous"] is None


class TestBrowser:
    """The browsable API: the same endpoints as pages."""

    def page(self, answer: Any, status: int = 200) -> str:
        assert answer.status_code == status, answer.content[:500]
        assert answer["Content-Type"].startswith("text/html")
        return str(answer.content.decode())

    @pytest.mark.parametrize("address", ["", "workers", "jobs", "queues", "enrolment-tokens", "changes"])
    def test_every_list_is_a_page_that_loads_nothing_from_elsewhere(
        self, browser: Client, make_worker: Make, make_job: Make, address: str
    ) -> None:
        make_job(worker=make_worker("press-7"))
        page = self.page(browser.get(FLEET + address))
        assert "EdgeControl" in page
        assert not re.findall(r'(?:src|href)="https?://(?!testserver)', page)

    def test_the_filters_are_a_form_whose_empty_fields_mean_nothing(self, browser: Client, make_worker: Make) -> None:
        make_worker("press-7")
        make_worker("hall-1", state="running", reported="running")
        page = self.page(browser.get(f"{FLEET}workers/"))
        for name in ("state", "queue", "pattern", "silent", "search"):
            assert f'name="{name}"' in page
        assert "invalid name" not in page
        filled = self.page(browser.get(f"{FLEET}workers/?state=running&queue=&team=&name=&pattern=&silent=&outdated="))
        assert "hall-1" in filled
        assert "press-7" not in filled

    @pytest.mark.parametrize("operation", operations.WORKERS, ids=lambda operation: operation.name)
    def test_every_operation_shows_a_form_with_its_parameters(
        self, browser: Client, make_worker: Make, operation: operations.Operation
    ) -> None:
        worker = make_worker("press-7")
        fields = {parameter.name for parameter in operation.parameters}
        for address, names in (
            (f"workers/{worker.pk}/{operation.name}", set()),
            (f"workers/{operation.name}", {"names"}),
        ):
            page = self.page(browser.get(FLEET + address), 405)
            assert "Possible: POST" in page
            shown = set(re.findall(r'<(?:input|textarea|select)[^>]*\sname="(\w+)"', page))
            assert shown - {"csrfmiddlewaretoken", "_content_type", "_content"} == fields | names
            for parameter in operation.parameters:
                assert parameter.help in page

    def test_a_form_does_it(self, browser: Client, make_worker: Make) -> None:
        worker, other = make_worker("press-7", queues=["z"]), make_worker("hall, 1", queues=["z"])
        page = self.page(
            browser.post(f"{FLEET}workers/{worker.pk}/request_maintenance", {"comment": "disk", "until": ""})
        )
        assert "press-7" in page
        assert 'name="comment"' in page
        assert "not currently supported" not in page
        assert fresh(worker).requested_comment == "disk"
        form = {"names": "press-7\r\nhall, 1\r\nnobody", "queues": "a, b"}
        page = self.page(browser.post(f"{FLEET}workers/add_worker_queues", form))
        assert "no such worker" in page
        assert [fresh(each).queues_override for each in (worker, other)] == [["z", "a", "b"]] * 2

    def test_a_form_that_is_wrong_says_why_and_keeps_what_was_typed(self, browser: Client, make_worker: Make) -> None:
        worker = make_worker()
        for address, names in (
            (f"workers/{worker.pk}/request_maintenance", {}),
            ("workers/request_maintenance", {"names": f"{worker.name}\r\nnobody"}),
        ):
            page = self.page(browser.post(FLEET + address, {"comment": "new disk", "until": "whenever", **names}), 400)
            assert page.count("must be a span") >= 2
            assert "new disk" in page
            assert 'value="whenever"' in page
            assert (f"{worker.name}\r\nnobody" in page) is bool(names)
        page = self.page(browser.post(f"{FLEET}workers/{worker.pk}/request_maintenance", {"comment": ""}), 400)
        assert "is needed" in page

    def test_what_may_not_be_done_shows_no_form(self, http: None, make_worker: Make) -> None:
        client = Client(headers={"Accept": "text/html"})
        client.force_login(member("viewer"))
        page = self.page(client.get(f"{FLEET}workers/{make_worker().pk}/shutdown_worker"), 403)
        assert 'name="comment"' not in page

    def test_the_page_of_a_new_token_shows_it_once(self, browser: Client) -> None:
        page = self.page(browser.post(f"{FLEET}enrolment-tokens", {"name": "press-7", "queues": "a,b"}), 201)
        assert re.search(r"ece_[0-9a-f]{12}_[0-9a-f]{64}", page)
        assert EnrolmentToken.objects.get().allowed_queues == ["a", "b"]

    def test_whoever_is_not_logged_in_is_shown_the_way(self, http: None) -> None:
        page = self.page(Client(headers={"Accept": "text/html"}).get(f"{FLEET}workers/"), 401)
        assert f"/api/v1/session/login?next={FLEET}workers/" in page
        assert self.page(Client().get("/api/v1/session/login"))
