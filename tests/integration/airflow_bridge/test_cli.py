"""The commands of Airflow's command line against the real operator API."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from airflow_bridge.cli import commands, fleet_api
from airflow_bridge.cli.access import Access
from airflow_bridge.cli.endings import Code, Failed
from airflow_bridge.cli.table import kinds
from jobs_app.models import Job, Queue
from tests.integration.airflow_command import URL, airflow
from tests.integration.commandline import Ran
from tests.integration.fleet import Fleet, member
from tests.integration.people import OPS
from workers_app import auth, enrolment, personal_tokens
from workers_app.models import Change, PersonalToken, Worker

Make = Callable[..., Any]


@pytest.fixture
def maria(http: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """An administrator whose settings name the control plane and a file with a token."""
    fleet = Fleet(member("administrator", name="maria"))
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(f"Authorization: Bearer {fleet.token}\n")
    monkeypatch.setenv("EDGECONTROL_TOKEN_FILE", str(file))
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL", URL)
    return fleet


@pytest.fixture
def token_file(maria: Fleet, tmp_path: Path) -> Path:
    return tmp_path / "token"


def failed(ran: Ran, code: Code = Code.REFUSED) -> str:
    """Check that it ended with one line; return it."""
    assert ran.code == code, ran
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("airflow edgecontrol: ")
    return line


class TestLists:
    def test_a_table_has_what_people_ask(self, maria: Fleet, make_worker: Make, make_job: Make) -> None:
        worker = make_worker(
            "press-7",
            queues=["floor", "paint"],
            concurrency=4,
            requested="maintenance",
            requested_comment="[b]disk[/b] [/x]",
            requested_by="maria",
        )
        make_job(worker=worker, slots=2)
        ran = airflow("list-workers", "--output", "plain")
        assert ran.code == 0
        title, line = ran.out.splitlines()
        assert title.split()[:4] == ["name", "state", "jobs", "slots"]
        assert line.startswith("press-7")
        assert "2/4" in line
        assert "floor, paint" in line
        # What looks like a colour to the terminal's library is what somebody wrote.
        assert "maintenance by maria: [b]disk[/b] [/x]" in line
        table = airflow("list-workers")
        assert table.code == 0
        assert "[/x]" in "".join(table.out.split())

    def test_json_and_yaml_are_the_apis_own_rows(self, maria: Fleet, make_worker: Make) -> None:
        make_worker("1e5", sysinfo={"cpus": 4}, requested_comment="x" * 500)
        rows = maria.get("workers/").json()["results"]
        assert airflow("list-workers", "-o", "json").json == rows
        assert yaml.safe_load(airflow("list-workers", "-o", "yaml").out) == rows
        assert "1e5" in airflow("list-workers", "-o", "plain").out

    @pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.path)
    @pytest.mark.parametrize("output", ["table", "plain", "json", "yaml"])
    def test_every_list_is_shown_in_every_format(
        self, maria: Fleet, make_worker: Make, make_job: Make, kind: Any, output: str
    ) -> None:
        make_job(worker=make_worker("press-7"))
        make_job(queue="paint")
        Queue.objects.create(name="floor", paused=True, pause_comment="paint")
        enrolment.create(name="press-8", by=OPS)
        ran = airflow(f"list-{kind.path}", "-o", output)
        assert (ran.code, ran.err) == (0, "")
        assert {"workers": "press-7", "jobs": "paint", "enrolment-tokens": "press-8"}.get(kind.path, "") in ran.out

    def test_a_table_has_no_empty_columns_and_an_id_that_can_be_copied(self, maria: Fleet, make_job: Make) -> None:
        job = make_job(dag_id="sales", task_id="extract", map_index=7, try_number=1, queue="floor")
        lines = airflow("list-jobs").out.splitlines()
        assert [title.strip() for title in lines[0].split("|")] == ["id", "state", "job", "queue", "queued_at", "why"]
        assert lines[2].startswith(f"{job.pk} ")
        assert "sales.extract[7] try 1" in lines[2]
        assert "worker" in airflow("list-jobs", "--output", "plain").out.splitlines()[0]

    @pytest.mark.parametrize("output", ["table", "plain"])
    def test_an_empty_list_says_so(self, maria: Fleet, output: str) -> None:
        assert airflow("list-workers", "-o", output).out.strip() == "No data found"
        assert airflow("list-workers", "-o", "json").json == []

    def test_filters_narrow_it_down(self, maria: Fleet, make_worker: Make) -> None:
        make_worker("press-7", state="maintenance mode", queues=["floor"])
        make_worker("press-8", state="idle", queues=["floor"])
        make_worker("laser-1", state="unknown", reported="running")

        def names(*flags: str) -> list[str]:
            return [row["name"] for row in airflow("list-workers", "-o", "json", *flags).json]

        assert names("--state", "maintenance_mode", "--state", "unknown") == ["laser-1", "press-7"]
        assert names("--pattern", "press-*", "--queue", "floor") == ["press-7", "press-8"]
        assert names("--silent") == ["laser-1"]
        assert names("--no-silent", "--ordering=-name") == ["press-8", "press-7"]

    def test_all_pages_are_read_and_those_that_only_grow_end_with_a_hint(
        self, maria: Fleet, make_worker: Make, make_job: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(5):
            make_worker(f"press-{number}")
            make_job()
        asked: list[str] = []
        get = fleet_api.FleetApi.get

        def small_pages(api: Any, path: str, query: Any) -> Any:
            asked.append(path)
            return get(api, path, {**query, "limit": "2"})

        monkeypatch.setattr(fleet_api.FleetApi, "get", small_pages)
        assert len(airflow("list-workers", "-o", "json").json) == 5
        assert len(asked) == 3
        monkeypatch.setattr(commands, "NEWEST", 3)
        ran = airflow("list-jobs", "-o", "json")
        assert len(ran.json) == 3
        assert ran.err == "there are more than these 3: --limit N shows more of them\n"
        assert airflow("list-jobs", "-o", "json", "--limit", "5").err == ""

    def test_a_value_that_the_control_plane_does_not_understand_is_wrong_usage(self, maria: Fleet) -> None:
        ran = airflow("list-jobs", "--queued-after", "yesterday")
        assert "queued_after: It is a moment such as" in failed(ran, Code.WRONG_USAGE)


class TestOperations:
    def test_it_is_done_to_those_that_are_named(self, maria: Fleet, make_worker: Make) -> None:
        make_worker("press-7")
        make_worker("press-8")
        ran = airflow("request-maintenance", "press-7", "press-8", "--comment", "kernel patch", "-o", "plain")
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.split() == ["name", "result", "press-7", "done", "press-8", "done"]
        assert set(Worker.objects.values_list("requested", "requested_comment")) == {("maintenance", "kernel patch")}
        change = Change.objects.filter(action="request_maintenance").first()
        assert change is not None
        assert (change.actor_kind, change.actor) == ("person", "maria")

    def test_what_is_skipped_is_told_with_the_reason_and_a_code_of_its_own(
        self, maria: Fleet, make_worker: Make
    ) -> None:
        make_worker("press-7", requested="maintenance")
        make_worker("press-8")
        given = ("exit-maintenance", "press-7", "press-8", "nobody")
        ran = airflow(*given, "-o", "json")
        assert ran.code == Code.SKIPPED
        assert ran.json == {
            "done": ["press-7"],
            "skipped": [
                {"name": "press-8", "why": "it is not in maintenance"},
                {"name": "nobody", "why": "no such worker"},
            ],
        }
        assert "skipped: it is not in maintenance" in airflow(*given, "-o", "plain").out

    def test_an_unknown_name_is_answered_with_the_nearest(self, maria: Fleet, make_worker: Make) -> None:
        make_worker("press-7")
        ran = airflow("exit-maintenance", "pres-7")
        assert "there is no worker host 'pres-7' (did you mean 'press-7'?)" in failed(ran)

    def test_an_empty_value_has_a_meaning(self, maria: Fleet, make_worker: Make) -> None:
        worker = make_worker("press-7", concurrency_override=3, queues_override=["a"])
        assert airflow("set-worker-concurrency", "press-7", "--concurrency", "").code == 0
        assert airflow("set-worker-queues", "press-7", "--queues", "").code == 0
        worker.refresh_from_db()
        assert (worker.concurrency_override, worker.queues_override) == (None, None)

    def test_a_wrong_value_is_refused_in_the_control_planes_words(self, maria: Fleet, make_worker: Make) -> None:
        make_worker("press-7")
        ran = airflow("set-worker-concurrency", "press-7", "--concurrency", "0")
        assert "concurrency: must be a whole number from 1 to 10000" in failed(ran, Code.WRONG_USAGE)

    def test_many_are_chosen_by_what_lists_are_filtered_by(self, maria: Fleet, make_worker: Make) -> None:
        for name in ("press-7", "press-8", "laser-1"):
            make_worker(name)
        given = ("request-maintenance", "--pattern", "press-*", "--comment", "x")
        assert "this would change 2 worker hosts" in failed(airflow(*given))
        asked = airflow(*given, types="no\n")
        assert asked.code == 1
        assert "press-8" in asked.err
        assert "nothing was changed" in asked.err
        assert not Worker.objects.filter(requested="maintenance").exists()
        assert airflow(*given, types="y\n").code == 0
        assert set(Worker.objects.filter(requested="maintenance").values_list("name", flat=True)) == {
            "press-7",
            "press-8",
        }
        assert airflow("exit-maintenance", "--all", "--yes").code == Code.SKIPPED

    def test_only_open_jobs_are_chosen_and_a_grave_operation_asks_even_for_one(
        self, maria: Fleet, make_job: Make
    ) -> None:
        waiting = make_job(dag_id="sales")
        make_job(dag_id="sales", state="success")
        assert "this would change 1 job" in failed(airflow("revoke-job", "--dag-id", "sales"))
        ran = airflow("revoke-job", "--dag-id", "sales", "--yes", "--comment", "wrong month", "-o", "json")
        assert (ran.code, ran.json) == (0, {"done": [str(waiting.pk)], "skipped": []})
        assert Job.objects.get(pk=waiting.pk).state == "revoked"

    @pytest.mark.parametrize(
        ("given", "because"),
        [
            ([], "say which worker hosts"),
            (["press-7", "--all"], "exclude each other"),
            (["--all", "--queue", "a"], "exclude each other"),
        ],
        ids=str,
    )
    def test_it_must_be_clear_who_is_meant(self, maria: Fleet, given: list[str], because: str) -> None:
        assert because in failed(airflow("exit-maintenance", *given), Code.WRONG_USAGE)

    def test_nobody_is_like_that(self, maria: Fleet) -> None:
        assert "no worker host is like that" in failed(airflow("exit-maintenance", "--pattern", "x*"))

    def test_more_than_one_request_has_room_for(
        self, maria: Fleet, make_worker: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names = [make_worker(f"press-{number}").name for number in range(5)]
        monkeypatch.setattr(fleet_api, "MOST_NAMES", 2)
        assert airflow("request-maintenance", *names, "--comment", "x", "-o", "json").json["done"] == names

    def test_a_missing_parameter_is_wrong_usage(self, maria: Fleet) -> None:
        ran = airflow("request-maintenance", "press-7")
        assert ran.code == Code.WRONG_USAGE
        assert "--comment" in ran.err


class TestCredentials:
    def test_a_worker_is_made_with_its_token_in_a_file_of_its_owner(self, maria: Fleet, tmp_path: Path) -> None:
        file = tmp_path / "press-7.token"
        flags = ("--queues", "floor,paint", "--team", "print", "--concurrency", "4", "--maintenance", "", "--days", "9")
        ran = airflow("create-worker", "press-7", "--file", str(file), *flags)
        assert (ran.code, ran.out) == (0, "")
        assert file.stat().st_mode & 0o777 == 0o600
        token = file.read_text().splitlines()[0]
        assert token not in ran.err
        worker = auth.recognise(token)
        assert (worker.name, worker.allowed_queues, worker.team_name) == ("press-7", ["floor", "paint"], "print")
        assert (worker.concurrency_override, worker.requested) == (4, "maintenance")

    def test_no_file_is_left_and_none_is_replaced(self, maria: Fleet, make_worker: Make, tmp_path: Path) -> None:
        make_worker("press-7")
        file = tmp_path / "press-7.token"
        assert "exists already" in failed(airflow("create-worker", "press-7", "--file", str(file)))
        assert not file.exists()
        file.write_text("mine")
        assert "exists; name another file" in failed(airflow("create-worker", "press-8", "--file", str(file)))
        assert "cannot write" in failed(airflow("create-worker", "press-8", "--file", str(tmp_path / "no" / "file")))
        assert file.read_text() == "mine"
        assert not Worker.objects.filter(name="press-8").exists()

    def test_an_enrolment_token_is_shown_once_and_what_to_do_with_it(self, maria: Fleet) -> None:
        ran = airflow("create-enrolment-token", "press-7", "--queues", "floor", "--minutes", "60")
        token = ran.out.strip()
        assert token not in ran.err
        assert " enrol --url http://testserver" in ran.err
        worker = enrolment.enrol(token=token, key="0" * 12, digest="0" * 64)
        assert (worker.name, worker.allowed_queues) == ("press-7", ["floor"])

    def test_an_enrolment_token_goes_to_a_file(self, maria: Fleet, tmp_path: Path) -> None:
        file = tmp_path / "press-7.enrol"
        ran = airflow("create-enrolment-token", "press-7", "--file", str(file))
        assert (ran.code, ran.out) == (0, "")
        assert file.stat().st_mode & 0o777 == 0o600
        assert enrolment.enrol(token=file.read_text().strip(), key="0" * 12, digest="0" * 64).name == "press-7"


class TestWhoAsks:
    def test_whoami_says_who_where_and_what(self, maria: Fleet) -> None:
        said = airflow("whoami", "-o", "json").json[0]
        assert (said["user"], said["control_plane"], said["groups"]) == ("maria", URL, ["administrator"])
        assert "maria" in airflow("whoami").out

    def test_flags_go_before_settings(self, maria: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL", "http://nowhere.invalid")
        monkeypatch.delenv("EDGECONTROL_TOKEN_FILE")
        ran = airflow("whoami", "--url", f"{URL}/", "--token-file", str(tmp_path / "token"))
        assert ran.code == 0
        monkeypatch.setenv("AIRFLOW__EDGECONTROL__API_TOKEN_FILE", str(tmp_path / "token"))
        assert airflow("whoami", "--url", URL).code == 0

    def test_without_a_control_plane(self, maria: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL")
        assert "Give --url" in failed(airflow("whoami"), Code.WRONG_USAGE)
        line = failed(airflow("whoami", "--url", "https://maria:secret@edge.example.com"), Code.WRONG_USAGE)
        assert "secret" not in line

    def test_without_a_token(self, maria: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("EDGECONTROL_TOKEN_FILE")
        assert "EDGECONTROL_TOKEN_FILE" in failed(airflow("whoami"), Code.WRONG_USAGE)

    def test_with_a_token_that_opens_nothing(self, maria: Fleet, token_file: Path) -> None:
        personal_tokens.revoke([PersonalToken.objects.get().pk], by=OPS)
        line = failed(airflow("whoami"))
        assert str(token_file) in line
        assert "unknown, revoked or expired" in line
        assert maria.token not in line

    def test_without_the_permission(self, http: None, token_file: Path, make_worker: Make) -> None:
        token_file.write_text(Fleet(member("viewer", name="viktor")).token)
        make_worker("press-7")
        assert "workers_app.operate_worker" in failed(airflow("exit-maintenance", "press-7"))

    @pytest.mark.parametrize(
        ("text", "because"),
        [
            ("", "no personal token"),
            ("# only this", "no personal token"),
            ("ecp_\nsplit", "no personal token"),
            ("ec_0123456789ab_00", "holds a worker's token"),
            ("ece_0123456789ab_00", "holds an enrolment token"),
        ],
        ids=str,
    )
    def test_with_a_file_that_holds_something_else(self, token_file: Path, text: str, because: str) -> None:
        token_file.write_text(text)
        line = failed(airflow("whoami"))
        assert because in line
        assert "0123456789ab" not in line

    def test_with_a_file_that_others_can_read(self, token_file: Path) -> None:
        token_file.chmod(0o640)
        assert f"chmod 600 {token_file}" in failed(airflow("whoami"))

    def test_with_a_token_on_the_command_line(self, maria: Fleet) -> None:
        # `--token` is how Airflow's parser lets people shorten `--token-file`.
        line = failed(airflow("whoami", "--token", maria.token), Code.WRONG_USAGE)
        assert "history: revoke it" in line
        assert maria.token not in line

    def test_with_a_file_that_is_not_there(self, token_file: Path) -> None:
        token_file.unlink()
        assert "No such file" in failed(airflow("whoami"))


class TestWhatAnswers:
    """Whatever stands at the address."""

    @staticmethod
    def whoami(answer: Callable[[httpx.Request], httpx.Response]) -> str:
        return failed(airflow("whoami", transport=httpx.MockTransport(answer)))

    @pytest.mark.parametrize(
        ("status", "headers", "because"),
        [
            (200, {}, "something else than a control plane answers (200)"),
            (404, {}, "something else than a control plane answers (404)"),
            (502, {}, "answers 502: it is away"),
            (
                302,
                {"Location": "https://sso.example.com/login?token=x"},
                "sends elsewhere, to https://sso.example.com;",
            ),
            (302, {"Location": "https://a:b"}, "cannot be reached: Invalid URL in location header"),
        ],
        ids=str,
    )
    def test_something_else_is_told_in_one_line(
        self, maria: Fleet, status: int, headers: dict[str, str], because: str
    ) -> None:
        assert because in self.whoami(lambda _: httpx.Response(status, headers=headers, text="<html>"))

    @pytest.mark.parametrize(
        ("error", "because"),
        [
            (httpx.ConnectError("[Errno 111] Connection refused"), "cannot be reached: [Errno 111] Connection refused"),
            (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] ..."), "SSL_CERT_FILE"),
            (httpx.ReadTimeout("timed out"), "no answer in time"),
        ],
        ids=repr,
    )
    def test_nothing_is_told_in_one_line(self, maria: Fleet, error: httpx.HTTPError, because: str) -> None:
        def away(_: httpx.Request) -> httpx.Response:
            raise error

        assert because in self.whoami(away)

    @pytest.mark.parametrize(
        ("name", "value", "because"),
        [
            ("SSL_CERT_FILE", "/nowhere/ca.pem", "certificates that SSL_CERT_FILE"),
            ("HTTPS_PROXY", "gopher://maria:secret@proxy", "must look like http://proxy.example.com:3128"),
        ],
    )
    def test_a_way_out_that_cannot_be_used(
        self, maria: Fleet, monkeypatch: pytest.MonkeyPatch, name: str, value: str, because: str
    ) -> None:
        monkeypatch.setenv(name, value)
        somewhere = Access(url="https://edge.example.com", token="ecp_0_0", token_file="token")
        with pytest.raises(Failed) as failed:
            fleet_api.FleetApi(somewhere)
        assert because in str(failed.value)
        assert "secret" not in str(failed.value)

    def test_an_argument_that_is_no_text(self, maria: Fleet) -> None:
        line = failed(airflow("exit-maintenance", "press-\udc80"), Code.WRONG_USAGE)
        assert "no text in UTF-8" in line
        assert "no text in UTF-8" in failed(airflow("list-workers", "--team", "\udc80"), Code.WRONG_USAGE)

    def test_the_next_page_is_asked_of_the_address_that_was_named(self, maria: Fleet) -> None:
        hosts = []

        def answer(request: httpx.Request) -> httpx.Response:
            hosts.append(request.url.host)
            elsewhere = "https://elsewhere.example.com/api/v1/fleet/workers/?offset=1000&limit=1000"
            return httpx.Response(
                200, json={"results": [], "next": elsewhere if len(hosts) < 3 else None, "previous": None, "count": 0}
            )

        ran = airflow("list-workers", "-o", "json", transport=httpx.MockTransport(answer))
        assert (ran.code, ran.json, hosts) == (0, [], ["testserver"] * 3)

    def test_an_interrupted_change_says_that_nobody_knows(self, maria: Fleet) -> None:
        def interrupt(_: httpx.Request) -> httpx.Response:
            raise KeyboardInterrupt

        ran = airflow("exit-maintenance", "press-7", transport=httpx.MockTransport(interrupt))
        assert "whether it was done is not known" in failed(ran, Code.INTERRUPTED)
        ran = airflow("list-workers", transport=httpx.MockTransport(interrupt))
        assert failed(ran, Code.INTERRUPTED) == "airflow edgecontrol: interrupted"
