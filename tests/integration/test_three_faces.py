"""The admin, the operator API and the commands do the same and write the same record, for every operation there is.

Each test is made once for each operation of the tables, so an operation without a case here fails.
"""

from __future__ import annotations

import getpass
import html
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.utils import quote
from django.db.models import Model
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from jobs_app import operations as jobs_operations
from jobs_app.models import Job, Queue
from tests.integration.commandline import manage
from tests.integration.people import OPS
from workers_app import auth, enrolment, operations
from workers_app.management.endings import Code
from workers_app.models import Change, EnrolmentToken, Worker
from workers_app.operations import Kind, Operation, Parameter

Make = Callable[..., Any]

TOMORROW = f"{timezone.now() + timedelta(days=1):%Y-%m-%d %H:%M}"
#: What each kind of parameter cannot be.
WRONG = {Kind.COMMENT: "x" * 1001, Kind.QUEUES: "q" * 257, Kind.SLOTS: "0", Kind.MOMENT: "soon"}
#: What makes it this subject and no other.
OWN = {"id", "name", "key", "digest", "airflow_id", "dag_id", "session", "worker_id", "last_heartbeat"}
#: Who asked and when: only whether it is there can be the same.
WHO_AND_WHEN = re.compile(r"\w+_(at|by)")


class Subjects:
    """How subjects of one table are made, and how each face calls them."""

    table: Sequence[Operation]
    model: type[Model]
    #: In the API's addresses.
    path: str

    def make(self, name: str, **columns: Any) -> Any:
        raise NotImplementedError

    def name(self, subject: Any) -> str:
        """In the bulk requests of the API, and on the command line."""
        return str(subject.name)

    def in_bulk(self, name: str) -> list[str]:
        """The command's way of choosing all whose name begins like this."""
        return ["--pattern", f"{name}*"]

    #: Whether that leaves out what would be skipped.
    only_what_can_be_done = False


class Workers(Subjects):
    table, model, path = operations.WORKERS, Worker, "workers"

    def __init__(self, make_worker: Make) -> None:
        self._make = make_worker

    def make(self, name: str, *, tokens: int = 1, **columns: Any) -> Worker:
        worker: Worker = self._make(name, session=None, **columns)
        for _ in range(tokens):
            auth.issue(worker=worker, by=OPS)
        return worker


class Queues(Subjects):
    table, model, path = jobs_operations.QUEUES, Queue, "queues"

    def make(self, name: str, **columns: Any) -> Queue:
        return Queue.objects.create(name=name, **columns)


class Jobs(Subjects):
    table, model, path = jobs_operations.JOBS, Job, "jobs"
    only_what_can_be_done = True

    def __init__(self, make_job: Make, make_worker: Make) -> None:
        self._make, self._make_worker = make_job, make_worker

    def make(self, name: str, *, held: bool = False, **columns: Any) -> Job:
        holder = {"worker": self._make_worker()} if held else {}
        job: Job = self._make(dag_id=re.sub("-[12]$", "", name), **holder, **columns)
        return job

    def name(self, subject: Job) -> str:
        return str(subject.pk)

    def in_bulk(self, name: str) -> list[str]:
        return ["--dag", name.rstrip("-")]


class EnrolmentTokens(Subjects):
    table, model, path = operations.ENROLMENTS, EnrolmentToken, "enrolment-tokens"
    only_what_can_be_done = True

    def make(self, name: str, *, revoked: bool = False) -> EnrolmentToken:
        token, _ = enrolment.create(name=re.sub("-[12]$", "", name), by=OPS)
        if revoked:
            enrolment.revoke([token.pk], by=OPS)
        return token

    def name(self, subject: EnrolmentToken) -> str:
        return subject.key

    def in_bulk(self, name: str) -> list[str]:
        return ["--machine", name.rstrip("-")]


KINDS = (Workers, Queues, Jobs, EnrolmentTokens)


