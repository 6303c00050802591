"""The operator API of jobs and queues; and, over all endpoints, who may call what."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from itertools import chain, pairwise
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import get_resolver
from django.utils import timezone

from jobs_app import figures, logs, operations, operator_api, queues
from jobs_app.models import Job, LogChunk, Queue
from jobs_app.states import FINAL, JobState
from tests.integration.fleet import FLEET, GROUPS, Fleet, good, member, refused
from tests.integration.people import OPS
from workers_app import enrolment, wishes
from workers_app.models import Change, Worker

Make = Callable[..., Any]
ODD = [
    "a/b",
    "a/b/c",
    "/a",
    "100% \u00fc",
    "a?b#c",
    "\U0001f98a",
    "a,b",
    "pause",
    "a.json",
    "a b",
    "a%2Fb",
    "\u202f",
    "_2F",
]


@pytest.fixture
def fleet(http: None) -> Fleet:
    return Fleet(member("administrator", name="maria"))


def fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def cost(call: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as queries:
        good(call())
    return len(queries)


def ids(answer: Any) -> list[str]:
    return [row["id"] for row in good(answer)["results"]]


def iso(moment: Any) -> str:
    return str(moment.isoformat().replace("+00:00", "Z"))


#: Every address, how it is called, and the least group that may. `{}` is the row's own key.
ENDPOINTS: list[tuple[str, str, str]] = [
    ("get", "workers/", "viewer"),
    ("post", "workers/", "administrator"),
    ("get", "workers/{worker}/", "viewer"),
    *(
        ("post", f"workers/{address}{name}/", group)
        for address in ("", "{worker}/")
        for name, group in {
            "request_maintenance": "operator",
            "update_maintenance_comment": "operator",
            "exit_maintenance": "operator",
            "shutdown_worker": "operator",
            "cancel_shutdown": "operator",
            "add_worker_queues": "operator",
            "remove_worker_queues": "operator",
            "set_worker_queues": "operator",
            "set_worker_concurrency": "operator",
            "revoke_token": "administrator",
            "remove_worker": "administrator",
        }.items()
    ),
    ("get", "jobs/", "viewer"),
    ("get", "jobs/{job}/", "viewer"),
    ("get", "jobs/{job}/log/1/", "viewer"),
    ("post", "jobs/revoke_job/", "operator"),
    ("post", "jobs/{job}/revoke_job/", "operator"),
    ("get", "queues/", "viewer"),
    ("get", "queues/{queue}/", "viewer"),
    *(
        ("post", f"queues/{address}{name}/", "operator")
        for address in ("", "{queue}/")
        for name in ("pause_queue", "resume_queue", "set_queue_concurrency")
    ),
    ("get", "enrolment-tokens/", "viewer"),
    ("post", "enrolment-tokens/", "operator"),
    ("get", "enrolment-tokens/{token}/", "viewer"),
    ("post", "enrolment-tokens/revoke_enrolment_token/", "operator"),
    ("post", "enrolment-tokens/{token}/revoke_enrolment_token/", "operator"),
    ("get", "changes/", "viewer"),
    ("get", "changes/{change}/", "viewer"),
]
BODIES: dict[str, dict[str, Any]] = {
    "request_maintenance": {"comment": "x"},
    "update_maintenance_comment": {"comment": "x"},
    "add_worker_queues": {"queues": ["x"]},
    "remove_worker_queues": {"queues": ["x"]},
    "pause_queue": {"comment": "x"},
    "enrolment-tokens": {"name": "new"},
    "workers": {"name": "new"},
}
#: Lists that something is added to, where no names are chosen.
MADE = ("enrolment-tokens", "workers")


class TestPermissions:
    def test_the_table_of_this_test_has_every_address_with_every_method(self) -> None:
        (fleet,) = (part for part in get_resolver().url_patterns if str(part.pattern) == "api/v1/fleet/")
        offered = set()
        for pattern in fleet.url_patterns:
            for method, name in getattr(pattern.callback, "actions", {}).items():
                if method != "head":
                    offered.add((method, pattern.name, name))
        called = set()
        for method, address, _ in ENDPOINTS:
            match = get_resolver().resolve(
                FLEET + address.format(worker=1, job=uuid.uuid4(), queue="q", token=1, change=1)
            )
            called.add((method, match.url_name, match.func.actions[method]))  # type: ignore[attr-defined]
        assert called == offered

    @pytest.fixture
    def rows(self, make_worker: Make, make_job: Make) -> dict[str, Any]:
        worker = make_worker("press-7", state="offline", reported="offline", queues=["x"], allowed_queues=["x"])
        token, _ = enrolment.create(name="other", by=OPS)
        job = make_job(worker=worker, queue="q", state="failed")
        return {
            "worker": worker.pk,
            "job": job.pk,
            "queue": "q",
            "token": token.pk,
            "change": Change.objects.latest("pk").pk,
        }

    @pytest.mark.parametrize(("method", "address", "least"), ENDPOINTS, ids=lambda value: str(value))
    def test_each_group_may_what_its_people_need_and_nobody_else_may(
        self, http: None, rows: dict[str, Any], method: str, address: str, least: str
    ) -> None:
        path = address.format(**rows)
        name = path.strip("/").rpartition("/")[2]
        body = dict(BODIES.get(name, {}))
        if method == "post" and "{" not in address and name not in MADE:
            body["names"] = ["nobody"]
        for group in (None, *GROUPS):
            someone = Fleet(member(*([group] if group else [])))
            answer = someone.get(path) if method == "get" else someone.post(path, **body)
            if group is not None and GROUPS.index(group) >= GROUPS.index(least):
                # What is not possible as things stand was allowed all the same.
                assert answer.status_code in (200, 201, 409), answer.content
                if "{worker}/remove_worker" in address or name in MADE:
                    break
            else:
                refused(answer, 403, "not_allowed")

    def test_a_superuser_may_everything(self, http: None, rows: dict[str, Any]) -> None:
        root = Fleet(member(name="root", is_superuser=True))
        for method, address, _ in ENDPOINTS:
            if method == "get":
                assert root.get(address.format(**rows)).status_code == 200

    def test_the_first_page_is_for_whoever_is_known(self, http: None) -> None:
        addresses = good(Fleet(member()).get(""))
        assert set(addresses) == {"workers", "jobs", "queues", "enrolment-tokens", "changes"}


class TestJobs:
    def test_a_job_is_shown_with_everything_but_its_workload_and_token(
        self, fleet: Fleet, make_worker: Make, make_job: Make
    ) -> None:
        worker = make_worker("press-7")
        job = make_job(
            worker=worker, state="failed", attempt=2, reason="exit code 1", exit_code=1, team_name="print", slots=2,
            airflow_outcome="failed", map_index=3, workload={"secret": "sesame-7"}, log_path="a/b.log",
        )  # fmt: skip
        answer = fleet.get(f"jobs/{job.pk}/")
        assert "sesame" not in answer.content.decode()
        shown = good(answer)
        columns = {field.name for field in Job._meta.fields} - {
            "workload",
            "token",
            "team_name",
            "log_full",
            "log_trouble",
            "token_until",
            "first_failed_start_at",
            "process_gone",
        }
        assert set(shown) == columns | {"team", "waits_because", "log_missing", "logs"}
        assert shown["worker"] == {"id": worker.pk, "name": "press-7"}
        assert (shown["team"], shown["slots"], shown["map_index"], shown["exit_code"]) == ("print", 2, 3, 1)
        assert (shown["state"], shown["reason"], shown["waits_because"]) == ("failed", "exit code 1", None)
        assert shown["queued_at"] == iso(job.queued_at)
        assert good(fleet.get("jobs/"))["results"] == [shown]

    def test_airflows_token_is_shown_nowhere(self, fleet: Fleet, make_job: Make) -> None:
        job = make_job()
        Job.objects.filter(pk=job.pk).update(token="sesame-open-42")
        for address in ("jobs/", f"jobs/{job.pk}/", f"jobs/?search={job.pk}"):
            assert "sesame" not in fleet.get(address).content.decode()

    def test_a_waiting_job_says_why(self, fleet: Fleet, make_worker: Make, make_job: Make) -> None:
        waits, runs = make_job(queue="press"), make_job(worker=make_worker(queues=["default"]))
        queues.pause(["press"], by=OPS, comment="new laser")
        assert "new laser" in good(fleet.get(f"jobs/{waits.pk}/"))["waits_because"]
        assert good(fleet.get(f"jobs/{runs.pk}/"))["waits_because"] is None

    def test_each_attempt_has_the_address_of_its_log(self, fleet: Fleet, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), attempt=3)
        shown = good(fleet.get(f"jobs/{job.pk}/"))["logs"]
        assert [each["attempt"] for each in shown] == [1, 2, 3]
        assert fleet.client.get(shown[0]["url"]).status_code == 200
        LogChunk.objects.create(job=job, attempt=0, offset=0, data=b"x")
        assert [each["attempt"] for each in good(fleet.get(f"jobs/{job.pk}/"))["logs"]] == [0, 1, 2, 3]
        assert good(fleet.get(f"jobs/{make_job().pk}/"))["logs"] == []

    @pytest.fixture
    def some(self, make_worker: Make, make_job: Make, long_ago: Make) -> dict[str, str]:
        """Five jobs by a short name; the later in the alphabet, the longer ago queued."""
        press = make_worker("press-7")
        jobs = {
            "a": make_job(queue="press", dag_id="sales-daily", run_id="r1"),
            "b": make_job(worker=press, dag_id="sales-weekly", task_id="load", team_name="print"),
            "c": make_job(worker=press, dag_id="stock", run_id="r2", state="success"),
            "d": make_job(worker=make_worker("hall-1"), dag_id="sales", state="failed"),
            "e": make_job(dag_id="stock_sales", state="claimed", worker=press),
        }
        for hours, job in enumerate(jobs.values()):
            long_ago(job, queued_at=hours * 3600)
        long_ago(jobs["c"], finished_at=2 * 3600)
        long_ago(jobs["d"], finished_at=3600)
        return {str(job.pk): name for name, job in jobs.items()}

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ({}, "abcde"),
            ({"state": "queued"}, "a"),
            ({"state": ["running", "failed"]}, "bd"),
            ({"state": "running,success,claimed"}, "bce"),
            ({"queue": "press"}, "a"),
            ({"queue": "default"}, "bcde"),
            ({"worker": "press-7"}, "bce"),
            ({"worker": "nobody"}, ""),
            ({"dag_id": "sales"}, "d"),
            ({"dag_id": "sales-*"}, "ab"),
            ({"dag_id": "sales*"}, "abd"),
            ({"dag_id": "stock_*"}, "e"),
            ({"dag_id": "*"}, "abcde"),
            ({"run_id": "r2"}, "c"),
            ({"task_id": "load"}, "b"),
            ({"team": "print"}, "b"),
            ({"search": "sales"}, "abd"),
            ({"search": "r"}, "ac"),
            ({"search": "s", "state": ["failed", "success"]}, "cd"),
            ({"search": "stock_"}, "e"),
            ({"search": "daily"}, ""),
            ({"ordering": "queued_at"}, "edcba"),
            ({"ordering": "finished_at"}, "cd"),
            ({"ordering": "-finished_at"}, "dc"),
            ({"state": "queued", "ordering": "finished_at"}, ""),
            ({"state": "success", "worker": "press-7"}, "c"),
            ({"limit": 2}, "ab"),
        ],
    )
    def test_the_list_has_those_that_were_asked_for(
        self, fleet: Fleet, some: dict[str, str], query: dict[str, Any], names: str
    ) -> None:
        assert "".join(some[key] for key in ids(fleet.get("jobs/", **query))) == names

    def test_spans_of_time_have_their_first_moment_and_not_their_last(self, fleet: Fleet, some: dict[str, str]) -> None:
        by_name = {name: Job.objects.get(pk=key) for key, name in some.items()}
        cases: list[tuple[str, Any, str]] = [
            ("queued_after", by_name["c"].queued_at, "abc"),
            ("queued_before", by_name["c"].queued_at, "de"),
            ("finished_after", by_name["d"].finished_at, "d"),
            ("finished_before", by_name["d"].finished_at, "c"),
        ]
        for name, moment, expected in cases:
            assert "".join(some[key] for key in ids(fleet.get("jobs/", **{name: moment.isoformat()}))) == expected

    def test_a_job_is_found_by_its_id(self, fleet: Fleet, some: dict[str, str]) -> None:
        for key in some:
            assert ids(fleet.get("jobs/", search=key)) == [key]
            assert ids(fleet.get("jobs/", search=key.replace("-", "").upper())) == [key]

    @pytest.mark.parametrize(
        ("query", "said"),
        [
            ("stat=queued", "did you mean state?"),
            ("dag=x", "did you mean dag_id?"),
            ("offset=5", "offset: There is no such parameter"),
            ("state=done", "done is none of queued, claimed"),
            ("dag_id=a*b", "only at the end"),
            ("dag_id=", "no value"),
            ("queued_after=yesterday", "queued_after: It is a moment"),
            ("finished_before=12", "finished_before: It is a moment"),
            ("ordering=priority", "ordering: priority: "),
            ("ordering=queued_at,finished_at", "Only one"),
            ("limit=501", "from 1 to 500"),
            ("cursor=x", "cursor: "),
            ("cursor=WzFd", "cursor: "),
            ("cursor=\u00fc", "cursor: "),
            ("queue=a%00", "queue"),
            ("search=%00", "ull char"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, fleet: Fleet, make_job: Make, query: str, said: str) -> None:
        make_job()
        assert said in refused(fleet.get(f"jobs/?{query}"), 400, "invalid_request")

    def test_a_cursor_of_another_order_is_refused(self, fleet: Fleet, make_job: Make) -> None:
        for _ in range(3):
            make_job()
        address = good(fleet.get("jobs/", limit=1))["next"]
        refused(fleet.client.get(f"{address}&ordering=queued_at"), 400, "invalid_request")

    @pytest.mark.parametrize("address", [str(uuid.UUID(int=0)), "x", "0" * 32, "0" * 31, "-" * 36])
    def test_what_does_not_exist_is_not_found(self, fleet: Fleet, address: str) -> None:
        refused(fleet.get(f"jobs/{address}/"), 404, "not_found")
        refused(fleet.get(f"jobs/{address}/log/1/"), 404, "not_found")
        refused(fleet.post(f"jobs/{address}/revoke_job/"), 404, "not_found")

    @pytest.mark.parametrize("ordering", ["queued_at", "-queued_at"])
    @pytest.mark.parametrize("states", ["", "queued", "success", "queued,success"])
    def test_pages_have_each_job_once_also_those_of_one_moment_while_others_come(
        self, fleet: Fleet, make_worker: Make, make_job: Make, ordering: str, states: str
    ) -> None:
        moment, worker = timezone.now(), make_worker()
        made = [make_job(**({"worker": worker, "state": "success"} if number % 3 else {})) for number in range(23)]
        Job.objects.update(queued_at=moment)
        Job.objects.filter(pk__in=[job.pk for job in made[:5]]).update(queued_at=moment - timedelta(hours=1))
        query = {"ordering": ordering, "limit": 4} | ({"state": states} if states else {})
        expected = {str(job.pk) for job in made if not states or job.state in states}
        pages = [good(fleet.get("jobs/", **query))]
        while pages[-1]["next"]:
            make_job(queued_at=moment - timedelta(days=1) if ordering == "queued_at" else timezone.now())
            pages.append(good(fleet.client.get(pages[-1]["next"])))
        seen = [[row["id"] for row in page["results"]] for page in pages]
        assert len(set(chain(*seen))) == len(list(chain(*seen)))
        assert set(chain(*seen)) == expected
        assert pages[0]["previous"] is None
        for newer, older in pairwise(pages):
            assert good(fleet.client.get(older["previous"]))["results"] == newer["results"]

    def test_a_page_costs_the_same_whatever_is_on_it(self, fleet: Fleet, make_worker: Make, make_job: Make) -> None:
        make_job(worker=make_worker())
        make_job()
        few = cost(lambda: fleet.get("jobs/", limit=500))
        for number in range(20):
            make_job(worker=make_worker(), attempt=3)
            make_job(queue=f"q{number}")
        assert cost(lambda: fleet.get("jobs/", limit=500)) == few <= 12

    def test_one_job_is_revoked(self, fleet: Fleet, make_job: Make) -> None:
        job = make_job()
        answer = good(fleet.post(f"jobs/{job.pk}/revoke_job/", comment="wrong data"))
        assert answer == {"done": [str(job.pk)], "skipped": []}
        assert (fresh(job).state, fresh(job).reason) == ("revoked", "revoked by maria: wrong data")
        assert "revoked already" in refused(fleet.post(f"jobs/{job.pk}/revoke_job/"), 409, "skipped")

    def test_of_many_jobs_each_is_named_as_it_was_asked_for(
        self, fleet: Fleet, make_worker: Make, make_job: Make
    ) -> None:
        waits, ended = make_job(), make_job(state="success", worker=make_worker())
        nobody, capital = str(uuid.uuid4()), str(waits.pk).upper()
        answer = good(fleet.post("jobs/revoke_job/", names=[capital, str(ended.pk), nobody, "no id"], comment="x"))
        assert answer == {
            "done": [capital],
            "skipped": [
                {"name": str(ended.pk), "why": "it is success already"},
                {"name": nobody, "why": "no such job"},
                {"name": "no id", "why": "no such job"},
            ],
        }
        assert (fresh(waits).state, fresh(ended).state) == ("revoked", "success")

    def test_one_job_named_twice_is_one_job(self, fleet: Fleet, make_job: Make) -> None:
        job = make_job()
        answer = good(fleet.post("jobs/revoke_job/", names=[str(job.pk), str(job.pk).upper()]))
        assert {answer["done"][0].lower()} == {str(job.pk)}
        assert Change.objects.filter(action="revoke_job").count() == 1

    def test_a_misspelt_parameter_revokes_nothing(self, fleet: Fleet, make_job: Make) -> None:
        job = make_job()
        said = refused(fleet.post(f"jobs/{job.pk}/revoke_job/", commment="x"), 400, "invalid_request")
        assert "did you mean comment?" in said
        assert fresh(job).state == "queued"


class TestLog:
    @pytest.fixture
    def job(self, make_worker: Make, make_job: Make) -> Job:
        """Its second attempt has 1,000 bytes in ten chunks, its first one five."""
        job: Job = make_job(worker=make_worker(), attempt=2)
        LogChunk.objects.create(job=job, attempt=1, offset=0, data=b"first")
        for number in range(10):
            logs.append(
                worker_id=job.worker_id or 0,
                job_id=job.pk,
                attempt=2,
                offset=number * 100,
                data=bytes([number]) * 100,
                cap_bytes=10_000,
            )
        return job

    def read(self, fleet: Fleet, job: Job, attempt: int = 2, **query: Any) -> tuple[bytes, str, str]:
        answer = fleet.get(f"jobs/{job.pk}/log/{attempt}/", **query)
        assert answer.status_code == 200, answer.content
        assert answer["Content-Type"] == "text/plain; charset=utf-8"
        assert answer["X-Content-Type-Options"] == "nosniff"
        return answer.content, answer["Log-Size"], answer["Log-Complete"]

    def test_its_bytes_come_as_they_are_stored(self, fleet: Fleet, job: Job) -> None:
        everything = b"".join(bytes([number]) * 100 for number in range(10))
        assert self.read(fleet, job) == (everything, "1000", "false")
        assert self.read(fleet, job, 1) == (b"first", "5", "true")
        for offset, limit in ((0, 1), (0, 100), (50, 100), (99, 2), (250, 700), (999, 5), (1000, 5), (5000, 5)):
            part, size, _ = self.read(fleet, job, offset=offset, limit=limit)
            assert (part, size) == (everything[offset : offset + limit], "1000")

    def test_a_part_is_bounded(self, fleet: Fleet, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(operator_api, "LOG_PART_BYTES", 150)
        assert len(self.read(fleet, job)[0]) == 150
        refused(fleet.get(f"jobs/{job.pk}/log/2/", limit=151), 400, "invalid_request")

    def test_it_is_complete_once_all_that_the_agent_told_of_is_there(self, fleet: Fleet, job: Job) -> None:
        def complete(**columns: Any) -> str:
            ending = {"state": "success", "finished_at": timezone.now(), "token": None}
            Job.objects.filter(pk=job.pk).update(**ending | columns)
            return self.read(fleet, job)[2]

        assert complete(log_final_size=None) == "false"
        assert complete(log_final_size=1001) == "false"
        assert complete(log_final_size=1000) == "true"

    def test_what_exceeds_the_cap_is_not_waited_for(self, fleet: Fleet, job: Job) -> None:
        ending = {"state": "success", "finished_at": timezone.now(), "token": None, "log_final_size": 9000}
        Job.objects.filter(pk=job.pk).update(**ending, log_size=1000)
        assert self.read(fleet, job)[2] == "false"
        Job.objects.filter(pk=job.pk).update(log_full=True)
        assert self.read(fleet, job)[2] == "true"
        said = "The log has reached the size that is kept here, 1,000 bytes; the rest is not kept."
        assert good(fleet.get(f"jobs/{job.pk}/"))["log_missing"] == said

    def test_a_job_that_waits_again_gets_no_more_of_its_last_attempt(self, fleet: Fleet, job: Job) -> None:
        Job.objects.filter(pk=job.pk).update(state="queued", worker=None, log_size=0)
        assert self.read(fleet, job)[1:] == ("1000", "true")

    def test_what_airflow_wrote_itself_is_attempt_0(self, fleet: Fleet, job: Job) -> None:
        refused(fleet.get(f"jobs/{job.pk}/log/0/"), 404, "not_found")
        LogChunk.objects.create(job=job, attempt=0, offset=0, data=b"triggerer")
        assert self.read(fleet, job, 0) == (b"triggerer", "9", "false")

    def test_an_attempt_without_a_byte_is_empty_and_one_that_never_was_is_not_found(
        self, fleet: Fleet, make_worker: Make, make_job: Make
    ) -> None:
        job = make_job(worker=make_worker(), attempt=1)
        assert self.read(fleet, job, 1) == (b"", "0", "false")
        for attempt in (2, 999_999_999):
            refused(fleet.get(f"jobs/{job.pk}/log/{attempt}/"), 404, "not_found")
        refused(fleet.get(f"jobs/{job.pk}/log/x/"), 404, "not_found")

    @pytest.mark.parametrize(
        "query",
        ["offset=-1", "offset=x", "offset=" + "9" * 20, "limit=0", "limit=9999999", "offest=5", "offset=1&offset=2"],
    )
    def test_a_wrong_place_is_refused(self, fleet: Fleet, job: Job, query: str) -> None:
        refused(fleet.get(f"jobs/{job.pk}/log/2/?{query}"), 400, "invalid_request")

    @pytest.mark.parametrize("accept", ["text/plain", "text/html", "image/png", "*/*"])
    def test_it_has_one_form_whatever_the_caller_accepts(self, fleet: Fleet, job: Job, accept: str) -> None:
        answer = fleet.client.get(f"{FLEET}jobs/{job.pk}/log/1/", headers={"Accept": accept})
        assert (answer.status_code, answer.content) == (200, b"first")
        refused(fleet.client.get(f"{FLEET}jobs/{job.pk}/log/9/", headers={"Accept": accept}), 404, "not_found")


class TestQueues:
    def test_a_queue_is_shown_with_what_waits_and_runs_and_who_serves_it(
        self, fleet: Fleet, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        worker = make_worker(queues=["press"])
        make_worker(queues=None)
        make_worker(queues=["other"])
        make_worker(queues=["press"], state="unknown", reported="running")
        wishes.request_maintenance([make_worker(queues=["press"]).pk], by=OPS, comment="disk")
        oldest = make_job(queue="press", priority=1)
        long_ago(oldest, queued_at=900)
        for priority, slots, team in ((9, 1, ""), (1, 4, ""), (5, 1, "print"), (1, 1, "")):
            make_job(queue="press", priority=priority, slots=slots, team_name=team)
        make_job(queue="press", worker=worker, slots=3)
        make_job(queue="press", worker=worker, state="claimed")
        make_job(queue="press", worker=worker, state="success")
        queues.set_limit(["press"], by=OPS, concurrency=7)
        queues.pause(["press"], by=OPS, comment="laser")
        shown = good(fleet.get("queues/press/"))
        paused_at = Queue.objects.get(pk="press").paused_at
        assert shown == {
            "name": "press",
            "paused": True,
            "pause_comment": "laser",
            "paused_by": "ops",
            "paused_at": iso(paused_at),
            "concurrency_limit": 7,
            "waiting": 5,
            "oldest_queued_at": iso(fresh(oldest).queued_at),
            "held": 2,
            "held_slots": 4,
            "workers": {"there": 3, "taking": 2},
        }
        assert good(fleet.get("queues/", name="press"))["results"] == [shown]

    def test_a_quiet_queue_has_zeros(self, fleet: Fleet) -> None:
        Queue.objects.create(name="quiet")
        shown = good(fleet.get("queues/quiet/"))
        assert (shown["waiting"], shown["oldest_queued_at"], shown["held"], shown["held_slots"]) == (0, None, 0, 0)
        assert shown["workers"] == {"there": 0, "taking": 0}

    def test_what_waits_is_counted_up_to_a_bound(
        self, fleet: Fleet, make_job: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(figures, "MOST_COUNTED", 3)
        for _ in range(5):
            make_job(queue="press")
        assert good(fleet.get("queues/press/"))["waiting"] == 3

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            ({}, ["a/b", "press-1", "press-2"]),
            ({"paused": "true"}, ["press-2"]),
            ({"paused": "0"}, ["a/b", "press-1"]),
            ({"pattern": "press-*"}, ["press-1", "press-2"]),
            ({"name": "a/b"}, ["a/b"]),
            ({"search": "laser"}, ["press-2"]),
            ({"ordering": "-name"}, ["press-2", "press-1", "a/b"]),
            ({"limit": 1, "offset": 1}, ["press-1"]),
        ],
    )
    def test_the_list_has_those_that_were_asked_for(
        self, fleet: Fleet, query: dict[str, Any], names: list[str]
    ) -> None:
        Queue.objects.remember(["press-1", "press-2", "a/b"])
        queues.pause(["press-2"], by=OPS, comment="laser")
        assert fleet.names("queues/", **query) == names

    @pytest.mark.parametrize("query", ["pause=true", "paused=yes", "paused=", "pattern=", "limit=x", "cursor=x"])
    def test_what_is_not_understood_is_refused(self, fleet: Fleet, query: str) -> None:
        refused(fleet.get(f"queues/?{query}"), 400, "invalid_request")

    @pytest.mark.parametrize("name", ODD)
    def test_any_name_has_an_address(self, fleet: Fleet, name: str) -> None:
        Queue.objects.remember([name, "a", "pause_queue"])
        address = f"{FLEET}queues/{quote(name, safe='')}/"
        assert good(fleet.client.get(address))["name"] == name
        answer = good(fleet.client.post(f"{address}pause_queue/", {"comment": "x"}, format="json"))
        assert answer == {"done": [name], "skipped": []}
        assert list(Queue.objects.filter(paused=True).values_list("name", flat=True)) == [name]
        assert good(fleet.post("queues/resume_queue/", names=[name]))["done"] == [name]

    @pytest.mark.parametrize("name", ["pause_queue", "a/pause_queue", "a/", "a//b", ".", "..", "a/resume_queue"])
    def test_the_few_names_that_no_address_can_have_are_listed_and_operated_in_bulk(
        self, fleet: Fleet, name: str
    ) -> None:
        Queue.objects.remember([name, "a"])
        assert fleet.names("queues/", name=name) == [name]
        assert good(fleet.post("queues/pause_queue/", names=[name], comment="x"))["done"] == [name]
        assert list(Queue.objects.filter(paused=True).values_list("name", flat=True)) == [name]

    def test_a_queue_whose_name_ends_like_an_operation_is_operated_at_its_own_address(self, fleet: Fleet) -> None:
        Queue.objects.remember(["a/pause_queue", "a"])
        assert good(fleet.post("queues/a/pause_queue/pause_queue/", comment="x"))["done"] == ["a/pause_queue"]
        assert good(fleet.post("queues/a/pause_queue/", comment="x"))["done"] == ["a"]

    def test_pause_limit_and_resume(self, fleet: Fleet) -> None:
        Queue.objects.remember(["press", "laser"])
        good(fleet.post("queues/press/pause_queue/", comment="new laser"))
        assert "comment: is needed" in refused(fleet.post("queues/laser/pause_queue/"), 400, "invalid_request")
        answer = good(fleet.post("queues/resume_queue/", names=["press", "laser", "nobody's"]))
        assert answer == {
            "done": ["press"],
            "skipped": [
                {"name": "laser", "why": "it is not paused"},
                {"name": "nobody's", "why": "no such queue"},
            ],
        }
        good(fleet.post("queues/press/set_queue_concurrency/", concurrency=3))
        assert Queue.objects.get(pk="press").concurrency_limit == 3
        good(fleet.post("queues/set_queue_concurrency/", names=["press"], concurrency=None))
        assert Queue.objects.get(pk="press").concurrency_limit is None
        assert "no limit" in refused(fleet.post("queues/press/set_queue_concurrency/"), 409, "skipped")
        assert Change.objects.filter(subject_kind="queue", actor="maria").count() == 4

    def test_a_queue_that_does_not_exist_is_not_found(self, fleet: Fleet) -> None:
        refused(fleet.get("queues/nobody's/"), 404, "not_found")
        refused(fleet.post("queues/nobody's/pause_queue/", comment="x"), 404, "not_found")

    def test_the_list_costs_the_same_whatever_waits(self, fleet: Fleet, make_worker: Make, make_job: Make) -> None:
        make_job(queue="q")
        few = cost(lambda: fleet.get("queues/", limit=1000))
        Queue.objects.remember(f"q{number}" for number in range(900))
        for number in range(20):
            make_job(queue=f"q{number}", priority=number, slots=1 + number % 3)
            make_worker(queues=[f"q{number}"])
        assert cost(lambda: fleet.get("queues/", limit=1000)) == few <= 9

    @pytest.mark.parametrize("operation", operations.QUEUES, ids=lambda operation: operation.name)
    def test_every_operation_is_a_form_in_a_browser(self, fleet: Fleet, operation: Any) -> None:
        Queue.objects.remember(["a/b"])
        browser = Client(headers={"Accept": "text/html"})
        browser.force_login(fleet.user)
        for address in (f"queues/a/b/{operation.name}", f"queues/{operation.name}"):
            page = browser.get(FLEET + address).content.decode()
            assert all(f'name="{parameter.name}"' in page for parameter in operation.parameters)


def test_every_state_of_a_job_is_in_one_half_of_the_list(fleet: Fleet, make_worker: Make, make_job: Make) -> None:
    for state in JobState:
        make_job(state=state.value, **({} if state == JobState.QUEUED else {"worker": make_worker()}))
    assert len(ids(fleet.get("jobs/"))) == len(JobState)
    assert len(ids(fleet.get("jobs/", ordering="finished_at"))) == len(FINAL)
    for state in JobState:
        assert len(ids(fleet.get("jobs/", state=state.value))) == 1
    assert Worker.objects.count() == len(JobState) - 1
