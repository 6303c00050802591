"""`make demo ONCE=1` for real: one run of the example DAG on an agent, then what everyone can see of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import requests
from psycopg.rows import dict_row

from deploy.demo.demo import Demo, Outcome
from deploy.demo.environments import ADMIN
from deploy.demo.parts import DAG_ID, WORKER
from tests.acceptance.keeper import Keeper

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(400)]

#: (timestamp, level, event): what makes a line of a task's log.
Line = tuple[datetime, str, str]
#: (task, map index, try)
Try = tuple[str, int, int]


@dataclass
class Run:
    """All that was seen of one run, while it went on and after it."""

    outcome: Outcome
    airflow_log_folder: Path
    #: The agent's file of each job and attempt.
    files: dict[tuple[UUID, int], bytes]
    task_instances: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    chunks: dict[tuple[UUID, int], bytes] = field(default_factory=dict)
    #: What Airflow's REST API showed of tasks that were running, and of all tries in the end.
    live_logs: list[tuple[Try, list[Line]]] = field(default_factory=list)
    final_logs: dict[Try, list[Line]] = field(default_factory=dict)
    #: What Airflow's UI makes its menus of, and what it complains about there.
    external_views: list[dict[str, Any]] = field(default_factory=list)
    plugin_errors: list[dict[str, Any]] = field(default_factory=list)
    #: Where each of these views leads somebody who logs in there.
    pages: dict[str, requests.Response] = field(default_factory=dict)

    def jobs_of(self, task_id: str) -> list[dict[str, Any]]:
        return [job for job in self.jobs if job["task_id"] == task_id]

    def stored_lines(self, one: Try) -> list[Line]:
        """The lines the control plane has for a try: job after job, the agent's before the triggerer's."""
        jobs = [job for job in self.jobs if (job["task_id"], job["map_index"], job["try_number"]) == one]
        lines: list[Line] = []
        for job in jobs:
            for attempt in (job["attempt"], 0):
                lines += parsed(self.chunks.get((job["id"], attempt), b""))
        return without_equal_neighbours(lines)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    state_dir = tmp_path_factory.mktemp("demo")
    live: list[tuple[Try, list[Line]]] = []
    keeper = Keeper(state_dir / "agent" / "jobs", kept=tmp_path_factory.mktemp("kept"))
    with Demo(state_dir) as demo:
        keeper.start()

        def read_running_logs(run_id: str) -> None:
            for ti in demo.airflow.task_instances(DAG_ID, run_id):
                if ti["state"] == "running":
                    live.append((try_of(ti), log_of(demo, run_id, try_of(ti))))

        demo.start()
        outcome = demo.run_example(watch=read_running_logs)
        keeper.end()
        run = Run(outcome, demo.state_dir / "airflow" / "logs", keeper.logs(), live_logs=live)
        run.task_instances = demo.airflow.task_instances(DAG_ID, outcome.run_id)
        with psycopg.connect(demo.programs.databases["edgecontrol"], row_factory=dict_row) as connection:
            run.jobs = connection.execute(
                "SELECT * FROM edgecontrol.job WHERE run_id = %s ORDER BY queued_at, id", [outcome.run_id]
            ).fetchall()
            for row in connection.execute(
                "SELECT job_id, attempt, string_agg(data, '' ORDER BY \"offset\") AS data"
                " FROM edgecontrol.log_chunk GROUP BY job_id, attempt"
            ):
                run.chunks[row["job_id"], row["attempt"]] = bytes(row["data"])
        for job in run.jobs:
            one = (job["task_id"], job["map_index"], job["try_number"])
            run.final_logs[one] = log_of(demo, outcome.run_id, one)
        plugins = demo.airflow.call("GET", "plugins")["plugins"]
        run.external_views = [view for plugin in plugins for view in plugin["external_views"]]
        run.plugin_errors = demo.airflow.call("GET", "plugins/importErrors")["import_errors"]
        run.pages = {view["name"]: page_behind_login(demo, view["href"]) for view in run.external_views}
        yield run


def test_every_task_ends_in_the_right_state_in_airflow(run: Run) -> None:
    ends = {(ti["task_id"], ti["map_index"]): ti["state"] for ti in run.task_instances}
    skipped = {key for key, state in ends.items() if state == "skipped"}
    assert skipped == {("report_alarm", -1)}
    assert {state for key, state in ends.items() if key not in skipped} == {"success"}
    assert sum(task_id == "read_sensor" for task_id, _ in ends) == 20
    assert run.outcome.tasks == len(ends)
    assert run.outcome.worker == WORKER


def test_every_job_is_final_and_says_what_airflow_accepted(run: Run) -> None:
    ran = {(ti["task_id"], ti["map_index"]) for ti in run.task_instances if ti["state"] == "success"}
    assert {(job["task_id"], job["map_index"]) for job in run.jobs} == ran
    for job in run.jobs:
        assert job["state"] == ("failed" if job["airflow_outcome"] == "up_for_retry" else "success"), job
        assert job["token"] is None
        assert job["finished_at"] is not None


def test_a_retried_task_has_a_job_for_each_try(run: Run) -> None:
    jobs = run.jobs_of("call_gateway")
    assert [(job["try_number"], job["airflow_outcome"]) for job in jobs] == [(1, "up_for_retry"), (2, "success")]


def test_a_deferred_task_has_a_job_before_and_one_after_its_wait(run: Run) -> None:
    jobs = run.jobs_of("wait_a_moment")
    assert [(job["try_number"], job["airflow_outcome"]) for job in jobs] == [(1, "deferred"), (1, "success")]


def test_all_other_tasks_have_one_job(run: Run) -> None:
    others = [job for job in run.jobs if job["task_id"] not in ("call_gateway", "wait_a_moment")]
    assert len({(job["task_id"], job["map_index"]) for job in others}) == len(others)


def test_stored_logs_are_the_bytes_of_the_agents_files(run: Run) -> None:
    for job in run.jobs:
        stored = run.chunks[job["id"], job["attempt"]]
        assert sha256(stored) == job["log_sha256"] == sha256(run.files[job["id"], job["attempt"]]), job
        assert len(stored) == job["log_size"] == job["log_final_size"], job


def test_airflow_shows_the_lines_of_finished_tasks_in_their_order(run: Run) -> None:
    for one, shown in run.final_logs.items():
        assert shown == run.stored_lines(one), one
        assert shown, one


def test_airflow_shows_the_lines_of_running_tasks_in_their_order(run: Run) -> None:
    assert run.live_logs, "no task was seen running"
    for one, shown in run.live_logs:
        assert shown == run.stored_lines(one)[: len(shown)], one
    assert any(shown for _, shown in run.live_logs)


def test_airflow_keeps_no_task_log_of_its_own(run: Run) -> None:
    files = [path for path in run.airflow_log_folder.rglob("dag_id=*/**/*") if path.is_file()]
    assert files == []


def test_airflows_admin_menu_has_links_to_the_lists_of_workers_and_jobs(run: Run) -> None:
    places = {view["name"]: (view["category"], view["destination"], view["url_route"]) for view in run.external_views}
    # With a `url_route` Airflow would show the page in a frame, which the admin forbids.
    assert places == dict.fromkeys(["Edge Worker Hosts", "Edge Worker Jobs"], ("admin", "nav", None))
    assert run.plugin_errors == []
    for view in run.external_views:
        page = run.pages[view["name"]]
        assert (page.status_code, page.url) == (200, view["href"])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def try_of(ti: dict[str, Any]) -> Try:
    return ti["task_id"], ti["map_index"], ti["try_number"]


def log_of(demo: Demo, run_id: str, one: Try) -> list[Line]:
    """What Airflow's REST API shows of a try now, without the heading that names the sources."""
    content = demo.airflow.log(DAG_ID, run_id, *one)
    lines = [line for line in content if isinstance(line, dict) and line.get("timestamp")]
    return without_equal_neighbours([line_of(line) for line in lines])


def page_behind_login(demo: Demo, url: str) -> requests.Response:
    """The page that somebody sees who follows a link and logs in to the Django admin."""
    with requests.Session() as browser:
        browser.trust_env = False
        login = browser.get(url, timeout=30)
        form = {
            "csrfmiddlewaretoken": browser.cookies.get("csrftoken", ""),
            "next": url.removeprefix(demo.programs.control_plane_url),
        }
        return browser.post(login.url, {**form, "username": ADMIN, "password": demo.programs.password}, timeout=30)


def parsed(data: bytes) -> list[Line]:
    return [line_of(json.loads(line)) for line in data.decode().splitlines()]


def line_of(entry: dict[str, Any]) -> Line:
    return datetime.fromisoformat(entry["timestamp"]), entry["level"], entry["event"]


def without_equal_neighbours(lines: list[Line]) -> list[Line]:
    return [line for line, _ in groupby(lines)]
