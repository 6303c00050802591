from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psycopg
import pytest

from jobs_app import lifecycle, logs
from jobs_app.lifecycle import StaleAttempt
from jobs_app.models import Job, LogChunk

Make = Callable[..., Any]
CAP = 1000


@pytest.fixture
def job(make_job: Make, make_worker: Make) -> Job:
    return make_job(worker=make_worker())


def append(job: Job, data: bytes, *, offset: int = 0, worker_id: int | None = None, attempt: int = 1) -> int:
    return logs.append(
        worker_id=worker_id or job.worker_id or -1,
        job_id=job.pk,
        attempt=attempt,
        offset=offset,
        data=data,
        cap_bytes=CAP,
    )


def stored(job: Job, *, attempt: int = 1, offset: int = 0) -> bytes:
    return b"".join(logs.read(job_id=job.pk, attempt=attempt, offset=offset))


def test_bytes_come_back_as_they_were_whatever_they_are(job: Job) -> None:
    text = b"\x00\xff\xfe half a letter: \xe2\x82" + bytes(range(256)) + "文\r\n".encode()
    for start in range(0, len(text), 7):
        append(job, text[start : start + 7], offset=start)
    assert stored(job) == text


def test_a_repeated_append_changes_nothing_and_is_answered_with_the_size(job: Job) -> None:
    assert append(job, b"hello") == 5
    assert append(job, b" world", offset=5) == 11
    assert append(job, b"hello") == 11
    assert append(job, b" wor", offset=5) == 11
    assert stored(job) == b"hello world"
    assert LogChunk.objects.count() == 2


@pytest.mark.parametrize(
    ("offset", "data"), [(9, b"x"), (6, b""), (3, b"lo and more")], ids=["gap", "empty beyond the end", "overlap"]
)
def test_a_wrong_offset_is_answered_with_the_size_to_go_on_from(job: Job, offset: int, data: bytes) -> None:
    append(job, b"hello")
    with pytest.raises(logs.WrongOffset) as refused:
        append(job, data, offset=offset)
    assert refused.value.extra == {"size": 5}
    assert stored(job) == b"hello"


def test_an_empty_append_asks_for_the_size(job: Job) -> None:
    append(job, b"hello")
    assert append(job, b"", offset=0) == 5
    assert append(job, b"", offset=5) == 5


def test_what_fits_below_the_cap_is_kept_and_the_rest_is_refused(job: Job) -> None:
    assert append(job, b"x" * (CAP - 1)) == CAP - 1
    assert append(job, b"yz", offset=CAP - 1) == CAP
    for offset, data in ((CAP - 1, b"yz"), (CAP, b"z")):
        with pytest.raises(logs.LogFull):
            append(job, data, offset=offset)
    assert append(job, b"x" * (CAP - 1)) == CAP, "what is known already may be repeated at the cap, too"
    assert stored(job) == b"x" * (CAP - 1) + b"y"
    job.refresh_from_db()
    assert (job.state, job.log_size, job.log_full) == ("running", CAP, True)
    assert lifecycle.report(
        worker_id=job.worker_id,
        job_id=job.pk,
        report=lifecycle.Report(attempt=1, state=lifecycle.ReportState.SUCCESS, log_size=CAP + 1),
    )


def test_a_gap_is_a_wrong_offset_also_beyond_the_cap(job: Job) -> None:
    append(job, b"x" * 10)
    with pytest.raises(logs.WrongOffset):
        append(job, b"y" * CAP, offset=20)


def test_a_log_that_is_full_stays_so_when_the_cap_was_lowered(job: Job) -> None:
    append(job, b"x" * 10)
    with pytest.raises(logs.LogFull):
        logs.append(worker_id=job.worker_id, job_id=job.pk, attempt=1, offset=10, data=b"y", cap_bytes=5)
    job.refresh_from_db()
    assert job.log_full


class TestWhatIsMissing:
    """Said wherever a job is shown; see also the bridge's half of it."""

    def of(self, job: Job, **columns: Any) -> str:
        Job.objects.filter(pk=job.pk).update(**columns)
        job.refresh_from_db()
        return logs.missing(job)

    def test_nothing_of_a_job_that_runs_well_or_whose_log_is_all_here(self, job: Job) -> None:
        assert self.of(job) == ""
        assert self.of(job, log_size=10, log_final_size=10, log_full=True, log_trouble="answers 503") == ""

    def test_of_a_log_that_is_full(self, job: Job) -> None:
        said = "The log has reached the size that is kept here, 1,000 bytes; the rest is not kept."
        assert self.of(job, log_size=1000, log_full=True) == said
        assert self.of(job, log_final_size=1001) == said

    def test_of_a_log_that_does_not_get_through_in_the_words_of_its_machine(self, job: Job) -> None:
        logs.note_troubles(worker_id=job.worker_id, troubles=[(job.pk, 1, "answers 503")])
        assert self.of(job) == "The log is not here; its worker host says: answers 503"
        said = "The rest of the log is not here; its worker host says: answers 503"
        assert self.of(job, log_size=5, log_final_size=10) == said

    def test_of_a_log_that_is_late(self, job: Job) -> None:
        said = "The job has ended; its log has not come from the worker host yet."
        assert self.of(job, log_final_size=10) == said

    def test_it_is_gone_as_soon_as_something_arrives(self, job: Job) -> None:
        logs.note_troubles(worker_id=job.worker_id, troubles=[(job.pk, 1, "answers 503")])
        append(job, b"hello")
        assert self.of(job) == ""

    def test_nobody_else_and_no_older_attempt_has_a_say(self, job: Job, make_worker: Make) -> None:
        logs.note_troubles(worker_id=make_worker().pk, troubles=[(job.pk, 1, "forged")])
        logs.note_troubles(worker_id=job.worker_id, troubles=[(job.pk, 2, "early"), (job.pk, 0, "late")])
        assert self.of(job) == ""


