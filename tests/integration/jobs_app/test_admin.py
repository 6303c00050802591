"""The list of jobs in the admin, and the page of one; its logs and the queues have tests of their own."""

from __future__ import annotations

import html
import json
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs_app import lifecycle, listing, logs
from jobs_app.models import Job, Queue
from jobs_app.states import FINAL, JobState
from tests.integration.people import OPS
from workers_app.models import Change

Make = Callable[..., Any]
LIST = "/admin/jobs_app/job/"
STATES = [state.value for state in JobState]


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def detail(job: Job) -> str:
    return f"{LIST}{job.pk}/change/"


def listed(client: Client, **asked: Any) -> list[str]:
    """Ids of the jobs on this page of the list, in its order."""
    # From within the list, so that it does not come back as it was last left.
    page = text(client.get(LIST, asked, headers={"Referer": f"http://testserver{LIST}"}))
    return re.findall(rf'<a href="{LIST}([0-9a-f-]{{36}})/change/', page)


def ids(*jobs: Job) -> list[str]:
    return [str(job.pk) for job in jobs]


@pytest.fixture
def in_state(make_worker: Make, make_job: Make) -> Make:
    """A job in this state, with what the state demands."""

    def make(state: str, **columns: Any) -> Job:
        job: Job = make_job(
            **{"state": state} | ({} if state == "queued" else {"worker": make_worker(), "attempt": 1}) | columns
        )
        return job

    return make


