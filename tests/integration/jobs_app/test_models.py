from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from jobs_app.models import Job, Queue

Make = Callable[..., Any]


def write(job: Job, assignments: str) -> None:
    """What a careless program might do."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE job SET {assignments} WHERE id = %s", [job.pk])  # noqa: S608


@pytest.mark.parametrize(
    ("state", "assignments", "constraint"),
    [
        ("queued", "state = 'done'", "job_"),
        ("queued", "state = 'failed', token = NULL", "job_final_iff_finished_at"),
        ("running", "finished_at = now()", "job_final_iff_finished_at"),
        ("success", "finished_at = NULL", "job_final_iff_finished_at"),
        ("running", "state = 'queued'", "job_held_iff_worker"),
        ("running", "worker_id = NULL", "job_held_iff_worker"),
        ("claimed", "worker_id = NULL", "job_held_iff_worker"),
        ("success", "token = 'again'", "job_final_has_no_token"),
        ("running", "state = 'success', finished_at = now()", "job_final_has_no_token"),
        ("queued", "slots = 0", "job_slots_positive"),
        ("queued", "slots = -1", "job_slots_positive"),
        ("queued", "workload = '[]'", "job_workload_is_object"),
        ("queued", "workload = '\"rm -rf /\"'", "job_workload_is_object"),
        ("queued", "workload = 'null'", "job_workload_is_object"),
        ("queued", "dag_id = repeat('€', 667)", "job_dag_id_not_too_long"),
        ("queued", "run_id = repeat('x', 2001)", "job_run_id_not_too_long"),
        ("queued", "task_id = repeat('x', 2001)", "job_task_id_not_too_long"),
        ("queued", "team_name = repeat('x', 2001)", "job_team_name_not_too_long"),
    ],
)
def test_the_database_refuses_a_row_that_contradicts_itself(
    make_worker: Make, make_job: Make, state: str, assignments: str, constraint: str
) -> None:
    job = make_job(state=state, **({} if state == "queued" else {"worker": make_worker()}))
    with pytest.raises(IntegrityError, match=constraint):
        write(job, assignments)


@pytest.mark.parametrize("state", ["success", "failed", "refused", "lost", "revoked"])
def test_a_final_job_may_keep_or_lack_its_worker(make_worker: Make, make_job: Make, state: str) -> None:
    job = make_job(state=state, worker=make_worker())
    write(job, "worker_id = NULL")


def test_a_row_with_only_what_airflows_side_writes_is_a_waiting_job(db: None) -> None:
    pk = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO job (id, kind, airflow_id, workload, token, queue)"
            " VALUES (%s, 'ExecuteTask', %s, '{}', 'secret', 'default')",
            [pk, uuid.uuid4()],
        )
    job = Job.objects.get(pk=pk)
    assert (job.state, job.attempt, job.slots, job.map_index, job.log_size, job.told_at) == (
        "queued",
        0,
        1,
        -1,
        0,
        None,
    )
    assert job.queued_at is not None


def test_deleting_a_job_deletes_its_log_whoever_deletes_it(make_job: Make) -> None:
    job = make_job(state="failed")
    with connection.cursor() as cursor:
        cursor.execute("""INSERT INTO log_chunk (job_id, attempt, "offset", data) VALUES (%s, 1, 0, 'x')""", [job.pk])
        # The seam promises ON DELETE CASCADE, so that a program without Django may delete too.
        cursor.execute("DELETE FROM job WHERE id = %s", [job.pk])
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SELECT count(*) FROM log_chunk")
        assert cursor.fetchone() == (0,)


def test_a_queue_that_is_known_already_is_left_as_it_is(db: None) -> None:
    Queue.objects.create(name="night", paused=True)
    Queue.objects.remember(["night", "day", "day"])
    assert dict(Queue.objects.values_list("name", "paused")) == {"night": True, "day": False}


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, "tour.hello try 0"),
        ({"map_index": 3, "try_number": 2}, "tour.hello[3] try 2"),
    ],
)
def test_a_task_is_named_as_in_airflow(make_job: Make, columns: dict[str, Any], text: str) -> None:
    assert str(make_job(**columns)) == text


def test_a_job_without_a_task_is_named_by_its_kind(make_job: Make) -> None:
    job = make_job(kind="TestConnection", dag_id="", task_id="")
    assert str(job) == f"TestConnection {job.pk}"
