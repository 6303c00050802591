from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs_app import logs
from jobs_app.admin_logs import PART_BYTES
from jobs_app.models import Job, LogChunk

Make = Callable[..., Any]
HOSTILE = b"</div><script>alert('sesame')</script>\n"
EVERY_BYTE = bytes(range(256))


def write(job: Job, *chunks: bytes, attempt: int = 1) -> None:
    offset = 0
    for data in chunks:
        LogChunk.objects.create(job=job, attempt=attempt, offset=offset, data=data)
        offset += len(data)


def change(job: Job, **columns: Any) -> None:
    Job.objects.filter(pk=job.pk).update(**columns)


def address(job: Job, attempt: int = 1, view: str = "") -> str:
    return f"/admin/jobs_app/job/{job.pk}/log/{attempt}/{view}"


def good(answer: Any) -> Any:
    assert answer.status_code == 200, answer.content[:500]
    return answer


def tail(client: Client, job: Job, attempt: int = 1, **query: Any) -> Any:
    return good(client.get(address(job, attempt, "tail/"), query))


def note(client: Client, job: Job, attempt: int = 1) -> str:
    """What is said of the log, which the page and the answers to it say alike."""
    said: str = tail(client, job, attempt)["Log-Note"]
    assert said in good(client.get(address(job, attempt))).content.decode().replace("&#x27;", "'")
    return said


@pytest.fixture
def job(make_worker: Make, make_job: Make) -> Job:
    return make_job(worker=make_worker("press-7"))  # type: ignore[no-any-return]


class TestPage:
    def test_it_says_which_job_where_and_how_it_stands(self, ops: Client, job: Job) -> None:
        page = good(ops.get(address(job))).content.decode()
        for part in (str(job), "ec-state--running", "press-7", "Attempt 1", f"/admin/jobs_app/job/{job.pk}/change/"):
            assert part in page

    def test_it_never_holds_any_of_the_log(self, ops: Client, job: Job) -> None:
        write(job, HOSTILE)
        assert b"sesame" not in good(ops.get(address(job))).content

    def test_its_script_has_no_way_to_make_html_of_a_log(self) -> None:
        found = finders.find("jobs_app/log.js")
        assert isinstance(found, str)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|eval\(", Path(found).read_text()
        )

    def test_every_attempt_has_a_tab_and_what_airflow_wrote_has_one_when_it_exists(
        self, ops: Client, job: Job, make_worker: Make
    ) -> None:
        change(job, attempt=3)
        page = good(ops.get(address(job, 2))).content.decode()
        assert all(address(job, attempt) in page for attempt in (1, 2, 3))
        assert f'href="{address(job, 2)}" aria-current="page"' in page
        assert address(job, 0) not in page
        write(job, b"no executor", attempt=0)
        assert address(job, 0) in good(ops.get(address(job, 2))).content.decode()

    def test_of_an_earlier_attempt_it_names_no_worker(self, ops: Client, job: Job) -> None:
        change(job, attempt=2)
        assert b"press-7" in good(ops.get(address(job, 2))).content
        assert b"press-7" not in good(ops.get(address(job, 1))).content

    def test_a_job_that_was_handed_out_very_often_shows_its_latest_attempts(self, ops: Client, job: Job) -> None:
        change(job, attempt=500)
        page = good(ops.get(address(job, 500))).content.decode()
        assert page.count("Attempt ") <= 25
        assert address(job, 499) in page

    def test_the_address_without_its_last_slash_leads_there_too(self, ops: Client, job: Job) -> None:
        assert ops.get(address(job).rstrip("/"), follow=True).redirect_chain[-1][0] == address(job)

    def test_the_page_of_the_job_leads_here(self, ops: Client, job: Job) -> None:
        assert address(job) in good(ops.get(f"/admin/jobs_app/job/{job.pk}/change/")).content.decode()

    def test_a_worker_is_no_link_for_somebody_who_may_not_see_workers(
        self, staff: Callable[..., Client], job: Job
    ) -> None:
        link = f"/admin/workers_app/worker/{job.worker_id}/change/"
        assert link not in good(staff("view_job").get(address(job))).content.decode()
        assert link in good(staff("view_job", "view_worker").get(address(job))).content.decode()


