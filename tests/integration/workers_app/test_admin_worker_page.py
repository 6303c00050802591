"""The page of one worker host."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.integration.people import OPS
from workers_app import audit, auth, wishes
from workers_app.models import Sample, Worker, WorkerToken

Make = Callable[..., Any]
Staff = Callable[..., Client]
LIST = "/admin/workers_app/worker/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def page(client: Client, worker: Worker, part: str = "change") -> str:
    return text(client.get(f"{LIST}{worker.pk}/{part}/"))


def present(html: str) -> str:
    """The step that a worker is at, on its way to what was asked of it."""
    found = re.search(r'aria-current="step">([^<]*)', html)
    return found[1] if found else ""


@pytest.mark.parametrize("name", ["site-7", "Straße 7 / Halle B", "🦊", "x" * 253])
def test_the_page_of_a_worker_renders_whatever_its_name(ops: Client, make_worker: Make, name: str) -> None:
    worker = make_worker(name, sysinfo={"platform": "Linux-6.8", "own": {"a": [1]}}, queues=None)
    html = page(ops, worker)
    assert name in html
    assert "Linux-6.8" in html
    assert "{&quot;a&quot;: [1]}" in html


@pytest.mark.parametrize("sysinfo", [[], "x", 7, {"": ""}, {"memory_used_percent": None}])
def test_the_page_survives_whatever_the_machine_tells(ops: Client, make_worker: Make, sysinfo: Any) -> None:
    worker = make_worker("site-7", sysinfo=sysinfo)
    assert "site-7" in page(ops, worker)
    assert "idle" in page(ops, worker, "live")


def test_what_the_machines_own_function_tells_is_shown(ops: Client, make_worker: Make) -> None:
    told = {"belts": 3, "status": 40, "status_text": "the <belt> is torn"}
    worker = make_worker("site-7", sysinfo=told)
    assert "the &lt;belt&gt; is torn" in page(ops, worker, "live")
    html = page(ops, worker)
    for part in ("<dt>belts</dt><dd>3</dd>", "<dt>Own check says</dt>"):
        assert part in html
    Worker.objects.update(sysinfo={"extended_sysinfo_error": "OSError: no such sensor"})
    assert "does not work: OSError: no such sensor" in page(ops, worker, "live")
    Worker.objects.update(sysinfo={})
    assert "Own check" not in page(ops, worker)


def test_an_idle_worker_that_takes_no_work_is_not_called_ready(ops: Client, make_worker: Make) -> None:
    worker = make_worker(sysinfo={"not_working": "Airflow's API: <no answer>"})
    for html in (page(ops, worker, "live"), text(ops.get(LIST))):
        assert "Airflow&#x27;s API: &lt;no answer&gt;" in html
        assert "Ready for work" not in html
    Worker.objects.update(sysinfo={})
    assert "Ready for work" in page(ops, worker, "live")


def test_it_says_what_the_worker_is(ops: Client, make_worker: Make) -> None:
    worker = make_worker(
        queues=["press"],
        allowed_queues=["press", "oven"],
        queues_override=["laser"],
        concurrency=8,
        concurrency_override=3,
        team_name="north",
        agent_version="0.0.1",
        airflow_version="3.3.2",
        sysinfo={"cpu_count": 16},
    )
    html = page(ops, worker)
    for part in (
        "press",
        "oven",
        "laser",
        "north",
        "0.0.1",
        "outdated",
        "Airflow 3.3.2",
        "the agent says 8",
        "CPUs",
        "16",
    ):
        assert part in html


def test_jobs_now_and_history_are_linked(ops: Client, make_worker: Make, make_job: Make) -> None:
    worker = make_worker()
    now, done = make_job(worker=worker, slots=3), make_job(worker=worker, state="failed", reason="a <jam>", task_id="x")
    other = make_job(worker=make_worker(), state="success")
    live = page(ops, worker, "live")
    assert f"/admin/jobs_app/job/{now.pk}/change/" in live
    assert "3 of 8" in live
    assert str(done.pk) not in live
    html = page(ops, worker)
    assert f"/admin/jobs_app/job/{done.pk}/change/" in html
    assert "a &lt;jam&gt;" in html
    assert f"/admin/jobs_app/job/?worker={worker.pk}" in html
    assert str(other.pk) not in html


def test_only_the_last_finished_jobs_and_changes_are_shown_at_the_price_of_one(
    ops: Client, make_worker: Make, make_job: Make
) -> None:
    worker = make_worker()

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            page(ops, worker)
        return len(queries)

    make_job(worker=worker, state="success", task_id="first")
    make_job(worker=worker)
    wishes.set_concurrency([worker.pk], by=OPS, concurrency=99)
    few = cost()
    for number in range(30):
        make_job(worker=worker, state="success", task_id=f"later-{number}")
        make_job(worker=worker)
        wishes.set_concurrency([worker.pk], by=OPS, concurrency=number + 1)
    assert cost() == few
    html = page(ops, worker)
    assert html.count("later-") == 25
    assert "tour.first" not in html
    assert html.count("Set concurrency</td>") == 25


def test_one_can_watch_a_request_come_true(ops: Client, make_worker: Make, make_job: Make, agent: Any) -> None:
    worker = make_worker("press-7")
    job, caller = make_job(worker=worker), agent(worker)
    assert present(page(ops, worker, "live")) == ""
    wishes.request_maintenance([worker.pk], by=OPS, comment="new disk")
    assert present(page(ops, worker, "live")) == "Asked"
    held = [{"id": str(job.pk), "attempt": 1}]
    caller.heartbeat(reported="maintenance_pending", jobs_active=1, held=held)
    live = page(ops, worker, "live")
    assert present(live) == "Finishing its jobs"
    assert "new disk" in live
    assert "maintenance pending" in live
    caller.report(job.pk)
    caller.heartbeat(reported="maintenance")
    live = page(ops, worker, "live")
    assert present(live) == "In maintenance"
    assert "It holds no job." in live


def test_the_live_part_is_that_of_the_page(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    html = page(ops, worker)
    assert f'data-live="{LIST}{worker.pk}/live/"' in html
    live = page(ops, worker, "live")
    assert "<html" not in live
    # But for the moment at which each was made.
    still = re.sub(r"\d+ s ago|\d\d:\d\d:\d\d UTC|datetime=\S+", "", live)
    assert still.strip() in re.sub(r"\d+ s ago|\d\d:\d\d:\d\d UTC|datetime=\S+", "", html)


def test_the_buttons_beside_the_state_fit_it(ops: Client, staff: Staff, make_worker: Make) -> None:
    at_work, resting, gone = make_worker(), make_worker(requested="maintenance"), make_worker(state="offline")

    def buttons(client: Client, worker: Worker) -> list[str]:
        return re.findall(r'data-operation="(\w+)"', page(client, worker, "live"))

    assert buttons(ops, at_work) == ["request_maintenance", "shutdown_worker"]
    assert buttons(ops, resting) == ["exit_maintenance", "update_maintenance_comment", "shutdown_worker"]
    assert buttons(ops, gone) == ["request_maintenance"]
    assert buttons(staff("view_worker"), at_work) == []


def test_the_figures_of_the_last_hours(ops: Client, make_worker: Make) -> None:
    worker, now = make_worker(), timezone.now()
    for hours, load in ((1, 0.5), (20, None), (100, 1.5), (500, 9.9)):
        at = now - timedelta(hours=hours)
        Sample.objects.create(
            worker=worker, at=at, jobs_active=hours, concurrency=8, load_per_cpu=load, disk_free_gb=3.5
        )
    Sample.objects.create(worker=make_worker(), at=now, jobs_active=7, concurrency=7)

    def jobs(query: str) -> list[int]:
        return [point[4] for point in ops.get(f"{LIST}{worker.pk}/samples/{query}").json()["points"]]

    assert jobs("") == jobs("?hours=24") == jobs("?hours=many") == [20, 1]
    assert jobs("?hours=2") == [1]
    assert jobs("?hours=168") == jobs("?hours=999999999") == [100, 20, 1]
    at, *figures = ops.get(f"{LIST}{worker.pk}/samples/?hours=2").json()["points"][0]
    assert figures == [0.5, None, 3.5, 1, 8]
    assert abs(at - (now.timestamp() - 3600) * 1000) < 2


def test_tokens_are_shown_by_their_keys(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    first = auth.issue(worker=worker, by=OPS).split("_")[1]
    auth.revoke([worker.pk], by=OPS)
    second, secret = auth.issue(worker=worker, by=OPS, valid_for=timedelta(days=3)).split("_")[1:]
    html = page(ops, worker)
    assert html.index(second) < html.index(first)
    assert "usable" in html
    assert "ended" in html
    assert "in 3 days" in html
    assert secret not in html
    assert bytes(WorkerToken.objects.latest("pk").digest).hex() not in html


def test_changes_stand_on_the_page_and_all_of_them_a_link_away(ops: Client, make_worker: Make) -> None:
    worker, other = make_worker(), make_worker()
    wishes.request_maintenance([worker.pk], by=OPS, comment="new <disk>")
    wishes.set_queues([other.pk], by=OPS, queues=["elsewhere"])
    html = page(ops, worker)
    assert "Request maintenance</td>" in html
    assert "new &lt;disk&gt;" in html
    assert "elsewhere" not in html
    for link in (
        f"/admin/workers_app/change/?subject_kind__exact=worker&subject_id__exact={worker.pk}",
        f"{LIST}{worker.pk}/history/",
    ):
        record = text(ops.get(link, follow=True))
        assert "new &lt;disk&gt;" in record
        assert "elsewhere" not in record
    assert f"subject_id__exact={worker.pk}" in html


def test_each_part_is_for_those_who_may_see_it(staff: Staff, make_worker: Make, make_job: Make) -> None:
    worker = make_worker()
    job = make_job(worker=worker)
    key = auth.issue(worker=worker, by=OPS).split("_")[1]
    audit.record([audit.Entry(action="x", kind="worker", id=worker.pk, name="x")], by=OPS, comment="said so")
    shown = {"view_job": str(job.pk), "view_workertoken": f"<code>{key}</code>", "view_change": "said so"}
    for permission, part in shown.items():
        assert part in page(staff("view_worker", permission), worker)
        others = [other for other in shown if other != permission]
        assert part not in page(staff("view_worker", *others), worker)
    assert "It holds no job." not in page(staff("view_worker"), worker)
    assert "name=press&amp;replace=1" in page(
        staff("view_worker", "view_workertoken", "add_enrolmenttoken", "revoke_workertoken"), make_worker("press")
    )


def test_a_worker_that_is_gone_is_no_error(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    worker.delete()
    pk = worker.pk or 1
    assert ops.get(f"{LIST}{pk}/live/").status_code == 404
    assert ops.get(f"{LIST}nonsense/samples/").status_code == 404
    assert ops.get(f"{LIST}{pk}/change/").status_code == 302