class TestList:
    def test_it_shows_what_each_job_is_and_where(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        worker = make_worker("site-7")
        make_job(worker=worker, reason="<because>", map_index=3, run_id="run-9", try_number=2, team_name="red")
        page = text(ops.get(LIST))
        for part in ("tour.hello [3]", "try 2 · run-9", "running", "red", "&lt;because&gt;", "runs 0 s"):
            assert part in page
        assert f'href="/admin/workers_app/worker/{worker.pk}/change/">site-7<' in page
        assert 'href="/admin/jobs_app/queue/default/change/">default<' in page

    def test_how_the_process_ended_stands_apart_from_what_airflow_accepted(self, ops: Client, in_state: Make) -> None:
        in_state("success", exit_code=0, airflow_outcome="up_for_retry")
        page = text(ops.get(LIST))
        assert ">exit 0<" in page
        assert ">up for retry<" in page

    def test_a_process_that_a_signal_ended_says_so(self, ops: Client, in_state: Make) -> None:
        in_state("failed", exit_code=-9)
        assert ">signal 9<" in text(ops.get(LIST))

    def test_it_says_of_each_waiting_job_why_it_waits(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        make_worker(queues=["other"])
        make_job(queue="night", reason="a worker claimed it and did not confirm in time")
        Queue.objects.filter(name="night").update(paused=True, pause_comment="stocktaking")
        page = html.unescape(text(ops.get(LIST)))
        assert "queue 'night' is paused: stocktaking; earlier: a worker claimed it" in page

    @pytest.mark.parametrize("state", STATES)
    def test_a_job_in_any_state_has_its_row(self, ops: Client, in_state: Make, state: str) -> None:
        job = in_state(state)
        assert listed(ops) == ids(job)
        assert f"ec-state--{state}" in text(ops.get(LIST))

    def test_it_costs_the_same_whatever_lies_in_the_table(self, ops: Client, in_state: Make) -> None:
        def cost(**asked: str) -> int:
            ops.get(LIST, asked)
            with CaptureQueriesContext(connection) as queries:
                text(ops.get(LIST, asked))
            return len(queries)

        for state in STATES:
            in_state(state)
        few, searched = cost(state="queued"), cost(q="tour")
        for _ in range(30):
            for state in ("queued", "running", "success"):
                in_state(state, team_name="red")
        # One more, as there is a second page and so something to count.
        assert cost(state="queued") <= few + 1
        assert cost(q="tour") <= searched + 1
        assert max(few, searched) <= 24

    def test_no_page_counts_or_reads_the_whole_table(self, ops: Client, in_state: Make) -> None:
        for _ in range(60):
            in_state("success")
        with CaptureQueriesContext(connection) as queries:
            text(ops.get(LIST))
        of_jobs = [query["sql"] for query in queries if 'FROM "job"' in query["sql"]]
        assert of_jobs
        assert not [sql for sql in of_jobs if "LIMIT" not in sql and " IN (" not in sql]

    def test_airflows_token_appears_on_no_page(self, ops: Client, make_job: Make) -> None:
        job = make_job(token="sesame-open-42")
        for address in (LIST, f"{LIST}?q={job.pk}", detail(job), f"{LIST}{job.pk}/live/", f"{LIST}{job.pk}/history/"):
            assert "sesame-open-42" not in text(ops.get(address, follow=True))

    def test_an_empty_list_says_where_jobs_come_from(self, ops: Client) -> None:
        assert "No jobs yet" in text(ops.get(LIST))

    def test_a_search_without_a_result_says_what_is_compared(self, ops: Client, make_job: Make) -> None:
        make_job()
        page = text(ops.get(LIST, {"q": "' OR 1=1 --"}))
        assert "No job is like that" in page
        assert "how the id of a DAG, a run or a task begins" in page


class TestAirflow:
    def test_a_job_leads_to_its_task_instance(self, ops: Client, make_job: Make, settings: Any) -> None:
        settings.EDGECONTROL = settings.EDGECONTROL.model_copy(update={"airflow_url": "https://airflow.example.com/x"})
        job = make_job(dag_id="a/b c", run_id="manual__2026-11-22T10:00:00+00:00", task_id="g.t", try_number=3)
        mapped = make_job(run_id="r", map_index=0, try_number=0)
        addresses = {
            job: "https://airflow.example.com/x/dags/a%2Fb%20c/runs/manual__2026-11-22T10%3A00%3A00%2B00%3A00"
            "/tasks/g.t?try_number=3",
            mapped: "https://airflow.example.com/x/dags/tour/runs/r/tasks/hello/mapped/0",
        }
        page = text(ops.get(LIST))
        for each, address in addresses.items():
            assert f'href="{address}"' in page
            assert f'href="{address}"' in text(ops.get(detail(each)))

    @pytest.mark.parametrize("columns", [{"dag_id": "", "task_id": "", "run_id": "", "kind": "ExecuteCallback"}, {}])
    def test_what_is_no_task_or_nobody_has_said_where_leads_nowhere(
        self, ops: Client, make_job: Make, settings: Any, columns: dict[str, str]
    ) -> None:
        url = "https://airflow.example.com" if columns else ""
        settings.EDGECONTROL = settings.EDGECONTROL.model_copy(update={"airflow_url": url})
        job = make_job(**columns)
        assert "in Airflow" not in text(ops.get(LIST)).replace("result", "")
        assert "Open in Airflow" not in text(ops.get(detail(job)))


class TestFinding:
    @pytest.mark.parametrize("field", ["id", "dag_id", "run_id", "task_id"])
    def test_a_job_is_found_by_what_airflow_calls_it(self, ops: Client, make_job: Make, field: str) -> None:
        job = make_job(dag_id="d1", run_id="r1", task_id="t1")
        make_job(dag_id="d2", run_id="r2", task_id="t2")
        assert listed(ops, q=f" {getattr(job, field)} ") == ids(job)

    @pytest.mark.parametrize("state", STATES)
    def test_jobs_can_be_filtered_by_state(self, ops: Client, in_state: Make, state: str) -> None:
        jobs = {each: in_state(each) for each in STATES}
        assert listed(ops, state=state) == ids(jobs[state])

    def test_several_states_may_be_chosen(self, ops: Client, in_state: Make) -> None:
        jobs = {each: in_state(each) for each in STATES}
        assert set(listed(ops, state=["failed", "lost"])) == set(ids(jobs["failed"], jobs["lost"]))

    @pytest.mark.parametrize("state", ["queued", "running", "failed"])
    def test_jobs_can_be_filtered_by_each_of_the_others(self, ops: Client, in_state: Make, state: str) -> None:
        job = in_state(state, queue="press", team_name="red", dag_id="sales")
        in_state(state)
        filters: dict[str, Any] = {"queue": "press", "team": "red", "dag": "sales"}
        if job.worker_id:
            filters["worker"] = job.worker_id
        for name, value in filters.items():
            assert listed(ops, **{name: value}) == ids(job)
        assert listed(ops, **filters, state=state) == ids(job)

    def test_jobs_can_be_filtered_by_airflows_outcome(self, ops: Client, in_state: Make) -> None:
        skipped = in_state("success", airflow_outcome="skipped")
        in_state("success", airflow_outcome="success")
        assert listed(ops, outcome="skipped") == ids(skipped)

    def test_jobs_can_be_filtered_by_the_days_on_which_they_were_queued(self, ops: Client, make_job: Make) -> None:
        jobs = [make_job() for _ in range(3)]
        with connection.cursor() as cursor:
            for day, job in zip((1, 2, 3), jobs, strict=True):
                cursor.execute("UPDATE job SET queued_at = %s WHERE id = %s", [f"2026-03-0{day}T23:59Z", job.pk])
        assert listed(ops, queued_at_from="2026-03-02") == ids(jobs[2], jobs[1])
        assert listed(ops, queued_at_to="2026-03-02") == ids(jobs[1], jobs[0])
        assert listed(ops, queued_at_from="2026-03-02", queued_at_to="2026-03-02") == ids(jobs[1])

    def test_the_choices_are_the_queues_and_teams_that_there_are(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        make_worker(team_name="red")
        Queue.objects.remember(["press"])
        page = text(ops.get(LIST))
        assert '<option value="press">press</option>' in page
        assert '<option value="red">red</option>' in page

    def test_the_chosen_worker_stands_in_its_filter(self, ops: Client, make_worker: Make) -> None:
        worker = make_worker("site-7")
        assert f'<option value="{worker.pk}" selected>site-7</option>' in text(ops.get(LIST, {"worker": worker.pk}))

    @pytest.mark.parametrize(
        "asked",
        [
            {"state": "bogus"},
            {"worker": "site-7"},
            {"worker": "9" * 40},
            {"queued_at_from": "yesterday"},
            {"queue": "a\0b"},
            {"dag": "\0"},
            {"q": "a\0b"},
            {"reason__contains": "x"},
            {"token__startswith": "e"},
            {"p": "older-nonsense"},
            {"p": "-1"},
        ],
    )
    def test_what_cannot_be_understood_breaks_nothing(self, ops: Client, make_job: Make, asked: dict[str, str]) -> None:
        make_job()
        answer = ops.get(LIST, asked, follow=True)
        assert answer.status_code in (200, 400)
        assert b"Traceback" not in answer.content

    def test_an_unknown_filter_is_said_to_be_unknown(self, ops: Client, make_job: Make) -> None:
        make_job()
        page = text(ops.get(LIST, {"reason__contains": "x"}, follow=True))
        assert "asked for something that this list does not know" in page


class TestPages:
    @pytest.fixture
    def jobs(self, make_job: Make) -> list[Job]:
        """Newest first."""
        jobs = [make_job(state="queued" if number % 2 else "success") for number in range(120)]
        with connection.cursor() as cursor:
            for number, job in enumerate(jobs):
                cursor.execute(
                    "UPDATE job SET queued_at = now() - %s * interval '1 second' WHERE id = %s", [number, job.pk]
                )
        return jobs

    def follow(self, client: Client, address: str, name: str) -> tuple[str, list[str]]:
        page = text(client.get(address))
        found = re.search(rf'<a href="([^"]*)"[^>]*>{name}</a>', page)
        assert found, f"no link {name}"
        address = LIST + html.unescape(found[1])
        return address, re.findall(rf'<a href="{LIST}([0-9a-f-]{{36}})/change/', text(client.get(address)))

    def test_one_goes_from_the_newest_to_the_oldest_and_back(self, ops: Client, jobs: list[Job]) -> None:
        wanted = ids(*jobs)
        assert listed(ops) == wanted[:50]
        address, page = self.follow(ops, LIST, "Older")
        assert page == wanted[50:100]
        address, page = self.follow(ops, address, "Older")
        assert page == wanted[100:]
        address, page = self.follow(ops, address, "Newer")
        assert page == wanted[50:100]
        assert self.follow(ops, address, "Newest")[1] == wanted[:50]

    def test_the_last_page_is_one_step_away(self, ops: Client, jobs: list[Job]) -> None:
        address, page = self.follow(ops, LIST, "Oldest")
        assert page == ids(*jobs)[-50:]
        assert self.follow(ops, address, "Newer")[1] == ids(*jobs)[20:70]

    def test_a_page_keeps_what_is_filtered_and_searched(self, ops: Client, jobs: list[Job]) -> None:
        waiting = ids(*jobs)[1::2]
        assert self.follow(ops, f"{LIST}?state=queued&q=tour", "Older")[1] == waiting[50:]

    def test_how_many_there_are_is_counted_up_to_a_bound(
        self, ops: Client, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "120 jobs, newest first" in text(ops.get(LIST))
        monkeypatch.setattr(listing, "MOST_COUNTED", 100)
        monkeypatch.setattr(listing.count, "__kwdefaults__", {"at_most": 100})
        assert "more than 100 jobs, newest first" in text(ops.get(LIST))

    def test_a_page_whose_jobs_are_gone_leads_back_to_the_newest(self, ops: Client, jobs: list[Job]) -> None:
        last = jobs[-1]
        page = text(ops.get(LIST, {"p": f"older-{listing.Place(last.queued_at, last.pk)}"}))
        assert "Nothing here any more" in page or "Newest" in page


class TestPage:
    @pytest.mark.parametrize("state", STATES)
    def test_it_renders_in_every_state(self, ops: Client, in_state: Make, state: str) -> None:
        job = in_state(state)
        for address in (detail(job), f"{LIST}{job.pk}/live/"):
            page = text(ops.get(address))
            assert f"ec-state--{state}" in page
            assert ("/revoke_job/" in page) is (JobState(state) not in FINAL)

    def test_it_renews_itself_while_the_job_is_open(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker())
        assert f'data-live="{LIST}{job.pk}/live/"' in text(ops.get(detail(job)))
        lifecycle.revoke([job.pk], by=OPS)
        assert "data-live=" not in text(ops.get(detail(job)))
        assert "revoked by ops" in text(ops.get(f"{LIST}{job.pk}/live/"))

    def test_it_says_why_the_job_waits(self, ops: Client, make_job: Make) -> None:
        job = make_job(queue="night")
        for address in (detail(job), f"{LIST}{job.pk}/live/"):
            assert "It waits: no worker is live." in text(ops.get(address))

    def test_it_shows_everything_that_is_known(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(
            worker=make_worker("site-7"),
            state="failed",
            attempt=1,
            queue="press",
            team_name="red",
            run_id="run-9",
            slots=3,
            priority=77,
            exit_code=3,
            airflow_outcome="up_for_retry",
            reason="out of <memory>",
            log_sha256="ab" * 32,
        )
        page = text(ops.get(detail(job)))
        said = ("site-7", "press", "red", "run-9", "77", "exit 3", "up for retry", "out of &lt;memory&gt;", "ab" * 32)
        for part in (*said, str(job.pk), str(job.airflow_id)):
            assert part in page

    def test_each_attempt_leads_to_its_log(self, ops: Client, make_worker: Make, make_job: Make) -> None:
        job = make_job(worker=make_worker(), attempt=3)
        page = text(ops.get(detail(job)))
        for attempt in (1, 2, 3):
            assert f'href="{LIST}{job.pk}/log/{attempt}/"' in page
        assert f"{LIST}{job.pk}/log/0/" not in page

    def test_what_airflows_own_side_wrote_is_among_the_logs(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        job = make_job(worker=make_worker())
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO log_chunk VALUES (%s, 0, 0, 'trigger', now())".replace(
                    "VALUES", '(job_id, attempt, "offset", data, received_at) VALUES'
                ),
                [job.pk],
            )
        assert f'href="{LIST}{job.pk}/log/0/"' in text(ops.get(detail(job)))

    def test_a_job_that_was_handed_out_very_often_has_no_endless_page(
        self, ops: Client, make_worker: Make, make_job: Make
    ) -> None:
        page = text(ops.get(detail(make_job(worker=make_worker(), attempt=100_000))))
        assert page.count("/log/") < 30

    def test_the_workload_is_shown_as_text(self, ops: Client, make_job: Make) -> None:
        workload = {"ti": {"id": "x"}, "note": "</pre><script>alert(1)</script>"}
        page = text(ops.get(detail(make_job(workload=workload))))
        assert "<script>alert(1)" not in page
        shown = re.search(r"<pre[^>]*>(.*?)</pre>", page, re.S)
        assert shown
        assert json.loads(html.unescape(shown[1])) == workload

    def test_it_shows_what_people_did_to_the_job(self, ops: Client, make_job: Make) -> None:
        job, other = make_job(), make_job()
        lifecycle.revoke([job.pk], by=OPS, comment="wrong data")
        lifecycle.revoke([other.pk], by=OPS, comment="another one")
        page = text(ops.get(detail(job)))
        assert "wrong data" in page
        assert "another one" not in page

    def test_the_record_is_for_those_who_may_see_it(self, staff: Make, make_job: Make) -> None:
        job = make_job()
        lifecycle.revoke([job.pk], by=OPS, comment="wrong data")
        assert "Changes</h2>" not in text(staff("view_job").get(detail(job)))
        assert "Changes</h2>" in text(staff("view_job", "view_change").get(detail(job)))

    def test_who_may_not_see_workers_and_queues_gets_no_links_to_them(
        self, staff: Make, make_worker: Make, make_job: Make
    ) -> None:
        job = make_job(worker=make_worker("site-7"))
        looker = staff("view_job")
        for address in (LIST, detail(job)):
            page = text(looker.get(address))
            assert "site-7" in page
            assert "/admin/workers_app/worker/" not in page
            assert "/admin/jobs_app/queue/" not in page

    def test_what_does_not_exist_has_no_page(self, ops: Client) -> None:
        assert ops.get(f"{LIST}{uuid.uuid4()}/live/").status_code == 404
        assert ops.get(f"{LIST}{uuid.uuid4()}/change/").status_code == 302

    def test_it_costs_a_bounded_number_of_queries(self, ops: Client, in_state: Make) -> None:
        for state in ("queued", "running", "failed"):
            job = in_state(state)
            ops.get(detail(job))
            with CaptureQueriesContext(connection) as queries:
                text(ops.get(detail(job)))
            assert len(queries) <= 14


class TestRevoking:
    def test_chosen_jobs_are_revoked_after_a_confirmation(self, ops: Client, in_state: Make) -> None:
        jobs = [in_state(state) for state in ("queued", "running", "success")]
        page = text(ops.post(LIST, {"action": "revoke_job", "_selected_action": ids(*jobs)}))
        assert Job.objects.filter(state="revoked").count() == 0
        chosen = html.unescape(re.findall(r'name="_chosen" value="([^"]*)"', page)[0])
        form = {"_chosen": chosen, "comment": "wrong data", "all_of_them": "on"}
        page = text(ops.post(f"{LIST}revoke_job/", form, follow=True))
        assert "Revoke: 2 done, 1 skipped" in page
        assert sorted(Job.objects.values_list("state", "reason")) == [
            ("revoked", "revoked by ops: wrong data"),
            ("revoked", "revoked by ops: wrong data"),
            ("success", ""),
        ]

    def test_one_is_revoked_from_its_own_menu(self, ops: Client, make_job: Make) -> None:
        job = make_job()
        assert f'href="{LIST}{job.pk}/revoke_job/"' in text(ops.get(LIST)).replace("_2D", "-")
        ops.post(f"{LIST}{job.pk}/revoke_job/", {"comment": ""})
        job.refresh_from_db()
        assert job.state == "revoked"
        assert Change.objects.get().subject_id == str(job.pk)

    def test_a_final_job_offers_nothing(self, ops: Client, in_state: Make) -> None:
        in_state("success")
        assert "/revoke_job/" not in text(ops.get(LIST))

    def test_all_that_the_filters_leave_are_those_that_are_open(self, ops: Client, in_state: Make) -> None:
        wanted = [in_state(state, queue="press") for state in ("queued", "claimed", "running")]
        in_state("success", queue="press")
        in_state("queued", queue="other")
        form = {"action": "revoke_job", "select_across": "1", "_selected_action": ids(wanted[0])}
        page = text(ops.post(f"{LIST}?{urlencode({'queue': 'press', 'q': 'tour'})}", form))
        chosen = json.loads(html.unescape(re.findall(r'name="_chosen" value="([^"]*)"', page)[0]))
        assert set(chosen) == set(ids(*wanted))

    def test_somebody_who_may_only_look_cannot_revoke(self, staff: Make, make_job: Make) -> None:
        job, looker = make_job(), staff("view_job")
        assert "revoke_job" not in text(looker.get(LIST))
        assert "revoke_job" not in text(looker.get(detail(job)))
        looker.post(LIST, {"action": "revoke_job", "_selected_action": ids(job)})
        assert looker.post(f"{LIST}{job.pk}/revoke_job/", {"comment": ""}).status_code == 403
        job.refresh_from_db()
        assert job.state == "queued"

    def test_what_is_no_id_cannot_be_chosen(self, ops: Client, make_job: Make) -> None:
        make_job()
        answer = ops.post(LIST, {"action": "revoke_job", "_selected_action": ["1", "x'"]})
        assert answer.status_code == 400


def test_a_job_cannot_be_changed_added_or_deleted_by_hand(ops: Client, make_job: Make) -> None:
    job = make_job()
    ops.post(detail(job), {"state": "success", "queue": "other", "token": "mine"})
    job.refresh_from_db()
    assert (job.state, job.queue, job.token) == ("queued", "default", "airflow-token")
    assert ops.get(f"{LIST}add/").status_code == 403
    assert ops.post(f"{LIST}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    ops.post(LIST, {"action": "delete_selected", "_selected_action": [str(job.pk)], "post": "yes"})
    assert Job.objects.filter(pk=job.pk).exists()


def test_staff_without_permission_sees_nothing(staff: Make, make_worker: Make, make_job: Make) -> None:
    worker = make_worker()
    job, nobody = make_job(worker=worker), staff()
    logs.append(worker_id=worker.pk, job_id=job.pk, attempt=1, offset=0, data=b"secret", cap_bytes=10)
    addresses = (LIST, detail(job), f"{LIST}{job.pk}/live/", f"{LIST}{job.pk}/log/1/")
    assert {nobody.get(path).status_code for path in addresses} <= {403, 404}
    assert "/admin/jobs_app/" not in text(nobody.get("/admin/"))


def test_without_a_login_there_is_only_the_login_page(http: None, make_job: Make) -> None:
    job = make_job()
    for path in (LIST, detail(job), f"{LIST}{job.pk}/live/", f"{LIST}{job.pk}/log/1/"):
        answer = Client().get(path)
        assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")