class TestTail:
    def test_it_answers_the_bytes_from_an_offset_on_across_chunks(self, ops: Client, job: Job) -> None:
        write(job, EVERY_BYTE, b"0123456789", EVERY_BYTE)
        whole = EVERY_BYTE + b"0123456789" + EVERY_BYTE
        for offset in (0, 1, 255, 256, 260, 266, 521):
            assert tail(ops, job, offset=offset).content == whole[offset:]
        assert tail(ops, job, offset=250, limit=10).content == whole[250:260]

    @pytest.mark.parametrize("offset", [522, 10_000, 2**63 - 1])
    def test_at_and_beyond_the_end_there_is_nothing_yet(self, ops: Client, job: Job, offset: int) -> None:
        write(job, EVERY_BYTE, b"0123456789", EVERY_BYTE)
        answer = tail(ops, job, offset=offset)
        assert (answer.content, answer["Log-Size"]) == (b"", "522")

    def test_an_answer_is_bounded(self, ops: Client, job: Job) -> None:
        write(job, *[b"x" * 100_000] * 4)
        answer = tail(ops, job)
        assert (len(answer.content), answer["Log-Size"]) == (PART_BYTES, "400000")
        assert len(tail(ops, job, offset=PART_BYTES).content) == 400_000 - PART_BYTES

    def test_a_large_log_is_read_only_as_far_as_the_answer_goes(self, ops: Client, job: Job) -> None:
        write(job, *[b"x" * PART_BYTES] * 8)
        with CaptureQueriesContext(connection) as queries:
            tail(ops, job, offset=10)
        assert len(queries) <= 7

    @pytest.mark.parametrize(
        "query",
        [
            *("offset=-1", "offset=x", "offset=", "offset=1.5", "offset=%D9%A1"),
            *(f"offset={2**63}", f"offset={'9' * 5000}", f"limit={PART_BYTES + 1}", "limit=-1"),
        ],
    )
    def test_what_is_no_number_of_bytes_is_refused(self, ops: Client, job: Job, query: str) -> None:
        assert ops.get(f"{address(job, 1, 'tail/')}?{query}").status_code == 400

    def test_it_is_text_and_never_a_page_and_nothing_keeps_it(self, ops: Client, job: Job) -> None:
        write(job, HOSTILE)
        answer = tail(ops, job)
        assert answer.content == HOSTILE
        assert answer["Content-Type"] == "text/plain; charset=utf-8"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in answer["Cache-Control"]

    def test_it_says_how_the_job_stands(self, ops: Client, job: Job, make_worker: Make) -> None:
        assert (tail(ops, job)["Job-State"], tail(ops, job)["Job-Attempt"]) == ("running", "1")
        change(job, attempt=2)
        assert tail(ops, job)["Job-Attempt"] == "2"

    def test_a_log_is_complete_when_the_machine_has_sent_what_it_said_it_would(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        job = make_job(state="success", attempt=1, worker=make_worker())
        write(job, b"12345")
        complete = {told: self.complete(ops, job, told) for told in (None, 6, 5)}
        assert complete == {None: "false", 6: "false", 5: "true"}

    def complete(self, ops: Client, job: Job, told: int | None) -> Any:
        change(job, log_final_size=told)
        return tail(ops, job)["Log-Complete"]

    def test_the_log_of_an_earlier_attempt_is_complete(self, ops: Client, job: Job) -> None:
        change(job, attempt=2)
        assert (tail(ops, job, 1)["Log-Complete"], tail(ops, job, 2)["Log-Complete"]) == ("true", "false")

    def test_a_job_that_waits_is_not_complete_and_one_that_ended_before_it_began_is(
        self, ops: Client, make_job: Make
    ) -> None:
        assert tail(ops, make_job())["Log-Complete"] == "false"
        assert tail(ops, make_job(state="revoked"))["Log-Complete"] == "true"


class TestWords:
    """What is said of a log that is empty, waited for or cut."""

    def test_of_a_job_that_waits(self, ops: Client, make_job: Make) -> None:
        assert note(ops, make_job()) == "Not started: the job waits for a worker host."

    def test_of_a_job_that_nobody_has_had(self, ops: Client, make_job: Make) -> None:
        assert note(ops, make_job(state="failed")) == "No worker host has had the job."

    def test_of_a_job_that_is_about_to_start(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), state="claimed")
        assert note(ops, job) == "A worker host has taken the job and has not started it yet."

    def test_of_a_job_that_runs(self, ops: Client, job: Job) -> None:
        assert note(ops, job) == "The job runs and has written nothing yet."
        write(job, b"hello")
        assert note(ops, job) == ""

    def test_of_a_job_on_a_silent_worker(self, ops: Client, job: Job, make_worker: Make) -> None:
        change(job, worker=make_worker(state="unknown"))
        assert "is silent" in note(ops, job)
        write(job, b"hello")
        assert "is silent" in note(ops, job)

    def test_of_a_job_that_ended(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(state="success", attempt=1, worker=make_worker())
        assert note(ops, job) == "The job has ended; its log has not come yet."
        change(job, log_final_size=0)
        assert note(ops, job) == "The job ended without a log."
        write(job, b"hello")
        change(job, log_final_size=9, log_size=5)
        assert note(ops, job) == "The job has ended; the rest of its log has not come from the worker host yet."
        change(job, log_final_size=5)
        assert note(ops, job) == ""

    def test_of_an_attempt_that_was_handed_out_again(self, ops: Client, job: Job) -> None:
        change(job, attempt=2)
        assert "handed out again" in note(ops, job, 1)
        change(job, state="queued", worker=None)
        assert "handed out again" in note(ops, job, 2)

    def test_of_a_log_that_is_larger_than_what_is_kept(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(state="success", attempt=1, worker=make_worker(), log_final_size=9000, log_full=True)
        write(job, b"x" * 950)
        change(job, log_size=950)
        assert note(ops, job) == "The log has reached the size that is kept here, 950 bytes; the rest is not kept."
        assert tail(ops, job)["Log-Complete"] == "true"

    def test_of_a_log_that_does_not_get_through(self, ops: Client, job: Job) -> None:
        change(job, log_trouble="https://edge.example.com answers 503\n\u2026")
        said = "The log is not here; its worker host says: https://edge.example.com answers 503"
        assert tail(ops, job)["Log-Note"] == f"{said} ?", "what an agent says must fit into a header"
        assert f"{said} \u2026" in good(ops.get(address(job))).content.decode()
        assert f"{said}" in good(ops.get(f"/admin/jobs_app/job/{job.pk}/change/")).content.decode()

    def test_of_what_airflow_wrote(self, ops: Client, job: Job) -> None:
        write(job, b"no executor", attempt=0)
        assert note(ops, job, 0) == "This is what Airflow's own side wrote."


class TestDownload:
    def download(self, client: Client, job: Job) -> Any:
        return good(client.get(address(job, 1, "download/")))

    def test_it_has_every_byte(self, transactional_db: None, ops: Client, job: Job) -> None:
        chunks = [EVERY_BYTE * 700, b"\xff", b"\0", EVERY_BYTE * 900, b"end"]
        write(job, *chunks)
        answer = self.download(ops, job)
        whole = b"".join(chunks)
        assert b"".join(answer.streaming_content) == whole
        assert answer["Content-Length"] == str(len(whole))

    def test_it_ends_where_the_log_ended_when_it_began(self, transactional_db: None, ops: Client, job: Job) -> None:
        write(job, b"12345")
        answer = self.download(ops, job)
        LogChunk.objects.create(job=job, attempt=1, offset=5, data=b"67")
        assert b"".join(answer.streaming_content) == b"12345"

    def test_between_its_parts_others_have_the_database_connection(
        self, transactional_db: None, ops: Client, job: Job
    ) -> None:
        write(job, *[b"x" * PART_BYTES] * 3)
        parts = 0
        for _ in self.download(ops, job).streaming_content:
            parts += 1
            assert connection.connection is None
        assert parts == 3

    def test_many_small_chunks_are_few_parts(self, transactional_db: None, ops: Client, job: Job) -> None:
        write(job, *[b"line\n"] * 50)
        assert list(self.download(ops, job).streaming_content) == [b"line\n" * 50]

    def test_an_empty_log_is_an_empty_file(self, transactional_db: None, ops: Client, job: Job) -> None:
        assert b"".join(self.download(ops, job).streaming_content) == b""

    def test_it_is_a_file_and_never_a_page(self, transactional_db: None, ops: Client, job: Job) -> None:
        answer = self.download(ops, job)
        assert answer["Content-Type"] == "application/octet-stream"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Content-Disposition"] == 'attachment; filename="tour.hello.manual.try0.attempt1.log"'

    @pytest.mark.parametrize(
        ("columns", "name"),
        [
            (
                {"dag_id": "../../etc", "task_id": 'a"; x=\\', "run_id": "scheduled__2026-01-01T00:00:00+00:00"},
                "_.._etc.a_x_.scheduled__2026-01-01T00_00_00+00_00.try0.attempt1.log",
            ),
            (
                {"dag_id": "dü", "run_id": "a\r\nSet-Cookie: x", "map_index": 4},
                "d_.hello.4.a_Set-Cookie_x.try0.attempt1.log",
            ),
            ({"dag_id": "d" * 250}, "d" * 200 + ".try0.attempt1.log"),
        ],
    )
    def test_its_name_is_safe_whatever_airflow_calls_its_things(
        self, transactional_db: None, ops: Client, job: Job, columns: dict[str, Any], name: str
    ) -> None:
        change(job, **columns)
        assert self.download(ops, job)["Content-Disposition"] == f'attachment; filename="{name}"'


VIEWS = ("", "tail/", "download/")


class TestWhoMaySee:
    @pytest.mark.parametrize("view", VIEWS)
    def test_whoever_may_look_at_jobs(self, staff: Callable[..., Client], job: Job, view: str) -> None:
        write(job, HOSTILE)
        good(staff("view_job").get(address(job, 1, view)))

    @pytest.mark.parametrize("view", VIEWS)
    def test_nobody_else(self, staff: Callable[..., Client], job: Job, view: str) -> None:
        write(job, HOSTILE)
        answer = staff("view_worker", "view_queue").get(address(job, 1, view))
        assert answer.status_code == 403
        assert b"sesame" not in answer.content

    @pytest.mark.parametrize("view", VIEWS)
    def test_without_a_login_there_is_only_the_login_page(self, http: None, job: Job, view: str) -> None:
        answer = Client().get(address(job, 1, view))
        assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")

    @pytest.mark.parametrize("view", VIEWS)
    def test_an_attempt_or_a_job_that_does_not_exist_is_not_found(self, ops: Client, job: Job, view: str) -> None:
        for attempt in (0, 2, 2**31, 10**30):
            assert ops.get(address(job, attempt, view)).status_code == 404
        assert ops.get(address(Job(pk=uuid.uuid4()), 1, view)).status_code == 404

    @pytest.mark.parametrize("view", VIEWS)
    def test_nothing_is_changed_here(self, ops: Client, job: Job, view: str) -> None:
        assert ops.post(address(job, 1, view)).status_code == 405


def test_what_an_agent_appends_is_what_the_page_gets(ops: Client, job: Job) -> None:
    offset = 0
    for data in (b"one\n", "zwei ü".encode(), b"\xff\x00\n"):
        offset = logs.append(
            worker_id=job.worker_id or 0, job_id=job.pk, attempt=1, offset=offset, data=data, cap_bytes=100
        )
    answer = tail(ops, job, offset=4)
    assert answer.content == "zwei ü".encode() + b"\xff\x00\n"
    assert answer["Log-Size"] == str(offset)