@dataclass(frozen=True)
class Case:
    """Parameters for an operation, a subject that it is done to, and one for which it is skipped."""

    given: Mapping[str, str] = field(default_factory=dict)
    subject: Mapping[str, Any] = field(default_factory=dict)
    #: None: it is never skipped.
    skipped: Mapping[str, Any] | None = None


_RESTS = {
    "requested": "maintenance",
    "requested_comment": "old",
    "reported": "maintenance",
    "state": "maintenance mode",
}
_LEAVES = {"requested": "shutdown", "reported": "terminating", "state": "terminating"}
_GONE = {"reported": "offline", "state": "offline"}
CASES = {
    "request_maintenance": Case({"comment": "disk, new", "until": TOMORROW}),
    "update_maintenance_comment": Case({"comment": "new"}, subject=_RESTS, skipped={}),
    "exit_maintenance": Case(subject=_RESTS, skipped={}),
    "shutdown_worker": Case({"comment": "power cut", "until": TOMORROW}, skipped=_GONE),
    "cancel_shutdown": Case(subject=_LEAVES, skipped={}),
    "add_worker_queues": Case({"queues": "b, a"}, subject={"queues": ["c"]}, skipped={"queues": None}),
    "remove_worker_queues": Case({"queues": "b,a"}, subject={"queues": ["a", "c"]}, skipped={"queues": ["c"]}),
    "set_worker_queues": Case({"queues": "b,a"}, skipped={"queues_override": ["b", "a"]}),
    "set_worker_concurrency": Case({"concurrency": "3"}, skipped={"concurrency_override": 3}),
    "revoke_token": Case({"comment": "stolen"}, subject={"tokens": 2}, skipped={"tokens": 0}),
    "remove_worker": Case({"comment": "scrapped"}, subject=_GONE, skipped={}),
    "pause_queue": Case({"comment": "paint"}, skipped={"paused": True, "pause_comment": "paint"}),
    "resume_queue": Case({"comment": "dry"}, subject={"paused": True, "pause_comment": "paint"}, skipped={}),
    "set_queue_concurrency": Case({"concurrency": "3"}, skipped={"concurrency_limit": 3}),
    "revoke_job": Case({"comment": "wrong month"}, subject={"held": True}, skipped={"state": "success"}),
    "revoke_enrolment_token": Case(skipped={"revoked": True}),
}
#: Kind, name and origin of whoever did it, by the face.
WHO = {
    "admin": ("person", "ops", "127.0.0.1"),
    "API": ("person", "ops", "127.0.0.1"),
    "command": ("command", getpass.getuser(), platform.node()),
}
EVERY = [(kind, operation) for kind in KINDS for operation in kind.table]
SKIPPABLE = [given for given in EVERY if CASES[given[1].name].skipped is not None]
PARAMETERS = [(kind, operation, parameter) for kind, operation in EVERY for parameter in operation.parameters]
NEEDED = [given for given in PARAMETERS if given[2].required]


