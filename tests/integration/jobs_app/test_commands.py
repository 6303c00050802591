"""Commands on jobs and queues: whom they mean, what they wait for, and what `list_jobs` shows."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from jobs_app import lifecycle, queues
from jobs_app.models import Job, Queue
from tests.integration.commandline import Ran, manage
from tests.integration.people import OPS
from workers_app import auth, wishes
from workers_app.management.endings import Code
from workers_app.models import Change, Worker

Make = Callable[..., Any]


def revoked() -> set[str]:
    return set(Job.objects.filter(state="revoked").values_list("task_id", flat=True))


@pytest.fixture
def jobs(make_worker: Make, make_job: Make) -> dict[str, Job]:
    """One job of each kind that a choice may tell apart, by the name of its task."""
    worker = make_worker("press-1")
    rows: list[dict[str, Any]] = [
        {"task_id": "waits", "dag_id": "a", "queue": "floor"},
        {"task_id": "waits_elsewhere", "dag_id": "a", "queue": "lab"},
        {"task_id": "claimed", "dag_id": "b", "queue": "floor", "worker": worker, "state": "claimed"},
        {"task_id": "runs", "dag_id": "b", "queue": "floor", "worker": worker},
        {"task_id": "done", "dag_id": "a", "queue": "floor", "worker": worker, "state": "success"},
    ]
    return {row["task_id"]: make_job(**row) for row in rows}


class TestChoosingJobs:
    @pytest.mark.parametrize(
        ("choice", "meant"),
        [
            (["--dag", "a"], {"waits", "waits_elsewhere"}),
            (["--queue", "floor"], {"waits", "claimed", "runs"}),
            (["--worker", "press-1"], {"claimed", "runs"}),
            (["--state", "queued"], {"waits", "waits_elsewhere"}),
            (["--queue", "floor", "--state", "queued"], {"waits"}),
            (["--all"], {"waits", "waits_elsewhere", "claimed", "runs"}),
        ],
    )
    def test_open_jobs_that_fit_are_meant_and_no_finished_one(
        self, jobs: dict[str, Job], choice: list[str], meant: set[str]
    ) -> None:
        ran = manage("revoke_job", *choice, "--yes")
        assert (ran.code, ran.err) == (Code.DONE, "")
        assert revoked() == meant

    def test_ids_are_taken_as_they_are_and_a_finished_one_is_skipped(self, jobs: dict[str, Job]) -> None:
        ran = manage("revoke_job", str(jobs["waits"].pk), str(jobs["done"].pk))
        assert ran.code == Code.SKIPPED
        assert ran.out == "Revoke: 1 done: a.waits try 0\n"
        assert ran.err == "skipped: a.done try 0: it is success already\n"
        assert revoked() == {"waits"}

    def test_json_names_jobs_by_their_ids(self, jobs: dict[str, Job]) -> None:
        ran = manage("revoke_job", str(jobs["waits"].pk), str(jobs["done"].pk), "--json")
        why = "it is success already"
        assert ran.json == {"done": [str(jobs["waits"].pk)], "skipped": [{"name": str(jobs["done"].pk), "why": why}]}

    def test_an_unknown_id_is_refused_with_the_nearest_before_anything_is_done(self, jobs: dict[str, Job]) -> None:
        right = str(jobs["runs"].pk)
        wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
        ran = manage("revoke_job", str(jobs["waits"].pk), wrong)
        assert ran.code == Code.REFUSED
        assert f"there is no job {wrong!r} (did you mean {right!r}?)" in ran.err
        assert revoked() == set()

    @pytest.mark.parametrize(
        "choice",
        [
            [],
            ["x"],
            ["--all", "--dag", "a"],
            [str(uuid.uuid4()), "--queue", "floor"],
            ["--state", "success"],
        ],
    )
    def test_what_does_not_say_which_or_says_it_twice_is_wrong_usage(
        self, jobs: dict[str, Job], choice: list[str]
    ) -> None:
        assert manage("revoke_job", *choice, "--yes").code == Code.WRONG_USAGE
        assert revoked() == set()

    @pytest.mark.parametrize("choice", [["--dag", ""], ["--queue", ""], ["--dag", "A"], ["--worker", "press-2"]])
    def test_what_fits_nothing_is_refused(self, jobs: dict[str, Job], choice: list[str]) -> None:
        ran = manage("revoke_job", *choice, "--yes")
        assert ran.code == Code.REFUSED
        assert ran.err.count("\n") == 1
        assert revoked() == set()

    def test_even_one_that_was_not_named_is_asked_about(self, jobs: dict[str, Job]) -> None:
        choice = ["--queue", "lab"]
        assert manage("revoke_job", *choice).code == Code.REFUSED
        ran = manage("revoke_job", *choice, types="y\n")
        assert "  a.waits_elsewhere try 0  queued in queue lab\nGo on with 1 job?" in ran.err
        assert revoked() == {"waits_elsewhere"}

    def test_many_cost_what_few_do(self, make_job: Make) -> None:
        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                assert manage("revoke_job", "--all", "--yes").code == Code.DONE
            return len(queries)

        make_job()
        few = cost()
        for _ in range(100):
            make_job()
        assert cost() == few <= 10


class TestChoosingQueues:
    @pytest.mark.parametrize(
        ("choice", "meant"),
        [
            (["floor"], {"floor"}),
            (["--pattern", "f*"], {"floor", "furnace"}),
            (["--all"], {"floor", "furnace", "lab"}),
        ],
    )
    def test_exactly_those_are_meant(self, db: None, choice: list[str], meant: set[str]) -> None:
        Queue.objects.remember(["floor", "furnace", "lab"])
        assert manage("pause_queue", *choice, "--comment", "x", "--yes").code == Code.DONE
        assert set(Queue.objects.filter(paused=True).values_list("name", flat=True)) == meant

    def test_a_queue_that_a_worker_serves_exists_before_its_first_job(self, make_worker: Make) -> None:
        make_worker(queues=["floor"])
        assert manage("pause_queue", "floor", "--comment", "x").code == Code.DONE
        assert Queue.objects.get().paused

    def test_an_unknown_one_is_refused_with_the_nearest(self, db: None) -> None:
        Queue.objects.remember(["floor"])
        ran = manage("pause_queue", "flor", "--comment", "x")
        assert (ran.code, ran.err) == (Code.REFUSED, "Refused: there is no queue 'flor' (did you mean 'floor'?)\n")
        assert not Change.objects.exists()

    @pytest.mark.parametrize("choice", [[], ["floor", "--all"], ["--pattern", "f*", "--all"]])
    def test_no_way_or_two_ways_of_choosing_are_wrong_usage(self, db: None, choice: list[str]) -> None:
        Queue.objects.remember(["floor"])
        assert manage("resume_queue", *choice, "--yes").code == Code.WRONG_USAGE

    def test_the_question_tells_what_is_paused_and_limited_already(self, db: None) -> None:
        Queue.objects.remember(["floor", "lab"])
        queues.pause(["floor"], by=OPS, comment="x")
        queues.set_limit(["floor"], by=OPS, concurrency=3)
        ran = manage("resume_queue", "--all", types="n\n")
        assert "  floor  paused, at most 3 slots\n" in ran.err

    def test_a_limit_is_taken_away_by_saying_so(self, db: None) -> None:
        Queue.objects.remember(["floor"])
        manage("set_queue_concurrency", "floor", "--concurrency", "3")
        assert manage("set_queue_concurrency", "floor").code == Code.WRONG_USAGE
        assert Queue.objects.get().concurrency_limit == 3
        assert manage("set_queue_concurrency", "floor", "--concurrency", "").code == Code.DONE
        assert Queue.objects.get().concurrency_limit is None


class TestWaitingForAPausedQueue:
    def test_it_ends_when_nothing_of_it_is_held(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker()
        held = [make_job(queue="floor", worker=worker), make_job(queue="floor", worker=worker, state="claimed")]
        make_job(queue="floor")
        make_job(queue="lab", worker=worker)

        def one_ends() -> None:
            lifecycle.revoke([held.pop().pk], by=OPS)

        ran = manage("pause_queue", "floor", "--comment", "x", "--wait", during_wait=one_ends)
        assert ran.code == Code.DONE
        assert ran.err.splitlines() == ["floor: 2 jobs held", "floor: 1 job held", "floor: 0 jobs held"]

    def test_it_ends_when_somebody_resumes_it(self, make_worker: Make, make_job: Make) -> None:
        make_job(queue="floor", worker=make_worker())
        ran = manage(
            "pause_queue",
            "floor",
            "--comment",
            "x",
            "--wait",
            during_wait=lambda: void(queues.resume(["floor"], by=OPS)),
        )
        assert (ran.code, ran.err.splitlines()[-1]) == (Code.REFUSED, "Refused: floor: it was resumed meanwhile")

    def test_a_queue_that_was_paused_before_is_waited_for_too(self, make_worker: Make, make_job: Make) -> None:
        make_job(queue="floor", worker=make_worker())
        for code in (Code.UNFINISHED, Code.UNFINISHED):
            ran = manage("pause_queue", "floor", "--comment", "x", "--wait", "3", during_wait=lambda: None)
            assert ran.code == code
        assert "skipped: floor: it is paused already" in ran.err


class TestWaitingForARevokedJob:
    """Its worker stops it some time after it is revoked, and says so only by how many jobs it counts."""

    @pytest.fixture
    def revoke(self, make_worker: Make, make_job: Make, long_ago: Callable[..., None]) -> Callable[..., Ran]:
        def revoke(*steps: dict[str, Any], beside: int = 0, state: str = "running") -> Ran:
            """Revoke a job; after each second of waiting its worker is as the next step says."""
            worker = make_worker("press-1", reported="running", state="running", heard_seconds_ago=5)
            for _ in range(beside):
                make_job(worker=worker)
            job = make_job(worker=worker, state=state)
            # What one transaction does happens at one moment: the job began before it was revoked.
            for row in Job.objects.filter(state="running"):
                long_ago(row, started_at=600)
            Worker.objects.filter(pk=worker.pk).update(jobs_active=beside + 1)
            left = iter(steps)

            def pass_time() -> None:
                step = dict(next(left, {}))
                job.refresh_from_db()
                long_ago(job, finished_at=step.pop("ago", 30))
                long_ago(worker, last_heartbeat=step.pop("heard", 35))
                for _ in range(step.pop("takes", 0)):
                    make_job(worker=worker)
                Worker.objects.filter(pk=worker.pk).update(**step)

            return manage("revoke_job", str(job.pk), "--wait", "9", during_wait=pass_time)

        return revoke

    def test_it_ends_when_the_worker_counts_no_more_than_what_it_still_holds(self, revoke: Callable[..., Ran]) -> None:
        ran = revoke({}, {"heard": 1}, {"heard": 1, "jobs_active": 2}, beside=2)
        assert ran.code == Code.DONE
        assert [line.split(": ")[1] for line in ran.err.splitlines()] == [
            "press-1 is running and has not heard of it yet",
            "press-1 is stopping it",
            "press-1 has stopped it",
        ]

    def test_a_count_from_right_after_the_order_is_not_believed(self, revoke: Callable[..., Ran]) -> None:
        assert revoke(*[{"ago": 5, "heard": 1, "jobs_active": 0}] * 9).code == Code.UNFINISHED

    def test_what_the_worker_took_since_is_not_taken_for_what_it_still_holds(self, revoke: Callable[..., Ran]) -> None:
        assert revoke({"heard": 1, "takes": 1, "jobs_active": 1}, *[{"heard": 1}] * 8).code == Code.UNFINISHED

    def test_a_worker_that_takes_other_jobs_is_believed_to_have_stopped_it_after_two_minutes(
        self, revoke: Callable[..., Ran]
    ) -> None:
        assert revoke(*[{"ago": 100, "heard": 1, "jobs_active": 5}] * 9, beside=1).code == Code.UNFINISHED

        # Another machine, since names are unique.
        Worker.objects.update(name="other")
        ran = revoke({"ago": 130, "heard": 1, "jobs_active": 5}, beside=1)
        assert (ran.code, "more than two minutes ago" in ran.err) == (Code.DONE, True)

    def test_on_a_machine_that_has_ended_nothing_runs(self, revoke: Callable[..., Ran]) -> None:
        ran = revoke({"reported": "offline", "state": "offline"})
        assert (ran.code, "press-1 is offline" in ran.err) == (Code.DONE, True)

    def test_of_a_silent_machine_nothing_is_known(self, revoke: Callable[..., Ran]) -> None:
        ran = revoke(*[{"state": "unknown"}] * 9)
        assert (ran.code, "press-1 is unknown and has not heard" in ran.err) == (Code.UNFINISHED, True)

    def test_what_was_never_started_needs_no_stopping(self, revoke: Callable[..., Ran], make_job: Make) -> None:
        assert revoke(state="claimed").code == Code.DONE
        assert manage("revoke_job", str(make_job().pk), "--wait").code == Code.DONE


class TestListJobs:
    def test_the_table_shows_what_an_operator_looks_for(self, make_worker: Make, make_job: Make) -> None:
        job = make_job(
            worker=make_worker("press-1"), dag_id="bake", task_id="mix", map_index=2, try_number=3, run_id="r1"
        )
        title, row = manage("list_jobs").out.splitlines()
        assert title.split() == ["ID", "STATE", "JOB", "QUEUE", "WORKER", "SINCE", "RUN"]
        assert row.split("  ")[0] == str(job.pk)
        for part in ("running", "bake.mix[2] try 3", "default", "press-1", "r1"):
            assert f" {part} " in f"{row} "

    def test_it_says_why_a_waiting_job_waits_and_why_another_ended(self, make_job: Make) -> None:
        make_job(queue="floor", task_id="waits")
        make_job(state="failed", task_id="ended", reason="exit code 7")
        queues.pause(["floor"], by=OPS, comment="new paint")
        rows = {row["task_id"]: row for row in manage("list_jobs", "--json").json}
        assert "new paint" in rows["waits"]["waits_because"]
        assert rows["ended"]["waits_because"] is None
        table = manage("list_jobs").out
        assert rows["waits"]["waits_because"] in table
        assert "exit code 7" in table

    @pytest.mark.parametrize(
        ("flags", "shown"),
        [
            ([], {"waits", "waits_elsewhere", "claimed", "runs", "done"}),
            (["--state", "queued"], {"waits", "waits_elsewhere"}),
            (["--state", "claimed", "--state", "success"], {"claimed", "done"}),
            (["--queue", "floor"], {"waits", "claimed", "runs", "done"}),
            (["--worker", "press-1"], {"claimed", "runs", "done"}),
            (["--dag", "a", "--queue", "floor"], {"waits", "done"}),
            (["--dag", "nothing"], set()),
        ],
    )
    def test_flags_narrow_it_down(self, jobs: dict[str, Job], flags: list[str], shown: set[str]) -> None:
        assert {row["task_id"] for row in manage("list_jobs", "--json", *flags).json} == shown

    def test_the_newest_come_first_and_the_rest_is_mentioned(
        self, make_job: Make, long_ago: Callable[..., None]
    ) -> None:
        for minutes in (3, 1, 2):
            long_ago(make_job(task_id=f"t{minutes}"), queued_at=60 * minutes)
        ran = manage("list_jobs", "--limit", "2", "--json")
        assert [row["task_id"] for row in ran.json] == ["t1", "t2"]
        assert "--limit" in ran.err
        assert manage("list_jobs", "--limit", "3").err == ""

    def test_an_unknown_worker_host_is_refused_with_the_nearest(self, jobs: dict[str, Job]) -> None:
        ran = manage("list_jobs", "--worker", "pres-1")
        assert ran.err == "Refused: there is no worker host 'pres-1' (did you mean 'press-1'?)\n"
        assert ran.code == Code.REFUSED

    @pytest.mark.parametrize(
        "flags", [["--limit", "0"], ["--limit", "many"], ["--limit", "10001"], ["--state", "x"], ["--dag", ""]]
    )
    def test_what_nobody_understands_is_wrong_usage(self, db: None, flags: list[str]) -> None:
        assert manage("list_jobs", *flags).code == Code.WRONG_USAGE

    def test_json_has_no_token_and_no_workload(self, jobs: dict[str, Job]) -> None:
        out = manage("list_jobs", "--json").out
        assert "airflow-token" not in out
        assert "workload" not in out

    def test_nothing_is_said_and_no_failure(self, db: None) -> None:
        assert manage("list_jobs") == Ran(0, "", "no job is like that\n")
        assert manage("list_jobs", "--json").json == []

    def test_it_costs_the_same_whatever_the_number_of_jobs_and_workers(self, make_worker: Make, make_job: Make) -> None:
        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                manage("list_jobs")
            return len(queries)

        make_job(worker=make_worker())
        make_job()
        few = cost()
        for number in range(40):
            make_job(worker=make_worker())
            make_job(queue=f"queue-{number}")
        assert cost() == few <= 5

    def test_at_a_terminal_the_id_stays_whole_and_the_reason_gets_lines_of_its_own(self, make_job: Make) -> None:
        job = make_job(dag_id="d" * 80, queue="q" * 80)
        out = manage("list_jobs", "--no-color", types="").out
        assert max(map(len, out.splitlines())) <= 80
        assert str(job.pk) in out
        assert "    no worker is live" in out


@pytest.fixture
def fleet(make_worker: Make) -> list[Worker]:
    return [
        make_worker("press-1", queues=["floor"]),
        make_worker("press-2", queues=["floor", "paint"]),
        make_worker("lab", queues=["assay"]),
        make_worker("Halle 7 🦊", queues=None),
    ]


class TestListWorkers:
    def test_the_table_shows_what_an_operator_looks_for(self, make_worker: Make, make_job: Make) -> None:
        worker = make_worker(
            "press-1",
            queues=["floor", "paint"],
            team_name="red",
            concurrency=8,
            concurrency_override=3,
            agent_version="1.2.3",
            heard_seconds_ago=7500,
            requested="maintenance",
            requested_by="ops",
            requested_comment="disk\nswap",
            state="maintenance pending",
        )
        for slots in (1, 2):
            make_job(worker=worker, slots=slots)
        title, row = manage("list_workers").out.splitlines()
        assert title.split() == ["NAME", "STATE", "JOBS", "SLOTS", "QUEUES", "TEAM", "HEARD", "AGENT", "WISH"]
        for part in ("press-1", "maintenance pending", "2", "3/3", "floor,paint", "red", "2 h", "1.2.3"):
            assert f" {part} " in f" {row} "
        assert row.endswith("maintenance by ops: disk swap")

    def test_queues_that_are_all_or_none_are_told_apart(self, make_worker: Make) -> None:
        make_worker("a", queues=None)
        make_worker("b", queues=[])
        _, first, second = manage("list_workers").out.splitlines()
        assert "(every queue)" in first
        assert "(none)" in second

    @pytest.mark.parametrize(
        ("flags", "names"),
        [
            ([], ["Halle 7 🦊", "lab", "press-1", "press-2"]),
            (["--queue", "floor"], ["Halle 7 🦊", "press-1", "press-2"]),
            (["--pattern", "press-*"], ["press-1", "press-2"]),
            (["--pattern", "press-*", "--queue", "paint"], ["press-2"]),
            (["--state", "maintenance_request"], ["lab"]),
            (["--state", "maintenance request", "--state", "unknown"], ["lab"]),
            (["--team", "red"], []),
        ],
    )
    def test_flags_narrow_it_down(self, fleet: list[Worker], flags: list[str], names: list[str]) -> None:
        wishes.request_maintenance([fleet[2].pk], by=OPS, comment="x")
        assert [row["name"] for row in manage("list_workers", "--json", *flags).json] == names

    def test_an_unknown_state_is_wrong_usage_that_names_the_states(self, db: None) -> None:
        ran = manage("list_workers", "--state", "sleeping")
        assert ran.code == Code.WRONG_USAGE
        assert "maintenance mode" in ran.err

    def test_json_has_times_lists_and_no_secret(self, make_worker: Make) -> None:
        worker = make_worker("press-1", queues=["floor"])
        token = auth.issue(worker=worker, by=OPS)
        (row,) = manage("list_workers", "--json").json
        assert row["queues"] == ["floor"]
        assert row["last_heartbeat"].endswith("Z")
        assert token.split("_")[2] not in str(row)
        assert "session" not in row

    def test_nobody_is_said_and_no_failure(self, make_worker: Make) -> None:
        assert manage("list_workers") == Ran(0, "", "there is no worker host yet\n")
        make_worker("press-1")
        assert manage("list_workers", "--queue", "x", "--team", "y") == Ran(0, "", "no worker host is like that\n")
        assert manage("list_workers", "--team", "y", "--json").json == []

    def test_it_costs_the_same_whatever_the_size_of_the_fleet(self, make_worker: Make, make_job: Make) -> None:
        for _ in range(50):
            make_job(worker=make_worker())
        for flags in ([], ["--json"], ["--queue", "x", "--pattern", "*", "--state", "idle"]):
            with CaptureQueriesContext(connection) as queries:
                manage("list_workers", *flags)
            assert len(queries) <= 3

    def test_at_a_terminal_it_fits_and_has_colours_only_there(self, make_worker: Make) -> None:
        make_worker("n" * 250, queues=["q" * 100])
        wide, narrow = manage("list_workers"), manage("list_workers", types="")
        assert max(map(len, wide.out.splitlines())) > 250
        assert max(len(line.replace("\x1b[32;1m", "").replace("\x1b[0m", "")) for line in narrow.out.splitlines()) <= 80
        assert "\x1b[" in narrow.out
        assert "\x1b[" not in wide.out


def void(_: object) -> None:
    """For a lambda whose result nobody wants."""
