from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from jobs_app import lifecycle, logs
from jobs_app.lifecycle import Claim, Report, StaleAttempt
from jobs_app.models import Job, LogChunk
from jobs_app.states import FINAL, HELD, JobState, ReportState
from tests.integration.people import OPS
from workers_app import registry, wishes
from workers_app.models import Worker
from workers_app.registry import SessionReplaced
from workers_app.states import Reported

Make = Callable[..., Any]
FINAL_REPORTS = [ReportState.SUCCESS, ReportState.FAILED, ReportState.REFUSED]


def claim(worker: Worker, *, claim_id: uuid.UUID | None = None, first: bool = True, **said: Any) -> Claim:
    return lifecycle.claim(
        worker=worker,
        claim_id=claim_id or uuid.uuid4(),
        first=first,
        **{"free_slots": 8, "revision": worker.revision} | said,
    )


def report(job: Job, state: str = "success", *, worker: Worker | None = None, **said: Any) -> JobState:
    return lifecycle.report(
        worker_id=worker.pk if worker else job.worker_id or -1,
        job_id=job.pk,
        report=Report(**{"attempt": job.attempt, "state": ReportState(state)} | said),
    )


def state(job: Job) -> str:
    return Job.objects.values_list("state", flat=True).get(pk=job.pk)


@pytest.fixture
def heard(second_connection: psycopg.Connection[Any]) -> Callable[[], list[tuple[str, Any]]]:
    """What parked polls are told by notification from now on."""
    second_connection.autocommit = True
    second_connection.execute("LISTEN edgecontrol_jobs")
    second_connection.execute("LISTEN edgecontrol_worker")

    def heard() -> list[tuple[str, Any]]:
        notices: Iterator[psycopg.Notify] = second_connection.notifies(timeout=2, stop_after=1)
        said = [(notice.channel, json.loads(notice.payload)) for notice in notices]
        rest = second_connection.notifies(timeout=0)
        return said + [(notice.channel, json.loads(notice.payload)) for notice in rest]

    return heard