def of(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    return {"argvalues": rows, "ids": ["-".join(part.name for part in row[1:]) for row in rows]}


@pytest.fixture
def api(http: None, ops: Client) -> APIClient:
    """A superuser's script, with the same login as the browser of `ops`."""
    from django.contrib.auth.models import User

    from workers_app import personal_tokens

    _, text = personal_tokens.issue(user=User.objects.get(username="ops"), name="script", by=OPS)
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    return client


@dataclass(frozen=True)
class Said:
    """What one face said of the operation, whom it was about, and what it left in the record."""

    way: str
    text: str
    keys: list[Any]
    changes: list[Change]


class Faces:
    """Does one operation to subjects through each face. Every way returns what that face said of it."""

    def __init__(self, ops: Client, api: APIClient, subjects: Subjects, operation: Operation) -> None:
        self.ops, self.api, self.subjects, self.operation = ops, api, subjects, operation
        self.all_can_be_done = True
        self.place = f"admin:{subjects.model._meta.app_label}_{subjects.model._meta.model_name}_{operation.name}"
        self.ways: dict[str, Callable[[list[Any], str, Mapping[str, str]], str]] = {
            "admin, one": self.admin_one,
            "admin, many": self.admin_many,
            "API, one": self.api_one,
            "API, many": self.api_many,
            "command, one": self.command_one,
            "command, many": self.command_many,
        }

    def admin_one(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        return self._page(self.ops.post(reverse(self.place, args=[quote(chosen[0].pk)]), given, follow=True))

    def admin_many(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        changelist = self.place.removesuffix(self.operation.name) + "changelist"
        form = {"action": self.operation.name, "_selected_action": [subject.pk for subject in chosen]}
        page = self.ops.post(reverse(changelist), form).content.decode()
        # The confirmation names what it will send.
        found = re.search(r'name="_chosen"\s+value="([^"]*)"', page)
        assert found, page[:500]
        form = {"_chosen": html.unescape(found[1]), "all_of_them": "on", **given}
        return self._page(self.ops.post(reverse(f"{self.place}_chosen"), form, follow=True))

    @staticmethod
    def _page(answer: Any) -> str:
        assert answer.status_code == 200, answer.content[:500]
        return " ".join(html.unescape(answer.content.decode()).split())

    def api_one(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        return self._post(f"{chosen[0].pk}/{self.operation.name}/", given, 409)

    def api_many(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        names = [self.subjects.name(subject) for subject in chosen]
        return self._post(f"{self.operation.name}/", {"names": names, **given}, 200)

    def _post(self, path: str, body: Any, skipped: int) -> str:
        answer = self.api.post(f"/api/v1/fleet/{self.subjects.path}/{path}", body, format="json")
        assert answer.status_code in (200, 400, skipped), answer.content[:500]
        return json.dumps(answer.json(), ensure_ascii=False)

    def command_one(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        return self._run([self.subjects.name(chosen[0])], given)

    def command_many(self, chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        if self.subjects.only_what_can_be_done and not self.all_can_be_done:
            return self._run([self.subjects.name(subject) for subject in chosen], given)
        return self._run([*self.subjects.in_bulk(name), "--yes"], given)

    def _run(self, choice: list[str], given: Mapping[str, str]) -> str:
        flags = [part for name, text in given.items() for part in (f"--{name}", text)]
        ran = manage(self.operation.name, *choice, *flags)
        assert ran.code in (Code.DONE, Code.SKIPPED, Code.WRONG_USAGE), ran
        return " ".join((ran.out + ran.err).split())

    def each(self, columns: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Said]:
        """Make subjects with these columns for each way, one or (where many are chosen) two, and go it."""
        for letter, (way, act) in zip("abcdef", self.ways.items(), strict=True):
            numbers = (1, 2) if "many" in way else (1,)
            chosen = [self.subjects.make(f"{letter}-{number}", **columns) for number in numbers]
            keys = [subject.pk for subject in chosen]
            older = list(Change.objects.values_list("pk", flat=True))
            text = act(chosen, f"{letter}-", given)
            changes = list(Change.objects.filter(action=self.operation.name).exclude(pk__in=older).order_by("pk"))
            yield Said(way, text, keys, changes)


@pytest.fixture
def faces(ops: Client, api: APIClient, make_worker: Make, make_job: Make) -> Callable[..., Faces]:
    def faces(kind: type[Subjects], operation: Operation) -> Faces:
        makers: dict[type[Subjects], Callable[[], Subjects]] = {
            Workers: lambda: Workers(make_worker),
            Jobs: lambda: Jobs(make_job, make_worker),
        }
        return Faces(ops, api, makers.get(kind, kind)(), operation)

    return faces


def row(model: type[Model], pk: Any) -> dict[str, Any] | None:
    """What is left of it in the table, apart from what is its own."""
    values = model._default_manager.filter(pk=pk).values().first()
    if values is None:
        return None
    return {
        name: bool(value) if WHO_AND_WHEN.fullmatch(name) else _anonymous(value)
        for name, value in values.items()
        if name not in OWN
    }


def _anonymous(value: Any) -> Any:
    """A reason names who asked."""
    return re.sub(rf"\b({re.escape(getpass.getuser())}|ops)\b", "somebody", value) if isinstance(value, str) else value


def entry(change: Change) -> dict[str, Any]:
    """What stands in the record, apart from whose and when."""
    # Each token has a key of its own.
    before = {name: len(value) if name == "tokens" else value for name, value in change.before.items()}
    return {"kind": change.subject_kind, "before": before, "after": change.after, "comment": change.comment}


def test_every_operation_has_a_case_and_every_case_an_operation() -> None:
    assert set(CASES) == {operation.name for _, operation in EVERY}
    modules = (operations, jobs_operations)
    there = [value for module in modules for value in vars(module).values() if isinstance(value, Operation)]
    assert {operation.name for operation in there} == set(CASES)


@pytest.mark.parametrize(("kind", "operation"), **of(EVERY))
def test_each_face_does_the_same_and_leaves_the_same_record_of_who_did_it(
    faces: Callable[..., Faces], kind: type[Subjects], operation: Operation
) -> None:
    case = CASES[operation.name]
    untouched = row(kind.model, faces(kind, operation).subjects.make("untouched", **case.subject).pk)
    results = []
    for said in faces(kind, operation).each(case.subject, case.given):
        # Jobs are locked, and so recorded, in the order of their ids.
        changes = {change.subject_id: change for change in said.changes}
        assert changes.keys() == {str(key) for key in said.keys}, said.way
        for change in said.changes:
            assert (change.actor_kind, change.actor, change.origin) == WHO[said.way.split(",")[0]], said.way
        results += [(said.way, row(kind.model, key), entry(changes[str(key)])) for key in said.keys]
    _, *first = results[0]
    assert first[0] != untouched
    for way, *result in results:
        assert result == first, way
    assert len(results) == 9


@pytest.mark.parametrize(("kind", "operation"), **of(SKIPPABLE))
def test_each_face_gives_the_same_reason_for_skipping(
    faces: Callable[..., Faces], kind: type[Subjects], operation: Operation
) -> None:
    case, here = CASES[operation.name], faces(kind, operation)
    columns = case.skipped or {}
    here.all_can_be_done = False
    ((_, why),) = operation.run([here.subjects.make("probe-1", **columns).pk], by=OPS, **case.given).skipped
    for said in here.each(columns, case.given):
        assert why in said.text, said.way
        assert said.changes == [], said.way


def say_the_same(faces: Faces, parameter: Parameter, value: str) -> None:
    """Insist that nobody takes this value, and that all say so in the same words."""
    case = CASES[faces.operation.name]
    with pytest.raises(operations.InvalidParameter) as invalid:
        parameter.read(value)
    for said in faces.each(case.subject, {**case.given, parameter.name: value}):
        assert invalid.value.detail in said.text, said.way
        assert parameter.name in said.text.lower(), said.way
        assert said.changes == [], said.way


@pytest.mark.parametrize(("kind", "operation", "parameter"), **of(PARAMETERS))
def test_each_face_says_the_same_of_what_it_cannot_read_and_does_nothing(
    faces: Callable[..., Faces], kind: type[Subjects], operation: Operation, parameter: Parameter
) -> None:
    say_the_same(faces(kind, operation), parameter, WRONG[parameter.kind])


@pytest.mark.parametrize(("kind", "operation", "parameter"), **of(NEEDED))
def test_each_face_says_the_same_of_what_is_missing_and_does_nothing(
    faces: Callable[..., Faces], kind: type[Subjects], operation: Operation, parameter: Parameter
) -> None:
    say_the_same(faces(kind, operation), parameter, "")


class TestEnrolmentTokens:
    """Made by a form, a request or a command of their own."""

    @staticmethod
    def admin(ops: Client, api: APIClient, name: str, **said: Any) -> str:
        form = {"name": name, "queues": ",".join(said.get("queues", [])), "team_name": said.get("team", "")}
        form |= {"replace": "on"} if said.get("replace") else {}
        answer = ops.post(reverse("admin:connect_machine"), form, follow=True)
        return html.unescape(answer.content.decode())

    @staticmethod
    def api(ops: Client, api: APIClient, name: str, **said: Any) -> str:
        return json.dumps(api.post("/api/v1/fleet/enrolment-tokens/", {"name": name, **said}, format="json").json())

    @staticmethod
    def command(ops: Client, api: APIClient, name: str, **said: Any) -> str:
        flags = ["--queues", ",".join(said["queues"])] if "queues" in said else []
        flags += ["--team", said["team"]] if "team" in said else []
        ran = manage("create_enrolment_token", name, *flags, *(["--replace"] if said.get("replace") else []))
        return ran.out + ran.err

    WAYS = (admin, api, command)

    @pytest.mark.parametrize(
        "said", [{}, {"queues": ["b", "a"]}, {"queues": ["a"], "team": "red"}, {"replace": True}], ids=str
    )
    def test_each_face_makes_the_same_token_and_leaves_the_same_record(
        self, ops: Client, api: APIClient, make_worker: Make, said: dict[str, Any]
    ) -> None:
        made = []
        for number, way in enumerate(self.WAYS):
            if said.get("replace"):
                make_worker(f"press-{number}", allowed_queues=["floor"], team_name="blue")
            text = way(ops, api, f"press-{number}", **said)
            token = EnrolmentToken.objects.get(name=f"press-{number}")
            change = Change.objects.get(action="create_enrolment_token", subject_id=str(token.pk))
            assert change.after.pop("expires_at")
            assert token.expires_at is not None
            lives = round((token.expires_at - token.created_at) / timedelta(minutes=1))
            made.append((row(EnrolmentToken, token.pk), lives, entry(change)))
            shown = re.findall(rf"ece_{token.key}_[0-9a-f]{{64}}", text)
            assert len(set(shown)) == 1
            assert enrolment.enrol(token=shown[0], key=f"{number:012x}", digest="0" * 64).name == f"press-{number}"
        assert made[0] == made[1] == made[2]

    @pytest.mark.parametrize(
        ("name", "said", "refusal"),
        [
            ("press-7", {}, "A worker named 'press-7' exists already"),
            ("press-7", {"replace": True, "queues": ["a"]}, "keeps its queues and its team"),
            ("line\tbreak", {}, "A worker's name has 1 to 253 printable characters"),
            ("x" * 254, {}, "A worker's name has 1 to 253 printable characters"),
            ("press-8", {"queues": ["q" * 257]}, "has a queue name of more than 256 characters"),
        ],
        ids=lambda value: value[:10] if isinstance(value, str) else "",
    )
    def test_each_face_refuses_in_the_same_words(
        self, ops: Client, api: APIClient, make_worker: Make, name: str, said: dict[str, Any], refusal: str
    ) -> None:
        make_worker("press-7")
        for way in self.WAYS:
            assert refusal in way(ops, api, name, **said), way
        assert not EnrolmentToken.objects.exists()


class TestLists:
    """The command's JSON is that of the API, without addresses."""

    @staticmethod
    def results(api: APIClient, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.get(f"/api/v1/fleet/{path}/").json()["results"]
        return found

    def test_worker_hosts(self, api: APIClient, make_worker: Make, make_job: Make) -> None:
        busy = make_worker("a", queues=["x"], queues_override=["y"], sysinfo={"cpus": 4}, concurrency_override=3)
        make_worker("b", state="unknown", agent_version="0.0.1", requested="maintenance", requested_comment="disk")
        make_job(worker=busy, slots=2)
        assert manage("list_workers", "--json").json == self.results(api, "workers")

    def test_jobs(self, api: APIClient, make_worker: Make, make_job: Make) -> None:
        make_job(queue="nowhere")
        make_job(worker=make_worker(), slots=2)
        make_job(state="failed", reason="exit code 1", exit_code=1)
        expected = [{name: value for name, value in job.items() if name != "logs"} for job in self.results(api, "jobs")]
        listed = manage("list_jobs", "--json").json
        assert [{name: job[name] for name in listed[0]} for job in expected] == listed
        assert set(expected[0]) - set(listed[0]) == {"claim_id", "dispatcher", "log_missing"}
