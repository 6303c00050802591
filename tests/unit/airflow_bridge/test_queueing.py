from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from airflow_bridge import queueing
from airflow_bridge.airflow_features import workload_key
from airflow_bridge.states import Kind
from airflow_bridge.store import NewJob
from tests.unit.airflow_bridge.builders import DISPATCHER, callback, connection_test, job_row, task


def job_of(workload: Any) -> NewJob:
    return queueing.job_of(
        workload,
        job_id=queueing.assigned_id(workload) or uuid4(),
        dispatcher=DISPATCHER,
        team_name="blue",
        default_queue="default",
    )


def test_a_task_becomes_a_job_under_airflows_own_queueing_id() -> None:
    job_id = uuid4()
    workload = task(job_id=job_id, queue="site-b", pool_slots=2, priority_weight=7, map_index=4, try_number=3)
    job = job_of(workload)
    assert (job.id, job.airflow_id, job.kind) == (job_id, workload.ti.id, Kind.TASK)
    assert (job.queue, job.slots, job.priority, job.team_name) == ("site-b", 2, 7, "blue")
    assert (job.dag_id, job.task_id, job.run_id, job.map_index, job.try_number) == ("etl", "extract", "manual", 4, 3)
    assert job.log_path == workload.log_path
    assert queueing.key_of(job) == workload_key(workload)


def test_the_token_is_kept_apart_from_the_workload() -> None:
    job = job_of(task(token="very secret"))
    assert job.token == "very secret"
    assert "very secret" not in json.dumps(job.workload)
    assert "token" not in job.workload


def test_token_and_workload_together_are_airflows_workload_again() -> None:
    workload = task()
    job = job_of(workload)
    again = type(workload).model_validate({**json.loads(json.dumps(job.workload)), "token": job.token})
    assert again.model_dump(mode="json") == workload.model_dump(mode="json")


def test_a_callback_is_urgent_and_has_its_own_id() -> None:
    workload = callback()
    job = job_of(workload)
    assert job.kind == Kind.CALLBACK
    assert str(job.id) == str(job.airflow_id) == workload.callback.id
    assert (job.queue, job.slots, job.priority) == ("default", 1, queueing.URGENT)
    assert queueing.key_of(job) == workload_key(workload)


@pytest.mark.parametrize(("asked", "queue"), [(None, "default"), ("site-b", "site-b")])
def test_a_connection_test_goes_to_the_queue_it_asks_for(asked: str | None, queue: str) -> None:
    workload = connection_test(queue=asked)
    job = job_of(workload)
    assert (job.kind, job.queue, job.log_path) == (Kind.CONNECTION_TEST, queue, "")
    assert queueing.key_of(job) == workload_key(workload)


def test_the_kinds_are_airflows_workload_types() -> None:
    assert {workload.type for workload in (task(), callback(), connection_test())} == set(Kind)


@pytest.mark.parametrize("text", [None, "", "celery-7", "None"])
def test_what_is_no_uuid_is_no_queueing_id(text: str | None) -> None:
    assert queueing.parse_id(text) is None


def test_ids_are_read_with_and_without_dashes() -> None:
    job_id = uuid4()
    assert queueing.parse_id(str(job_id)) == queueing.parse_id(job_id.hex) == job_id


def test_a_row_gives_back_airflows_key() -> None:
    row = job_row(map_index=2, try_number=5)
    key = queueing.key_of(row)
    assert (key.dag_id, key.task_id, key.run_id, key.try_number, key.map_index) == ("etl", "extract", "manual", 5, 2)
    row = job_row(kind=Kind.CALLBACK, airflow_id=UUID(int=7))
    assert str(queueing.key_of(row)) == str(UUID(int=7))