class TestClaim:
    def test_a_claimed_job_has_a_new_number_a_holder_and_an_empty_log(self, make_worker: Make, make_job: Make) -> None:
        worker, waiting, claim_id = make_worker(), make_job(reason="waits", attempt=3, log_size=7), uuid.uuid4()
        (job,) = claim(worker, claim_id=claim_id).jobs
        assert (job.pk, job.state, job.attempt, job.worker_id) == (waiting.pk, "claimed", 4, worker.pk)
        assert (job.claim_id, job.log_size, job.reason, job.token) == (claim_id, 0, "", "airflow-token")
        assert job.claimed_at is not None
        assert job.workload == waiting.workload

    def test_a_claim_is_a_sign_of_life(self, make_worker: Make) -> None:
        worker = make_worker(heard_seconds_ago=500, state="unknown")
        claim(worker, free_slots=0)
        seen = Worker.objects.get(pk=worker.pk)
        assert seen.last_heartbeat > worker.last_heartbeat + timedelta(seconds=400)
        assert seen.state == "idle"

    @pytest.mark.parametrize("wish", ["maintenance", "shutdown"])
    def test_a_worker_that_should_rest_gets_nothing_whatever_it_asks(
        self, make_worker: Make, make_job: Make, wish: str
    ) -> None:
        make_job()
        assert claim(make_worker(requested=wish)) == Claim(jobs=[])

    def test_the_same_claim_again_returns_the_same_jobs_and_no_others(self, make_worker: Make, make_job: Make) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        for _ in range(4):
            make_job()
        first = claim(worker, claim_id=claim_id, free_slots=2)
        again = claim(Worker.objects.get(pk=worker.pk), claim_id=claim_id, free_slots=2)
        assert {job.pk for job in again.jobs} == {job.pk for job in first.jobs}
        assert [job.attempt for job in again.jobs] == [1, 1]
        assert Job.objects.filter(state="claimed").count() == 2

    def test_the_same_claim_again_leaves_out_what_was_confirmed_since(self, make_worker: Make, make_job: Make) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        first, second = make_job(priority=2), make_job(priority=1)
        claim(worker, claim_id=claim_id, free_slots=2)
        lifecycle.confirm(worker_id=worker.pk, pairs=[(first.pk, 1)])
        again = claim(Worker.objects.get(pk=worker.pk), claim_id=claim_id, free_slots=0)
        assert [job.pk for job in again.jobs] == [second.pk]

    def test_the_same_claim_again_returns_its_jobs_although_the_first_request_is_still_under_way(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        # Both requests were authenticated before either of them found the job.
        earlier, repeated = Worker.objects.get(pk=worker.pk), Worker.objects.get(pk=worker.pk)
        claim(earlier, claim_id=claim_id)
        job = make_job()
        assert [found.pk for found in claim(earlier, claim_id=claim_id, first=False).jobs] == [job.pk]
        make_job()
        assert [found.pk for found in claim(repeated, claim_id=claim_id).jobs] == [job.pk]

    def test_a_repeated_claim_that_is_parked_finds_the_jobs_that_went_into_the_lost_answer(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        cut_off, repeated = Worker.objects.get(pk=worker.pk), Worker.objects.get(pk=worker.pk)
        assert not claim(cut_off, claim_id=claim_id).jobs
        assert not claim(repeated, claim_id=claim_id).jobs
        job = make_job()
        assert claim(cut_off, claim_id=claim_id, first=False).jobs
        assert [found.pk for found in claim(repeated, claim_id=claim_id, first=False).jobs] == [job.pk]

    def test_a_lost_answer_is_repeated_before_new_orders_are_announced(self, make_worker: Make, make_job: Make) -> None:
        worker, job, claim_id = make_worker(), make_job(), uuid.uuid4()
        seen = worker.revision
        claim(worker, claim_id=claim_id)
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        again = claim(Worker.objects.get(pk=worker.pk), claim_id=claim_id, revision=seen)
        assert [found.pk for found in again.jobs] == [job.pk]

    def test_a_parked_poll_ends_when_a_newer_claim_of_its_worker_exists(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker, older = make_worker(), uuid.uuid4()
        parked = Worker.objects.get(pk=worker.pk)
        claim(parked, claim_id=older)
        claim(Worker.objects.get(pk=worker.pk))
        job = make_job()
        ended = claim(parked, claim_id=older, first=False)
        assert ended.superseded
        assert ended.jobs == []
        assert state(job) == "queued"

    def test_a_parked_poll_of_an_older_session_ends(self, make_worker: Make, make_job: Make) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        claim(worker, claim_id=claim_id)
        make_job()
        Worker.objects.filter(pk=worker.pk).update(session=uuid.uuid4())
        assert claim(worker, claim_id=claim_id, first=False) == Claim(jobs=[], superseded=True)

    def test_a_claim_of_an_older_session_is_refused(self, make_worker: Make, make_job: Make) -> None:
        worker, job = make_worker(), make_job()
        introduction = registry.Introduction(session=uuid.uuid4(), boot_id="boot-1", concurrency=8)
        registry.register(worker=Worker.objects.get(pk=worker.pk), introduction=introduction)
        with pytest.raises(SessionReplaced):
            claim(worker)
        assert state(job) == "queued"

    @pytest.mark.parametrize("first", [True, False])
    @pytest.mark.parametrize("seen", [6, 8])
    def test_an_agent_with_another_revision_hears_that_a_heartbeat_is_due_and_takes_nothing(
        self, make_worker: Make, make_job: Make, seen: int, first: bool
    ) -> None:
        claim_id = uuid.uuid4()
        worker, job = make_worker(revision=7, claim_id=claim_id), make_job()
        assert claim(worker, claim_id=claim_id, revision=seen, first=first) == Claim(jobs=[], heartbeat_due=True)
        assert state(job) == "queued"

    def test_a_wish_that_comes_while_the_poll_is_parked_is_obeyed(self, make_worker: Make, make_job: Make) -> None:
        worker, claim_id = make_worker(), uuid.uuid4()
        revision = worker.revision
        claim(worker, claim_id=claim_id)
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        make_job()
        assert claim(worker, claim_id=claim_id, first=False, revision=revision).heartbeat_due
        # Even an agent that guesses the new revision gets nothing.
        assert not claim(worker, claim_id=claim_id, first=False, revision=worker.revision).jobs

    def test_a_claim_does_not_overwrite_what_a_heartbeat_said_in_between(self, make_worker: Make) -> None:
        worker = make_worker(reported="idle", state="idle")
        authenticated = Worker.objects.get(pk=worker.pk)
        registry.heartbeat(
            worker=Worker.objects.get(pk=worker.pk),
            reported=Reported.OFFLINE,
            jobs_active=0,
            queues=None,
            concurrency=8,
            sysinfo=None,
        )
        claim(authenticated, free_slots=0)
        seen = Worker.objects.get(pk=worker.pk)
        assert (seen.reported, seen.state) == ("offline", "offline")


class TestConfirm:
    def test_confirmed_jobs_run(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        jobs = [make_job(worker=worker, state="claimed", attempt=number) for number in (1, 2)]
        pairs = {(job.pk, job.attempt) for job in jobs}
        assert lifecycle.confirm(worker_id=worker.pk, pairs=list(pairs)) == pairs
        assert [state(job) for job in jobs] == ["running", "running"]
        assert all(Job.objects.values_list("started_at", flat=True))

    def test_a_repeated_confirmation_is_a_success_and_keeps_the_start(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        long_ago(job, started_at=100)
        assert lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, 1)]) == {(job.pk, 1)}
        assert Job.objects.get(pk=job.pk).started_at == job.started_at

    @pytest.mark.parametrize("attempt", [1, 3])
    def test_another_attempt_is_not_confirmed(self, make_worker: Make, make_job: Make, attempt: int) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="claimed", attempt=2)
        assert lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, attempt)]) == set()
        assert state(job) == "claimed"

    def test_another_workers_job_is_not_confirmed(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), state="claimed")
        assert lifecycle.confirm(worker_id=make_worker().pk, pairs=[(job.pk, 1)]) == set()
        assert state(job) == "claimed"

    @pytest.mark.parametrize("ended", sorted(FINAL))
    def test_a_job_that_has_ended_is_not_confirmed(self, make_worker: Make, make_job: Make, ended: str) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state=ended)
        assert lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, 1)]) == set()
        assert state(job) == ended

    def test_a_released_job_cannot_be_confirmed_any_more(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="claimed")
        long_ago(job, claimed_at=31)
        lifecycle.release_unconfirmed(after_seconds=30)
        assert lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, 1)]) == set()

    def test_good_pairs_are_confirmed_beside_bad_ones_in_one_statement(
        self, make_worker: Make, make_job: Make, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        worker = make_worker()
        mine, stale = (make_job(worker=worker, state="claimed", attempt=2) for _ in range(2))
        with django_assert_num_queries(1):
            confirmed = lifecycle.confirm(
                worker_id=worker.pk, pairs=[(mine.pk, 2), (stale.pk, 1), (uuid.uuid4(), 1), (mine.pk, 2)]
            )
        assert confirmed == {(mine.pk, 2)}

    def test_confirming_nothing_is_harmless(self, make_worker: Make) -> None:
        assert lifecycle.confirm(worker_id=make_worker().pk, pairs=[]) == set()


class TestReport:
    @pytest.mark.parametrize("said", FINAL_REPORTS)
    def test_a_running_job_ends_as_its_holder_says(self, make_worker: Make, make_job: Make, said: str) -> None:
        job = make_job(worker=make_worker())
        told = {
            "exit_code": 3,
            "airflow_outcome": "up_for_retry",
            "reason": "because",
            "log_size": 12,
            "log_sha256": "ab",
        }
        assert report(job, said, **told) == said
        job.refresh_from_db()
        assert (job.state, job.exit_code, job.airflow_outcome, job.reason) == (said, 3, "up_for_retry", "because")
        assert (job.log_final_size, job.log_sha256, job.token) == (12, "ab", None)
        assert job.finished_at is not None
        assert job.worker_id is not None
        assert job.told_at is None

    @pytest.mark.parametrize("said", FINAL_REPORTS)
    def test_the_same_report_twice_is_a_success_and_changes_nothing(
        self, make_worker: Make, make_job: Make, long_ago: Make, said: str
    ) -> None:
        job = make_job(worker=make_worker())
        report(job, said, exit_code=1)
        long_ago(job, finished_at=50)
        ended = job.finished_at
        assert report(job, said, exit_code=9) == said
        job.refresh_from_db()
        assert (job.finished_at, job.exit_code) == (ended, 1)

    @pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FINAL_REPORTS, 2)))
    def test_a_second_opinion_is_refused(self, make_worker: Make, make_job: Make, first: str, second: str) -> None:
        job = make_job(worker=make_worker())
        report(job, first)
        with pytest.raises(StaleAttempt):
            report(job, second)
        assert state(job) == first

    @pytest.mark.parametrize("said", ReportState)
    @pytest.mark.parametrize("ended", ["lost", "revoked"])
    def test_a_report_after_the_job_was_given_up_is_refused(
        self, make_worker: Make, make_job: Make, ended: str, said: str
    ) -> None:
        job = make_job(worker=make_worker(), state=ended)
        with pytest.raises(StaleAttempt):
            report(job, said)
        assert state(job) == ended

    @pytest.mark.parametrize("outcome", ["success", "deferred"])
    def test_a_success_that_airflow_accepted_corrects_a_loss_however_late_it_is_told(
        self, make_worker: Make, make_job: Make, outcome: str
    ) -> None:
        job = make_job(worker=make_worker(), state="lost", reason="its worker was silent")
        assert report(job, "success", airflow_outcome=outcome) == "success"
        assert report(job, "success", airflow_outcome=outcome) == "success", "the answer may have been lost"
        job.refresh_from_db()
        assert (job.state, job.airflow_outcome, job.reason) == ("success", outcome, "")

    def test_a_failure_that_the_loss_led_to_does_not_hide_it(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), state="lost")
        with pytest.raises(StaleAttempt):
            report(job, "failed", airflow_outcome="failed")
        assert state(job) == "lost"

    def test_what_airflow_accepted_corrects_nothing_of_others_nor_a_withdrawal(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker = make_worker()
        lost, revoked = (make_job(worker=worker, state=ended, attempt=2) for ended in ("lost", "revoked"))
        for job, said in (
            (lost, {"attempt": 1}),
            (lost, {"worker": make_worker()}),
            (revoked, {}),
        ):
            with pytest.raises(StaleAttempt):
                report(job, airflow_outcome="success", **said)
        assert (state(lost), state(revoked)) == ("lost", "revoked")

    @pytest.mark.parametrize("said", ReportState)
    @pytest.mark.parametrize("attempt", [1, 3])
    def test_a_report_of_another_attempt_is_refused(
        self, make_worker: Make, make_job: Make, attempt: int, said: str
    ) -> None:
        job = make_job(worker=make_worker(), attempt=2)
        with pytest.raises(StaleAttempt):
            report(job, said, attempt=attempt)
        assert state(job) == "running"

    @pytest.mark.parametrize("said", ReportState)
    @pytest.mark.parametrize("held", ["claimed", "running", "success", "failed", "refused"])
    def test_a_report_of_another_worker_is_refused(
        self, make_worker: Make, make_job: Make, held: str, said: str
    ) -> None:
        job = make_job(worker=make_worker(), state=held)
        with pytest.raises(StaleAttempt):
            report(job, said, worker=make_worker())
        assert state(job) == held

    def test_a_stranger_does_not_learn_that_a_released_job_waits(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker())
        report(job, "not_started")
        with pytest.raises(StaleAttempt):
            report(job, "not_started", worker=make_worker())

    @pytest.mark.parametrize("said", ["success", "refused"])
    def test_a_job_that_was_never_confirmed_cannot_have_run(self, make_worker: Make, make_job: Make, said: str) -> None:
        job = make_job(worker=make_worker(), state="claimed")
        with pytest.raises(StaleAttempt):
            report(job, said)
        assert state(job) == "claimed"

    @pytest.mark.parametrize("said", ReportState)
    def test_a_job_that_does_not_exist_is_stale(self, make_worker: Make, said: str) -> None:
        with pytest.raises(StaleAttempt):
            report(Job(pk=uuid.uuid4(), attempt=1), said, worker=make_worker())

    def test_a_final_report_is_one_statement(
        self, make_worker: Make, make_job: Make, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        job = make_job(worker=make_worker())
        with django_assert_num_queries(1):
            report(job)

    def test_of_two_reports_at_once_one_is_applied(
        self,
        make_worker: Make,
        make_job: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        job = make_job(worker=make_worker())
        second_connection.execute(
            "UPDATE job SET state = 'lost', finished_at = now(), token = NULL WHERE id = %s", [job.pk]
        )
        late = in_thread(report, job)
        blocked(1)
        second_connection.commit()
        with pytest.raises(StaleAttempt):
            late.result(30)
        assert state(job) == "lost"


class TestNotStarted:
    @pytest.mark.parametrize("held", sorted(HELD))
    def test_a_start_that_never_reached_airflow_goes_back_to_the_queue(
        self, make_worker: Make, make_job: Make, held: str, heard: Callable[[], Any]
    ) -> None:
        job = make_job(worker=make_worker(), state=held, slots=2, queue="night", team_name="red")
        assert report(job, "not_started", reason="Airflow was away") == "queued"
        job.refresh_from_db()
        assert (job.state, job.worker_id, job.attempt, job.reason) == ("queued", None, 1, "Airflow was away")
        assert (job.token, job.started_at, job.claimed_at) == ("airflow-token", None, None)
        assert heard() == [("edgecontrol_jobs", {"queue": "night", "team": "red", "slots": 2, "count": 1})]

    def test_the_same_report_again_is_refused_since_the_job_has_no_holder_any_more(
        self, make_worker: Make, make_job: Make
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        assert report(job, "not_started", worker=worker) == "queued"
        with pytest.raises(StaleAttempt):
            report(job, "not_started", worker=worker)

    def test_it_waits_for_whoever_holds_the_row_and_is_then_taken(
        self,
        make_worker: Make,
        make_job: Make,
        second_connection: psycopg.Connection[Any],
        in_thread: Callable[..., Future[Any]],
        blocked: Callable[[int], None],
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        second_connection.execute("UPDATE job SET dispatcher = gen_random_uuid() WHERE id = %s", [job.pk])
        said = in_thread(report, job, "not_started", worker=worker)
        blocked(1)
        second_connection.commit()
        assert said.result(30) == "queued"
        assert state(job) == "queued"

    def test_it_is_refused_once_the_job_was_handed_out_again(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        report(job, "not_started", worker=worker)
        claim(make_worker())
        with pytest.raises(StaleAttempt):
            report(job, "not_started", worker=worker)
        assert state(job) == "claimed"

    def test_a_job_that_can_never_be_started_fails_with_the_last_reason(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker, attempt=lifecycle.MAX_ATTEMPTS)
        long_ago(job, first_failed_start_at=lifecycle.MIN_START_TROUBLE_SECONDS + 1)
        assert report(job, "not_started", reason="no such file", worker=worker) == "failed"
        job.refresh_from_db()
        assert job.state == "failed"
        assert "no such file" in job.reason
        assert job.token is None

    def test_the_hand_out_before_the_last_one_still_goes_back(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        job = make_job(worker=make_worker(), attempt=lifecycle.MAX_ATTEMPTS - 1)
        long_ago(job, first_failed_start_at=lifecycle.MIN_START_TROUBLE_SECONDS + 1)
        assert report(job, "not_started") == "queued"

    def test_an_outage_in_which_many_machines_try_it_fails_no_job(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        # Waiting is no trouble: it may have waited for hours before.
        job, workers = make_job(), [make_worker() for _ in range(2 * lifecycle.MAX_ATTEMPTS)]
        long_ago(job, queued_at=80_000)
        for worker in workers:
            claim(worker)
            job.refresh_from_db()
            lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, job.attempt)])
            assert (
                report(job, "not_started", reason="Airflow's API server cannot be reached", worker=worker) == "queued"
            )
        since = Job.objects.get(pk=job.pk).first_failed_start_at
        long_ago(job, first_failed_start_at=lifecycle.MIN_START_TROUBLE_SECONDS + 1)
        claim(workers[0])
        job.refresh_from_db()
        assert report(job, "not_started", worker=workers[0]) == "failed"
        assert since is not None


class TestRelease:
    def test_a_claim_that_was_not_confirmed_in_time_goes_back(
        self, make_worker: Make, make_job: Make, long_ago: Make, heard: Callable[[], Any]
    ) -> None:
        late, fresh = (make_job(worker=make_worker(), state="claimed") for _ in range(2))
        running = make_job(worker=make_worker())
        long_ago(late, claimed_at=31)
        long_ago(fresh, claimed_at=20)
        long_ago(running, claimed_at=3000)
        assert lifecycle.release_unconfirmed(after_seconds=30) == 1
        assert [state(job) for job in (late, fresh, running)] == ["queued", "claimed", "running"]
        late.refresh_from_db()
        assert (late.worker_id, late.claim_id, late.unconfirmed_claims, late.attempt) == (None, None, 1, 1)
        assert late.reason
        assert heard() == [("edgecontrol_jobs", {"queue": "default", "team": "", "slots": 1, "count": 1})]

    def test_the_next_hand_out_has_the_next_number(self, make_worker: Make, make_job: Make, long_ago: Make) -> None:
        job = make_job(worker=make_worker(), state="claimed")
        long_ago(job, claimed_at=31)
        lifecycle.release_unconfirmed(after_seconds=30)
        assert [found.attempt for found in claim(make_worker()).jobs] == [2]

    def test_a_job_that_nobody_ever_confirms_fails_in_the_end(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        job, worker, states = make_job(), make_worker(), []
        for _ in range(lifecycle.MAX_UNCONFIRMED_CLAIMS):
            claim(worker)
            long_ago(job, claimed_at=31)
            lifecycle.release_unconfirmed(after_seconds=30)
            states.append(state(job))
        assert states == ["queued"] * (lifecycle.MAX_UNCONFIRMED_CLAIMS - 1) + ["failed"]
        job.refresh_from_db()
        assert "never confirmed" in job.reason
        assert job.token is None

    def test_hand_outs_before_a_confirmed_one_do_not_count_later(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), state="claimed", unconfirmed_claims=4)
        lifecycle.confirm(worker_id=job.worker_id, pairs=[(job.pk, job.attempt)])
        job.refresh_from_db()
        assert (job.state, job.unconfirmed_claims) == ("running", 0)

    def test_a_claim_that_is_confirmed_at_the_same_moment_stays_and_holds_up_nobody(
        self, make_worker: Make, make_job: Make, long_ago: Make, second_connection: psycopg.Connection[Any]
    ) -> None:
        confirmed, forgotten = (make_job(worker=make_worker(), state="claimed") for _ in range(2))
        for job in (confirmed, forgotten):
            long_ago(job, claimed_at=31)
        second_connection.execute("UPDATE job SET state = 'running', started_at = now() WHERE id = %s", [confirmed.pk])
        assert lifecycle.release_unconfirmed(after_seconds=30) == 1
        second_connection.commit()
        assert lifecycle.release_unconfirmed(after_seconds=30) == 0
        assert (state(confirmed), state(forgotten)) == ("running", "queued")

    def test_many_housekeepers_release_each_claim_once(
        self, make_worker: Make, make_job: Make, in_thread: Callable[..., Future[Any]]
    ) -> None:
        worker = make_worker()
        for _ in range(20):
            make_job(worker=worker, state="claimed")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE job SET claimed_at = now() - interval '1 hour'")
        steps = [in_thread(lifecycle.release_unconfirmed, after_seconds=30) for _ in range(4)]
        assert sum(step.result(30) for step in steps) == 20
        assert set(Job.objects.values_list("state", "unconfirmed_claims")) == {("queued", 1)}


def compare(worker: Any, listed: Any, *, young_seconds: int = 0) -> Any:
    return lifecycle.not_held_any_more(worker_id=worker.pk, listed=listed, young_seconds=young_seconds)


class TestHeartbeatComparison:
    def test_a_list_that_was_made_before_a_confirmation_and_sent_twice_loses_nothing(
        self, make_worker: Make, make_job: Make, long_ago: Make
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        for _ in range(3):
            compare(worker, [], young_seconds=30)
        assert state(job) == "running"
        long_ago(job, started_at=31)
        for _ in range(2):
            compare(worker, [], young_seconds=30)
        assert state(job) == "lost"

    def test_what_is_no_longer_held_is_named_with_the_reason(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        mine = make_job(worker=worker)
        revoked = make_job(worker=worker, state="revoked", reason="by ops")
        elsewhere = make_job(worker=make_worker(), attempt=2)
        newer = make_job(worker=worker, attempt=3)
        unknown = uuid.uuid4()
        gone = compare(
            worker,
            [(mine.pk, 1), (revoked.pk, 1), (elsewhere.pk, 1), (newer.pk, 2), (newer.pk, 3), (unknown, 1)],
        )
        assert {(pk, attempt) for pk, attempt, _ in gone} == {
            (revoked.pk, 1),
            (elsewhere.pk, 1),
            (newer.pk, 2),
            (unknown, 1),
        }
        why = {pk: reason for pk, _, reason in gone}
        assert (why[revoked.pk], why[unknown]) == ("revoked: by ops", "unknown job")
        assert all(why.values())

    def test_a_claim_that_was_not_confirmed_yet_is_still_its_own(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="claimed")
        assert compare(worker, [(job.pk, 1)]) == []

    def test_a_job_missing_from_two_heartbeats_in_a_row_is_lost(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        compare(worker, [])
        assert state(job) == "running"
        compare(worker, [])
        job.refresh_from_db()
        assert (job.state, job.reason, job.token) == ("lost", "its worker no longer knows it", None)

    def test_a_job_that_is_mentioned_in_between_is_not_lost(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        for listed in ([], [(job.pk, 1)], [], [(job.pk, 1)], []):
            compare(worker, listed)
        assert state(job) == "running"

    def test_another_attempt_does_not_count_as_a_mention(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, attempt=2)
        for _ in range(2):
            compare(worker, [(job.pk, 1)])
        assert state(job) == "lost"

    def test_a_claimed_job_is_not_missed(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="claimed")
        for _ in range(3):
            compare(worker, [])
        assert state(job) == "claimed"

    def test_other_workers_jobs_are_not_missed(self, make_worker: Make, make_job: Make) -> None:
        job, other = make_job(worker=make_worker()), make_worker()
        for _ in range(3):
            compare(other, [])
        assert state(job) == "running"

    def test_misses_before_a_confirmation_do_not_count(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker)
        compare(worker, [])
        lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, 1)])
        compare(worker, [])
        assert state(job) == "running"

    @pytest.mark.parametrize("count", [0, 1, 20])
    def test_a_heartbeat_that_agrees_is_one_statement(
        self, make_worker: Make, make_job: Make, count: int, django_assert_num_queries: Callable[..., Any]
    ) -> None:
        worker = make_worker()
        listed = [(make_job(worker=worker).pk, 1) for _ in range(count)]
        with django_assert_num_queries(1):
            assert compare(worker, listed) == []


class TestNewSession:
    @pytest.mark.parametrize("rebooted", [True, False])
    def test_running_jobs_that_it_cannot_account_for_are_lost_at_once(
        self, make_worker: Make, make_job: Make, rebooted: bool
    ) -> None:
        worker = make_worker()
        known, forgotten = make_job(worker=worker), make_job(worker=worker)
        other = make_job(worker=make_worker())
        lost = lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=[(known.pk, 1)], rebooted=rebooted)
        assert lost == 1
        assert [state(job) for job in (known, forgotten, other)] == ["running", "lost", "running"]
        forgotten.refresh_from_db()
        assert ("rebooted" in forgotten.reason) is rebooted
        assert forgotten.process_gone is rebooted
        assert forgotten.token is None

    @pytest.mark.parametrize("rebooted", [True, False])
    def test_a_claim_that_was_never_confirmed_goes_back_at_once(
        self, make_worker: Make, make_job: Make, rebooted: bool
    ) -> None:
        worker = make_worker()
        job, known = (make_job(worker=worker, state="claimed") for _ in range(2))
        lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=[(known.pk, 1)], rebooted=rebooted)
        assert (state(job), state(known)) == ("queued", "claimed")
        job.refresh_from_db()
        assert job.unconfirmed_claims == 0, "nobody refused it"

    def test_finished_jobs_stay_as_they_are(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="success")
        assert lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=[], rebooted=True) == 0
        assert state(job) == "success"

    def test_an_old_attempt_accounts_for_nothing(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, attempt=2)
        lifecycle.lose_unaccounted(worker_id=worker.pk, accounted_for=[(job.pk, 1)], rebooted=True)
        assert state(job) == "lost"


class TestLoseSilent:
    def test_running_jobs_of_a_silent_worker_are_lost(self, make_worker: Make, make_job: Make) -> None:
        silent, heard = make_worker(heard_seconds_ago=301), make_worker(heard_seconds_ago=299)
        jobs = [make_job(worker=silent), make_job(worker=silent, state="claimed"), make_job(worker=heard)]
        lost = lifecycle.lose_silent(worker_ids=[silent.pk, heard.pk], silent_seconds=300)
        assert lost == 1
        assert [state(job) for job in jobs] == ["lost", "claimed", "running"]

    def test_only_the_named_workers_are_given_up(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(heard_seconds_ago=3000))
        assert lifecycle.lose_silent(worker_ids=[make_worker().pk], silent_seconds=300) == 0
        assert state(job) == "running"


class TestForgottenClaim:
    """A crash of PostgreSQL may forget a claim that was answered: its commit is not waited for."""

    @pytest.fixture
    def forgotten(self, make_worker: Make, make_job: Make) -> tuple[Worker, Job]:
        worker, job = make_worker(), make_job()
        assert claim(worker).jobs[0].attempt == 1
        Job.objects.update(state="queued", attempt=0, worker=None, claim_id=None, claimed_at=None)
        return worker, job

    def test_its_number_is_given_again_and_only_the_new_holder_may_start(
        self, forgotten: tuple[Worker, Job], make_worker: Make
    ) -> None:
        (first, job), second = forgotten, make_worker()
        assert claim(second).jobs[0].attempt == 1
        assert lifecycle.confirm(worker_id=first.pk, pairs=[(job.pk, 1)]) == set()
        assert lifecycle.confirm(worker_id=second.pk, pairs=[(job.pk, 1)]) == {(job.pk, 1)}

    def test_nobody_may_start_before_it_is_handed_out_again(self, forgotten: tuple[Worker, Job]) -> None:
        worker, job = forgotten
        assert lifecycle.confirm(worker_id=worker.pk, pairs=[(job.pk, 1)]) == set()
        assert state(job) == "queued"


class TestFoundAgain:
    """A job that was lost, and its worker lists it."""

    def test_it_goes_on_where_it_is(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker(heard_seconds_ago=301)
        job = make_job(worker=worker)
        lifecycle.lose_silent(worker_ids=[worker.pk], silent_seconds=300)
        assert compare(worker, [(job.pk, 1)]) == []
        job.refresh_from_db()
        assert (job.state, job.finished_at, job.reason, job.missed_heartbeats) == ("running", None, "", 0)
        assert report(job, airflow_outcome="success") == "success"

    @pytest.mark.parametrize(
        "known",
        [{"told_at": timezone.now()}, {"process_gone": True}, {"attempt": 2}],
        ids=["told", "process gone", "handed out"],
    )
    def test_it_stays_lost_when_something_may_have_followed(
        self, make_worker: Make, make_job: Make, known: dict[str, Any]
    ) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="lost", **known)
        assert [gone[0] for gone in compare(worker, [(job.pk, 1)])] == [job.pk]
        assert state(job) == "lost"

    def test_it_stays_lost_when_airflow_has_queued_it_anew(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        job = make_job(worker=worker, state="lost")
        make_job(airflow_id=job.airflow_id)
        assert [gone[0] for gone in compare(worker, [(job.pk, 1)])] == [job.pk]

    def test_it_stays_lost_for_everybody_else(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), state="lost")
        assert [gone[0] for gone in compare(make_worker(), [(job.pk, 1)])] == [job.pk]


class TestRevoke:
    @pytest.mark.parametrize("open_state", ["queued", "claimed", "running"])
    def test_an_open_job_is_withdrawn_with_who_and_why(
        self, make_worker: Make, make_job: Make, open_state: str
    ) -> None:
        job = make_job(state=open_state, **({} if open_state == "queued" else {"worker": make_worker()}))
        assert lifecycle.revoke([job.pk], by=OPS, comment="wrong data").done == [str(job)]
        job.refresh_from_db()
        assert (job.state, job.reason, job.token) == ("revoked", "revoked by ops: wrong data", None)
        assert job.finished_at is not None

    @pytest.mark.parametrize("ended", sorted(FINAL))
    def test_a_job_that_has_ended_stays_as_it_ended(self, make_job: Make, ended: str) -> None:
        job = make_job(state=ended, reason="as it was")
        assert lifecycle.revoke([job.pk, uuid.uuid4()], by=OPS).skipped == [(str(job), f"it is {ended} already")]
        job.refresh_from_db()
        assert (job.state, job.reason) == (ended, "as it was")

    def test_the_holder_is_told_and_nobody_else(
        self, make_worker: Make, make_job: Make, heard: Callable[[], Any]
    ) -> None:
        holder, bystander = make_worker(), make_worker()
        jobs = [make_job(worker=holder), make_job(worker=holder, state="claimed"), make_job()]
        lifecycle.revoke([job.pk for job in jobs], by=OPS)
        assert heard() == [("edgecontrol_worker", {"worker": holder.pk})]
        assert Worker.objects.get(pk=holder.pk).revision == holder.revision + 1
        assert Worker.objects.get(pk=bystander.pk).revision == bystander.revision

    def test_a_revoked_job_cannot_be_claimed_any_more(self, make_worker: Make, make_job: Make) -> None:
        lifecycle.revoke([make_job().pk], by=OPS)
        assert claim(make_worker()).jobs == []


class TestPurge:
    @pytest.fixture
    def ended(self, make_job: Make, long_ago: Make) -> Make:
        def ended(*, days: float, told: bool = True, **columns: Any) -> Job:
            job = make_job(**{"state": "success"} | columns)
            long_ago(job, finished_at=days * 86400, **({"told_at": days * 86400} if told else {}))
            return job

        return ended

    def test_old_jobs_go_with_their_logs_and_the_others_stay(self, ended: Make, make_worker: Make) -> None:
        worker = make_worker()
        old, young = (ended(days=days, worker=worker) for days in (31, 29))
        for job in (old, young):
            logs.append(worker_id=worker.pk, job_id=job.pk, attempt=1, offset=0, data=b"x", cap_bytes=10)
        assert lifecycle.purge(older_than_days=30) == 1
        assert set(Job.objects.values_list("pk", flat=True)) == {young.pk}
        assert set(LogChunk.objects.values_list("job_id", flat=True)) == {young.pk}

    @pytest.mark.parametrize("state", sorted(FINAL))
    def test_every_final_state_is_old_some_day(self, ended: Make, state: str) -> None:
        ended(days=31, state=state)
        assert lifecycle.purge(older_than_days=30) == 1

    @pytest.mark.parametrize(("days", "deleted"), [(31, 0), (59, 0), (61, 1)])
    def test_a_job_that_airflow_was_never_told_of_is_kept_twice_as_long(
        self, ended: Make, days: int, deleted: int
    ) -> None:
        ended(days=days, told=False)
        assert lifecycle.purge(older_than_days=30) == deleted

    def test_an_open_job_is_never_deleted(self, make_job: Make, make_worker: Make, long_ago: Make) -> None:
        for job in (make_job(), make_job(worker=make_worker())):
            long_ago(job, queued_at=86400 * 400)
        assert lifecycle.purge(older_than_days=1) == 0

    def test_one_step_deletes_a_bounded_number_oldest_first(self, ended: Make) -> None:
        kept, *_ = (ended(days=days) for days in (40, 41, 42))
        assert lifecycle.purge(older_than_days=30, at_most=2) == 2
        assert Job.objects.get().pk == kept.pk
