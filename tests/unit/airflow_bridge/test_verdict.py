from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_bridge.states import FINAL, JobState, Kind
from airflow_bridge.store import JobRow
from airflow_bridge.task_instances import TaskInstanceNow
from airflow_bridge.verdict import GONE_SILENCE_SECONDS, Verdict, needs_airflow, reach, settled
from tests.unit.airflow_bridge.builders import job_row

PATIENCE = 240
ALL_FINAL = sorted(FINAL)


def seen(row: JobRow, state: str | None, *, silence: float | None = 1.0, job_id: UUID | None = None) -> TaskInstanceNow:
    key = TaskInstanceKey("etl", "extract", "manual", 1, -1)
    return TaskInstanceNow(key=key, state=state, job_id=job_id or row.id, silence=silence)


@pytest.mark.parametrize("state", ALL_FINAL)
@pytest.mark.parametrize("outcome", ["deferred", "up_for_retry", "up_for_reschedule", "awaiting_input"])
def test_what_airflow_has_already_acted_upon_is_not_told(state: str, outcome: str) -> None:
    assert reach(job_row(state=state, airflow_outcome=outcome), now=None, patience=PATIENCE) is Verdict.SILENCE


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("success", Verdict.SUCCESS),
        ("skipped", Verdict.SUCCESS),
        ("failed", Verdict.FAILURE),
        ("removed", Verdict.FAILURE),
    ],
)
def test_an_ending_that_airflow_accepted_is_told_as_it_is(outcome: str, expected: Verdict) -> None:
    row = job_row(airflow_outcome=outcome)
    assert not needs_airflow(row)
    assert reach(row, now=None, patience=PATIENCE) is expected
    assert settled(row, now=None)


@pytest.mark.parametrize("state", ALL_FINAL)
@pytest.mark.parametrize("moved_on", ["success", "failed", "up_for_retry", "deferred", "scheduled", "removed", None])
def test_a_doubtful_job_is_not_told_once_airflow_has_moved_on(state: str, moved_on: str | None) -> None:
    row = job_row(state=state)
    assert needs_airflow(row)
    assert reach(row, now=seen(row, moved_on), patience=PATIENCE) is Verdict.SILENCE
    assert settled(row, now=seen(row, moved_on))


@pytest.mark.parametrize("state", ALL_FINAL)
@pytest.mark.parametrize("airflow_state", ["queued", "running", "restarting"])
def test_a_newer_queueing_protects_the_task_from_the_older_job(state: str, airflow_state: str) -> None:
    row = job_row(state=state)
    assert reach(row, now=seen(row, airflow_state, job_id=uuid4()), patience=PATIENCE) is Verdict.SILENCE


@pytest.mark.parametrize("state", ALL_FINAL)
def test_a_deleted_task_instance_is_not_told(state: str) -> None:
    assert reach(job_row(state=state), now=None, patience=PATIENCE) is Verdict.SILENCE


@pytest.mark.parametrize("airflow_state", ["queued", "running", "restarting"])
def test_a_process_that_ended_is_told_at_once_and_again_until_airflow_acts(airflow_state: str) -> None:
    failed, success = job_row(state=JobState.FAILED), job_row(state=JobState.SUCCESS)
    # A task that was cleared while it ran is scheduled again by a success only.
    expected = Verdict.SUCCESS if airflow_state == "restarting" else Verdict.FAILURE
    assert reach(failed, now=seen(failed, airflow_state), patience=PATIENCE) is expected
    assert reach(success, now=seen(success, airflow_state), patience=PATIENCE) is Verdict.SUCCESS
    assert not settled(failed, now=seen(failed, airflow_state))


@pytest.mark.parametrize("state", [JobState.LOST, JobState.REFUSED, JobState.REVOKED])
@pytest.mark.parametrize(
    ("airflow_state", "silence", "expected"),
    [
        ("queued", None, Verdict.FAILURE),
        ("queued", 1, Verdict.FAILURE),
        ("running", 1, Verdict.PATIENCE),
        ("running", PATIENCE + 20, Verdict.PATIENCE),  # it may be about to stop itself
        ("running", PATIENCE + 31, Verdict.FAILURE),
        ("running", None, Verdict.FAILURE),
        ("restarting", 1, Verdict.PATIENCE),
        ("restarting", PATIENCE + 31, Verdict.SUCCESS),
    ],
)
def test_a_job_given_up_is_told_only_when_its_task_is_dead(
    state: JobState, airflow_state: str, silence: float | None, expected: Verdict
) -> None:
    row = job_row(state=state)
    assert reach(row, now=seen(row, airflow_state, silence=silence), patience=PATIENCE) is expected


@pytest.mark.parametrize(
    ("airflow_state", "silence", "expected"),
    [
        ("queued", None, Verdict.FAILURE),
        ("running", GONE_SILENCE_SECONDS, Verdict.PATIENCE),
        ("running", GONE_SILENCE_SECONDS + 1, Verdict.FAILURE),
        ("success", 1, Verdict.SILENCE),
    ],
)
def test_where_the_process_is_gone_a_few_missing_heartbeats_are_enough(
    airflow_state: str, silence: float | None, expected: Verdict
) -> None:
    row = job_row(state=JobState.LOST, process_gone=True)
    assert reach(row, now=seen(row, airflow_state, silence=silence), patience=PATIENCE) is expected


@pytest.mark.parametrize("kind", [Kind.CALLBACK, Kind.CONNECTION_TEST])
@pytest.mark.parametrize("state", ALL_FINAL)
def test_callbacks_and_connection_tests_end_as_their_job(kind: Kind, state: str) -> None:
    row = job_row(kind=kind, state=state)
    expected = Verdict.SUCCESS if state == JobState.SUCCESS else Verdict.FAILURE
    assert not needs_airflow(row)
    assert reach(row, now=None, patience=PATIENCE, callback="queued") is expected


@pytest.mark.parametrize("state", [None, "success", "failed"])
def test_a_callback_that_airflow_does_not_wait_for_is_not_told_again(state: str | None) -> None:
    row = job_row(kind=Kind.CALLBACK, state=JobState.FAILED)
    assert reach(row, now=None, patience=PATIENCE, callback=state) is Verdict.SILENCE
    assert settled(row, now=None, callback=state)


@pytest.mark.parametrize("state", ["pending", "queued", "running"])
def test_a_callback_is_told_until_airflow_says_so_too(state: str) -> None:
    row = job_row(kind=Kind.CALLBACK, state=JobState.SUCCESS)
    assert reach(row, now=None, patience=PATIENCE, callback=state) is Verdict.SUCCESS
    assert not settled(row, now=None, callback=state)
