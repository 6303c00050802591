from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs_app import logs
from jobs_app.models import Job

Make = Callable[..., Any]
LIST = "/admin/jobs_app/job/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return b"".join(answer.streaming_content).decode() if answer.streaming else answer.content.decode()


def detail(job: Job) -> str:
    return f"{LIST}{job.pk}/change/"


def test_the_list_shows_what_each_job_is_and_where(ops: Client, make_worker: Make, make_job: Make) -> None:
    make_job(worker=make_worker("site-7"), reason="<because>", map_index=3)
    page = text(ops.get(LIST))
    for part in ("tour.hello[3] try 0", "site-7", "running", "&lt;because&gt;"):
        assert part in page


def test_the_list_costs_the_same_whatever_lies_in_the_table(ops: Client, make_worker: Make, make_job: Make) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            text(ops.get(LIST))
        return len(queries)

    make_job(worker=make_worker())
    few = cost()
    for _ in range(30):
        make_job(worker=make_worker())
        make_job()
    assert cost() == few <= 10


@pytest.mark.parametrize("state", ["queued", "claimed", "running", "success", "failed", "refused", "lost", "revoked"])
def test_the_page_of_a_job_renders_in_every_state(ops: Client, make_worker: Make, make_job: Make, state: str) -> None:
    job = make_job(state=state, **({} if state == "queued" else {"worker": make_worker("site-7"), "attempt": 2}))
    page = text(ops.get(detail(job)))
    assert str(job.pk) in page
    assert ("attempt 2" in page) is (state != "queued")


def test_airflows_token_appears_on_no_page(ops: Client, make_job: Make) -> None:
    job = make_job(token="sesame-open-42")
    for address in (LIST, f"{LIST}?q={job.pk}", detail(job), f"{LIST}{job.pk}/history/"):
        assert "sesame-open-42" not in text(ops.get(address))


def test_a_job_cannot_be_changed_added_or_deleted_by_hand(ops: Client, make_job: Make) -> None:
    job = make_job()
    ops.post(detail(job), {"state": "success", "queue": "other", "token": "mine"})
    job.refresh_from_db()
    assert (job.state, job.queue, job.token) == ("queued", "default", "airflow-token")
    assert ops.get(f"{LIST}add/").status_code == 403
    assert ops.post(f"{LIST}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    ops.post(LIST, {"action": "delete_selected", "_selected_action": [str(job.pk)], "post": "yes"})
    assert Job.objects.filter(pk=job.pk).exists()


@pytest.mark.parametrize("field", ["id", "dag_id", "run_id", "task_id"])
def test_a_job_is_found_by_what_airflow_calls_it(ops: Client, make_job: Make, field: str) -> None:
    job = make_job(dag_id="d1", run_id="r1", task_id="t1")
    make_job(dag_id="d10", run_id="r10", task_id="t10")
    page = text(ops.get(LIST, {"q": str(getattr(job, field))}))
    assert detail(job) in page
    assert page.count("/change/") == 1


def test_a_search_for_something_that_is_no_id_finds_nothing_and_breaks_nothing(ops: Client, make_job: Make) -> None:
    make_job()
    assert "0 jobs" in text(ops.get(LIST, {"q": "' OR 1=1 --"}))


def test_jobs_can_be_filtered_by_state(ops: Client, make_job: Make) -> None:
    waiting, failed = make_job(), make_job(state="failed")
    page = text(ops.get(LIST, {"state__exact": "failed"}))
    assert detail(failed) in page
    assert detail(waiting) not in page


def test_revoking_says_how_many_were_open_and_who_did_it(ops: Client, make_worker: Make, make_job: Make) -> None:
    jobs = [make_job(), make_job(worker=make_worker()), make_job(state="success")]
    page = text(ops.post(LIST, {"action": "revoke", "_selected_action": [str(j.pk) for j in jobs]}, follow=True))
    assert "2 jobs revoked, 1 had ended already." in page
    assert sorted(Job.objects.values_list("state", "reason")) == [
        ("revoked", "revoked by ops"),
        ("revoked", "revoked by ops"),
        ("success", ""),
    ]


def test_somebody_who_may_only_look_cannot_revoke(staff: Callable[..., Client], make_job: Make) -> None:
    job, looker = make_job(), staff("view_job")
    text(looker.get(detail(job)))
    looker.post(LIST, {"action": "revoke", "_selected_action": [str(job.pk)]})
    job.refresh_from_db()
    assert job.state == "queued"


def test_staff_without_permission_sees_nothing(staff: Callable[..., Client], make_worker: Make, make_job: Make) -> None:
    worker = make_worker()
    job, nobody = make_job(worker=worker), staff()
    logs.append(worker_id=worker.pk, job_id=job.pk, attempt=1, offset=0, data=b"secret", cap_bytes=10)
    answers = {path: nobody.get(path).status_code for path in (LIST, detail(job), f"{LIST}{job.pk}/log/1/")}
    assert set(answers.values()) <= {403, 404}
    assert "/admin/jobs_app/" not in text(nobody.get("/admin/"))


def test_without_a_login_there_is_only_the_login_page(http: None, make_job: Make) -> None:
    job = make_job()
    for path in (LIST, detail(job), f"{LIST}{job.pk}/log/1/"):
        answer = Client().get(path)
        assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")