def test_another_worker_cannot_append(job: Job, make_worker: Make) -> None:
    with pytest.raises(StaleAttempt):
        append(job, b"forged", worker_id=make_worker().pk)
    assert stored(job) == b""


@pytest.mark.parametrize("attempt", [0, 2, 3])
def test_only_the_attempt_that_was_handed_out_has_a_log(job: Job, attempt: int) -> None:
    with pytest.raises(StaleAttempt):
        append(job, b"x", attempt=attempt)


def test_a_job_that_does_not_exist_has_no_log(make_worker: Make) -> None:
    with pytest.raises(StaleAttempt):
        append(Job(pk=uuid.uuid4()), b"x", worker_id=make_worker().pk)


@pytest.mark.parametrize("state", ["success", "failed", "refused", "lost", "revoked"])
def test_the_last_holder_may_ship_the_rest_after_the_end(make_job: Make, make_worker: Make, state: str) -> None:
    job = make_job(worker=make_worker(), state=state)
    assert append(job, b"the rest") == 8
    assert stored(job) == b"the rest"


def test_each_attempt_has_a_log_of_its_own(job: Job, make_worker: Make) -> None:
    holder = job.worker_id
    append(job, b"first attempt")
    lifecycle.report(
        worker_id=holder,
        job_id=job.pk,
        report=lifecycle.Report(attempt=1, state=lifecycle.ReportState.NOT_STARTED),
    )
    with pytest.raises(StaleAttempt):
        append(job, b"late", offset=13, worker_id=holder)
    other = make_worker()
    (again,) = lifecycle.claim(worker=other, claim_id=uuid.uuid4(), free_slots=1, revision=0, first=True).jobs
    with pytest.raises(StaleAttempt):
        append(job, b"late", offset=13, worker_id=holder)
    assert append(again, b"second", attempt=2) == 6
    assert (stored(job, attempt=1), stored(job, attempt=2)) == (b"first attempt", b"second")


def test_concurrent_appends_of_the_same_bytes_store_them_once(
    transactional_db: None, job: Job, in_thread: Callable[..., Future[Any]]
) -> None:
    appends = [in_thread(append, job, b"hello") for _ in range(8)]
    assert [future.result(30) for future in appends] == [5] * 8
    assert stored(job) == b"hello"
    assert LogChunk.objects.count() == 1


def test_an_append_waits_for_another_one_that_has_not_committed_and_is_then_a_repetition(
    job: Job,
    second_connection: psycopg.Connection[Any],
    in_thread: Callable[..., Future[Any]],
    blocked: Callable[[int], None],
) -> None:
    second_connection.execute("UPDATE job SET log_size = 5 WHERE id = %s", [job.pk])
    second_connection.execute(
        """INSERT INTO log_chunk (job_id, attempt, "offset", data) VALUES (%s, 1, 0, 'hello')""", [job.pk]
    )
    second = in_thread(append, job, b"hello")
    blocked(1)
    second_connection.commit()
    assert second.result(30) == 5
    assert LogChunk.objects.count() == 1


@pytest.mark.parametrize("offset", [0, 1, 4, 5, 6, 10, 11])
def test_reading_starts_at_any_byte(job: Job, offset: int) -> None:
    append(job, b"hello")
    append(job, b" world", offset=5)
    assert stored(job, offset=offset) == b"hello world"[offset:]


def test_an_append_is_one_statement(job: Job, django_assert_num_queries: Callable[..., Any]) -> None:
    with django_assert_num_queries(1):
        append(job, b"hello")


def test_a_log_is_read_in_bounded_memory(job: Job, django_assert_num_queries: Callable[..., Any]) -> None:
    for offset in range(5):
        append(job, b"x", offset=offset)
    chunks = logs.read(job_id=job.pk, attempt=1, offset=3)
    with django_assert_num_queries(1):
        assert next(chunks) == b"x"
