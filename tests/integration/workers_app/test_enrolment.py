"""How a machine becomes a worker: once for each token, whoever else tries, and again when an answer was lost."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from rest_framework.test import APIClient

from tests.integration.fleet import good, refused
from tests.integration.people import OPS
from workers_app import auth, enrolment, registry, wishes
from workers_app.agent_file import AgentFile
from workers_app.enrolment import BadEnrolmentToken, InvalidValidity, InvalidWorkerToken, KeepsItsOwn
from workers_app.errors import Refusal
from workers_app.models import Change, EnrolmentToken, Worker, WorkerToken
from workers_app.registry import InvalidName, NameTaken

Make = Callable[..., Any]
ENROL = "/api/v1/edge/workers/enrol"


class Machine:
    """What a new machine does: it mints its own token and shows only the digest."""

    def __init__(self) -> None:
        self.key, self.secret = secrets.token_hex(6), secrets.token_hex(32)
        self.digest = hashlib.sha256(self.secret.encode()).hexdigest()
        self.token = f"ec_{self.key}_{self.secret}"

    def enrol(self, text: str, **said: Any) -> Worker:
        return enrolment.enrol(**{"token": text, "key": self.key, "digest": self.digest, "origin": "10.0.0.7"} | said)

    def call(self, text: str, **said: Any) -> Any:
        body = {"enrolment_token": text, "key": self.key, "digest": self.digest} | said
        return APIClient(raise_request_exception=False).post(ENROL, body, format="json")


@pytest.fixture
def machine() -> Machine:
    return Machine()


def made(name: str = "press-7", **said: Any) -> tuple[EnrolmentToken, str]:
    return enrolment.create(name=name, by=OPS, **said)


class TestCreate:
    def test_it_is_for_one_machine_and_lasts_a_quarter_of_an_hour(self, db: None) -> None:
        token, text = made(allowed_queues=["a"], team_name="print")
        assert text == f"ece_{token.key}_{text.split('_')[2]}"
        assert (token.name, token.allowed_queues, token.team_name) == ("press-7", ["a"], "print")
        assert (token.created_by, token.replace, token.worker_id) == ("ops", False, None)
        assert token.expires_at is not None
        assert token.expires_at - token.created_at == timedelta(minutes=15)

    @pytest.mark.parametrize("seconds", [0, -60, 59.9, 7 * 24 * 3600 + 1])
    def test_a_life_of_no_time_or_of_ages_is_refused(self, db: None, seconds: float) -> None:
        with pytest.raises(InvalidValidity):
            made(valid_for=timedelta(seconds=seconds))
        assert not EnrolmentToken.objects.exists()

    @pytest.mark.parametrize("name", ["", " a", "a\nb", "x" * 254, "\u202e"])
    def test_a_name_that_no_worker_may_have_is_refused(self, db: None, name: str) -> None:
        with pytest.raises(InvalidName):
            made(name)

    def test_the_name_of_a_worker_is_taken_unless_its_machine_was_set_up_anew(self, make_worker: Make) -> None:
        make_worker("press-7", allowed_queues=["a"], team_name="print")
        with pytest.raises(NameTaken):
            made()
        token, _ = made(replace=True)
        assert (token.replace, token.allowed_queues, token.team_name) == (True, ["a"], "print")

    @pytest.mark.parametrize("said", [{"allowed_queues": ["b"]}, {"allowed_queues": []}, {"team_name": "x"}])
    def test_a_machine_that_was_set_up_anew_gets_no_other_queues_or_team(self, make_worker: Make, said: Any) -> None:
        make_worker("press-7")
        with pytest.raises(KeepsItsOwn):
            made(replace=True, **said)

    def test_saying_that_a_machine_was_set_up_anew_which_nobody_knows_makes_it_a_new_one(self, db: None) -> None:
        token, _ = made(replace=True, allowed_queues=["a"])
        assert (token.replace, token.allowed_queues) == (False, ["a"])

    def test_the_record_knows_who_made_it_and_for_what(self, db: None) -> None:
        token, _ = made(allowed_queues=["a"])
        change = Change.objects.get()
        assert (change.action, change.subject_kind, change.subject_id) == (
            "create_enrolment_token",
            "enrolment",
            str(token.pk),
        )
        assert (change.actor, change.subject, change.after["queues"]) == ("ops", "press-7", ["a"])

    @pytest.mark.parametrize("url", ["https://edge.example.com", "https://edge.example.com/a b;rm -rf"])
    @pytest.mark.parametrize("file", [None, AgentFile(sha256="0" * 64, bytes=1)])
    def test_the_commands_for_the_machine_name_no_token_and_are_safe_to_paste(
        self, db: None, url: str, file: AgentFile | None
    ) -> None:
        import shlex

        lines = [shlex.split(line) for line in enrolment.commands(url, file=file)]
        assert lines[-2][-3:] == ["enrol", "--url", url]
        if file:
            assert lines[0] == ["curl", "-fLO", f"{url}/agent/edge-agent.pyz"]
        assert not any("ece_" in word for line in lines for word in line)


class TestEnrol:
    def test_the_machine_becomes_a_worker_with_the_token_that_it_minted(self, db: None, machine: Machine) -> None:
        token, text = made(allowed_queues=["a"], team_name="print")
        worker = machine.enrol(text)
        assert (worker.name, worker.allowed_queues, worker.team_name) == ("press-7", ["a"], "print")
        assert (worker.state, worker.reported) == ("offline", "offline")
        assert auth.recognise(machine.token) == worker
        token.refresh_from_db()
        assert (token.worker, token.worker_key) == (worker, machine.key)
        assert token.used_at is not None
        changes = Change.objects.exclude(subject_kind="enrolment").order_by("pk")
        assert list(changes.values_list("action", "actor_kind", "actor", "origin")) == [
            ("create_worker", "machine", "press-7", "10.0.0.7"),
            ("issue_token", "machine", "press-7", "10.0.0.7"),
        ]

    def test_a_lost_answer_is_asked_for_again(self, db: None, machine: Machine, long_ago: Make) -> None:
        token, text = made()
        worker = machine.enrol(text)
        before = Change.objects.count()
        assert machine.enrol(text) == worker
        # Also after the token's time: it was used in time.
        long_ago(token, expires_at=3600)
        assert machine.enrol(text) == worker
        assert WorkerToken.objects.count() == 1
        assert Change.objects.count() == before

    @pytest.mark.parametrize("said", [{"key": "0" * 12}, {"digest": "0" * 64}, {"key": "0" * 12, "digest": "0" * 64}])
    def test_a_used_token_opens_nothing_to_others(self, db: None, machine: Machine, said: dict[str, str]) -> None:
        _, text = made()
        machine.enrol(text)
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text, **said)
        assert WorkerToken.objects.count() == 1

    def test_another_token_of_the_same_worker_is_no_repetition(self, db: None, machine: Machine) -> None:
        _, text = made()
        worker, other = machine.enrol(text), Machine()
        auth.store(worker=worker, key=other.key, digest=bytes.fromhex(other.digest), by=OPS)
        with pytest.raises(BadEnrolmentToken):
            other.enrol(text)

    def test_it_cannot_be_repeated_once_the_worker_token_is_revoked_or_the_worker_is_gone(
        self, db: None, machine: Machine
    ) -> None:
        _, text = made()
        worker = machine.enrol(text)
        auth.revoke([worker.pk], by=OPS)
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text)
        wishes.remove([worker.pk], by=OPS)
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text)

    def test_of_two_machines_that_show_one_token_at_once_one_is_enrolled(
        self,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        token, text = made()
        second_connection.execute("SELECT 1 FROM enrolment_token WHERE id = %s FOR UPDATE", [token.pk])
        machines = [Machine(), Machine()]
        answers = [in_thread(each.enrol, text) for each in machines]
        blocked(2)
        second_connection.rollback()
        refusals = [answer.exception(timeout=20) for answer in answers]
        assert sorted(type(each).__name__ for each in refusals) == ["BadEnrolmentToken", "NoneType"]
        assert Worker.objects.count() == WorkerToken.objects.count() == 1
        winner = machines[refusals.index(None)]
        assert auth.recognise(winner.token).name == "press-7"
        token.refresh_from_db()
        assert token.worker_key == winner.key

    def test_the_same_request_twice_at_once_is_one_worker_and_two_answers(
        self,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        token, text = made()
        second_connection.execute("SELECT 1 FROM enrolment_token WHERE id = %s FOR UPDATE", [token.pk])
        machine = Machine()
        answers = [in_thread(machine.enrol, text) for _ in range(2)]
        blocked(2)
        second_connection.rollback()
        assert {answer.result(timeout=20).name for answer in answers} == {"press-7"}
        assert Worker.objects.count() == WorkerToken.objects.count() == 1

    def test_a_token_that_is_being_revoked_is_not_used(
        self,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        _, text = made()
        second_connection.execute("UPDATE enrolment_token SET revoked_at = now()")
        answer = in_thread(Machine().enrol, text)
        blocked(1)
        second_connection.commit()
        assert isinstance(answer.exception(timeout=20), BadEnrolmentToken)
        assert not Worker.objects.exists()

    def test_a_token_ends_by_the_databases_clock(self, db: None, machine: Machine, long_ago: Make) -> None:
        token, text = made()
        long_ago(token, expires_at=0.001)
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text)
        assert not Worker.objects.exists()
        token.refresh_from_db()
        assert token.used_at is None

    def test_a_revoked_token_enrols_nobody(self, db: None, machine: Machine) -> None:
        token, text = made()
        assert enrolment.revoke([token.pk], by=OPS).done == [str(token)]
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text)
        assert Change.objects.filter(action="revoke_enrolment_token", subject_id=token.pk).exists()

    def test_a_used_or_revoked_token_need_not_be_revoked(self, db: None, machine: Machine) -> None:
        (used, text), (revoked, _) = made("a"), made("b")
        machine.enrol(text)
        enrolment.revoke([revoked.pk], by=OPS)
        outcome = enrolment.revoke([used.pk, revoked.pk, -1], by=OPS)
        assert outcome.done == []
        assert outcome.skipped == [(str(used), "it was used already"), (str(revoked), "it is revoked already")]
        assert auth.recognise(machine.token).name == "a"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "ece",
            "ece_",
            "ece__",
            "ece_key_",
            "ece__secret",
            "ec_{key}_{secret}",
            "ecp_{key}_{secret}",
            "ECE_{key}_{secret}",
            "ece_{key}_{secret}0",
            "ece_{key}_" + "0" * 64,
            "ece_" + "0" * 12 + "_{secret}",
            "ece_%_%",
            "ece_" + "a" * 10_000 + "_b",
        ],
    )
    def test_what_is_not_the_token_enrols_nobody(self, db: None, machine: Machine, text: str) -> None:
        _, key, secret = made()[1].split("_")
        with pytest.raises(BadEnrolmentToken):
            machine.enrol(text.format(key=key, secret=secret))
        assert not Worker.objects.exists()

    @pytest.mark.parametrize(
        "said", [{"key": ""}, {"key": "0" * 11}, {"key": "G" * 12}, {"digest": "0" * 63}, {"digest": "A" * 64}]
    )
    def test_what_is_no_worker_token_is_refused_and_the_token_stays_usable(
        self, db: None, machine: Machine, said: dict[str, str]
    ) -> None:
        _, text = made()
        with pytest.raises(InvalidWorkerToken):
            machine.enrol(text, **said)
        assert machine.enrol(text).name == "press-7"

    def test_a_key_that_another_worker_has_is_refused_and_the_token_stays_usable(
        self, db: None, machine: Machine
    ) -> None:
        other = machine.enrol(made("other")[1])
        token, text = made()
        with pytest.raises(InvalidWorkerToken):
            machine.enrol(text)
        assert list(Worker.objects.all()) == [other]
        token.refresh_from_db()
        assert token.used_at is None
        assert Machine().enrol(text).name == "press-7"

    def test_a_name_that_was_taken_meanwhile_is_refused_and_the_token_stays_usable(
        self, db: None, machine: Machine
    ) -> None:
        _, text = made()
        worker = registry.create(name="press-7", by=OPS)
        with pytest.raises(NameTaken):
            machine.enrol(text)
        Worker.objects.filter(pk=worker.pk).update(name="press-8")
        assert machine.enrol(text).name == "press-7"

    def test_the_secrets_are_nowhere_in_the_database(self, db: None, machine: Machine) -> None:
        _, text = made()
        machine.enrol(text)
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'edgecontrol'")
            tables = [row[0] for row in cursor.fetchall()]
            stored = ""
            for table in tables:
                cursor.execute(f"SELECT coalesce(string_agg(row::text, E'\\n'), '') FROM \"{table}\" AS row")  # noqa: S608
                stored += cursor.fetchone()[0]
        assert machine.key in stored
        for secret in (machine.secret, text.split("_")[2]):
            assert secret not in stored
            assert secret.encode().hex() not in stored


class TestReplace:
    def test_the_worker_stays_and_its_older_tokens_end_when_the_new_one_is_used(
        self, make_worker: Make, make_job: Make, machine: Machine
    ) -> None:
        worker = make_worker("press-7", allowed_queues=["a"], team_name="print", concurrency_override=3)
        job = make_job(worker=worker)
        old = auth.issue(worker=worker, by=OPS)
        _, text = made(replace=True)
        assert auth.recognise(old) == worker
        assert machine.enrol(text) == worker
        with pytest.raises(auth.BadToken):
            auth.recognise(old)
        same = auth.recognise(machine.token)
        assert (same.pk, same.concurrency_override, same.team_name) == (worker.pk, 3, "print")
        # Its older agent, if it still runs, hears of it at once.
        assert same.revision == worker.revision + 1
        job.refresh_from_db()
        assert job.worker_id == worker.pk
        change = Change.objects.get(action="revoke_token")
        assert (change.actor_kind, change.actor, change.comment) == (
            "machine",
            "press-7",
            "the machine was enrolled anew",
        )

    def test_a_lost_answer_is_asked_for_again_and_does_not_revoke_the_new_token(
        self, make_worker: Make, machine: Machine
    ) -> None:
        worker = make_worker("press-7")
        _, text = made(replace=True)
        machine.enrol(text)
        assert machine.enrol(text) == worker
        assert auth.recognise(machine.token) == worker

    def test_it_is_for_the_worker_and_not_for_whoever_has_its_name_by_then(
        self, make_worker: Make, machine: Machine
    ) -> None:
        worker = make_worker("press-7")
        _, text = made(replace=True)
        Worker.objects.filter(pk=worker.pk).update(name="press-8")
        other = make_worker("press-7")
        kept = auth.issue(worker=other, by=OPS)
        assert machine.enrol(text) == worker
        assert auth.recognise(kept) == other

    def test_a_worker_without_any_token_gets_one(self, make_worker: Make, machine: Machine) -> None:
        worker = make_worker("press-7")
        assert machine.enrol(made(replace=True)[1]) == worker

    def test_a_worker_that_was_removed_meanwhile_is_made_anew(self, make_worker: Make, machine: Machine) -> None:
        worker = make_worker("press-7", state="offline", reported="offline", allowed_queues=["a"], team_name="print")
        _, text = made(replace=True)
        wishes.remove([worker.pk], by=OPS)
        again = machine.enrol(text)
        assert (again.allowed_queues, again.team_name) == (["a"], "print")
        assert again.pk != worker.pk


class TestEndpoint:
    """POST /api/v1/edge/workers/enrol, as a machine without any credential calls it."""

    def test_the_answer_says_what_the_worker_is_and_may_be_asked_for_again(self, http: None, machine: Machine) -> None:
        _, text = made(allowed_queues=["a", "b/c"], team_name="print")
        for _ in range(2):
            assert good(machine.call(text)) == {"name": "press-7", "queues": ["a", "b/c"], "team_name": "print"}
        assert good(Machine().call(made("free")[1])) == {"name": "free", "queues": None, "team_name": ""}

    def test_the_token_that_was_minted_opens_the_agents_endpoints(self, agent: Make, machine: Machine) -> None:
        good(machine.call(made()[1]))
        caller = agent(Worker.objects.get(name="press-7"))
        caller.token = machine.token
        good(caller.register())

    def test_a_refusal_says_what_to_do_and_not_what_was_wrong(self, http: None, machine: Machine) -> None:
        used, revoked = made("a")[1], made("b")
        machine.call(used)
        enrolment.revoke([revoked[0].pk], by=OPS)
        said = {
            refused(Machine().call(text), 401, "bad_enrolment_token")
            for text in (used, revoked[1], "ece_x_y", "nonsense", f"ece_{'0' * 12}_{'0' * 64}")
        }
        assert len(said) == 1
        assert "Connect a machine" in said.pop()

    def test_a_name_that_was_taken_meanwhile_is_a_conflict(self, http: None, machine: Machine) -> None:
        _, text = made()
        registry.create(name="press-7", by=OPS)
        refused(machine.call(text), 409, "name_taken")

    @pytest.mark.parametrize(
        "said",
        [
            {"key": "x"},
            {"key": None},
            {"digest": "0" * 63},
            {"digest": 5},
            {"enrolment_token": ""},
            {"enrolment_token": None},
            {"enrolment_token": "nul \0"},
            {"enrolment_token": ["ece_x_y"]},
        ],
    )
    def test_a_malformed_request_is_refused_by_the_name_of_its_field(
        self, http: None, machine: Machine, said: dict[str, Any]
    ) -> None:
        _, text = made()
        answer = machine.call(text, **said)
        assert next(iter(said)) in refused(answer, 400, "invalid_request")
        assert not Worker.objects.exists()

    def test_where_it_came_from_is_in_the_record_and_the_secret_is_in_no_log(
        self, http: None, machine: Machine, caplog: pytest.LogCaptureFixture
    ) -> None:
        _, text = made()
        good(machine.call(text))
        Machine().call(text)
        assert Change.objects.get(action="create_worker").origin == "127.0.0.1"
        assert text.split("_")[2] not in caplog.text

    def test_a_token_of_another_kind_in_the_header_changes_nothing(self, http: None, machine: Machine) -> None:
        _, text = made()
        client = APIClient(headers={"Authorization": "Bearer ec_a_b"})
        body = {"enrolment_token": text, "key": machine.key, "digest": machine.digest}
        good(client.post(ENROL, body, format="json"))


def test_every_refusal_of_enrolment_has_a_stable_code() -> None:
    kinds: list[type[Refusal]] = [BadEnrolmentToken, InvalidValidity, InvalidWorkerToken, KeepsItsOwn, NameTaken]
    assert [kind.code for kind in kinds] == [
        "bad_enrolment_token",
        "invalid_request",
        "invalid_request",
        "invalid_request",
        "name_taken",
    ]
