"""Whom commands mean, when they ask, how they end, and what they print. What operations do is tested elsewhere."""

from __future__ import annotations

import getpass
import platform
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class
from django.db import OperationalError, ProgrammingError, connection
from django.test.utils import CaptureQueriesContext

from jobs_app import operations as jobs_operations
from tests.integration.commandline import Ran, manage
from tests.integration.people import OPS
from workers_app import operations, registry, wishes
from workers_app.management.endings import MEANINGS, Code
from workers_app.models import Change, Worker
from workers_app.registry import Introduction

Make = Callable[..., Any]
EVERY = (*operations.WORKERS, *operations.ENROLMENTS, *jobs_operations.QUEUES, *jobs_operations.JOBS)
ASK = ("request_maintenance", "--comment", "disk")


def wished() -> dict[str, str]:
    """Name of each worker host and what is wanted of it."""
    return dict(Worker.objects.values_list("name", "requested"))


def in_maintenance() -> list[str]:
    return sorted(name for name, wish in wished().items() if wish == "maintenance")


def is_one_line(ran: Ran) -> bool:
    return ran.err.count("\n") == 1 and "Traceback" not in ran.err


@pytest.fixture
def fleet(make_worker: Make) -> list[Worker]:
    return [
        make_worker("press-1", queues=["floor"]),
        make_worker("press-2", queues=["floor", "paint"]),
        make_worker("lab", queues=["assay"]),
        make_worker("Halle 7 🦊", queues=None),
    ]


class TestChoosing:
    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            (["press-1"], ["press-1"]),
            (["press-1", "lab", "press-1"], ["lab", "press-1"]),
            (["Halle 7 🦊"], ["Halle 7 🦊"]),
            (["--pattern", "press-*"], ["press-1", "press-2"]),
            (["--pattern", "PRESS-*"], None),
            (["--queue", "floor"], ["Halle 7 🦊", "press-1", "press-2"]),
            (["--queue", "assay"], ["Halle 7 🦊", "lab"]),
            (["--all"], ["Halle 7 🦊", "lab", "press-1", "press-2"]),
        ],
    )
    def test_exactly_the_named_worker_hosts_are_meant(
        self, fleet: list[Worker], choice: list[str], names: list[str] | None
    ) -> None:
        ran = manage(*ASK, *choice, "--yes")
        assert ran.code == (Code.DONE if names else Code.REFUSED)
        assert in_maintenance() == (names or [])

    @pytest.mark.parametrize(
        "choice",
        [
            [],
            ["press-1", "--all"],
            ["press-1", "--pattern", "*"],
            ["--pattern", "*", "--queue", "floor"],
            ["--queue", "floor", "--all"],
        ],
    )
    def test_no_way_or_two_ways_of_choosing_are_wrong_usage(self, fleet: list[Worker], choice: list[str]) -> None:
        ran = manage(*ASK, *choice, "--yes")
        assert ran.code == Code.WRONG_USAGE
        assert "usage: manage.py request_maintenance (NAME ... | --pattern GLOB | --queue QUEUE | --all)" in ran.err
        assert in_maintenance() == []

    def test_an_unknown_name_is_refused_with_the_nearest_before_anything_is_done(self, fleet: list[Worker]) -> None:
        ran = manage(*ASK, "lab", "pres-1", "nothing like it")
        assert ran.code == Code.REFUSED
        assert "'pres-1' (did you mean 'press-1'?), 'nothing like it'" in ran.err
        assert is_one_line(ran)
        assert in_maintenance() == []
        assert not Change.objects.exists()

    @pytest.mark.parametrize("name", ["", "\udcff", "a\nb"])
    def test_a_name_that_no_worker_host_can_have_is_unknown(self, fleet: list[Worker], name: str) -> None:
        ran = manage(*ASK, name)
        assert ran.code == Code.REFUSED
        assert is_one_line(ran)

    @pytest.mark.parametrize("choice", [["--pattern", "x*"], ["--queue", "nowhere"], ["--all"]])
    def test_a_choice_that_fits_nobody_is_refused(self, make_worker: Make, choice: list[str]) -> None:
        if choice != ["--all"]:
            make_worker("press-1", queues=[])
        ran = manage(*ASK, *choice, "--yes")
        assert ran.code == Code.REFUSED
        assert is_one_line(ran)

    @pytest.mark.parametrize("glob", ["", "a\nb", "[z-a]"])
    def test_a_pattern_that_means_nothing_is_wrong_usage(self, fleet: list[Worker], glob: str) -> None:
        assert manage(*ASK, "--pattern", glob, "--yes").code == Code.WRONG_USAGE

    def test_a_flag_that_is_nearly_right_does_not_mean_another(self, fleet: list[Worker]) -> None:
        ran = manage(*ASK, "--al", "--yes")
        assert ran.code == Code.WRONG_USAGE
        assert in_maintenance() == []


class TestAsking:
    def test_names_are_not_asked_about(self, fleet: list[Worker]) -> None:
        assert manage(*ASK, "press-1", "press-2").code == Code.DONE
        assert manage("shutdown_worker", "press-1").code == Code.DONE

    def test_one_of_a_pattern_is_asked_about_only_when_it_is_grave(self, fleet: list[Worker]) -> None:
        assert manage(*ASK, "--pattern", "lab").code == Code.DONE
        assert manage("shutdown_worker", "--pattern", "lab").code == Code.REFUSED
        assert wished()["lab"] == "maintenance"

    def test_without_a_terminal_many_are_refused_with_what_to_do(self, fleet: list[Worker]) -> None:
        ran = manage(*ASK, "--all")
        assert ran.code == Code.REFUSED
        assert "4 worker hosts" in ran.err
        assert "--yes" in ran.err
        assert in_maintenance() == []

    @pytest.mark.parametrize("answer", ["y\n", "YES\n"])
    def test_yes_at_the_terminal_does_it_to_those_that_were_shown(self, fleet: list[Worker], answer: str) -> None:
        ran = manage(*ASK, "--pattern", "press-*", types=answer)
        assert ran.code == Code.DONE
        assert "  press-1  idle\n  press-2  idle\nGo on with 2 worker hosts? [y/N]" in ran.err
        assert in_maintenance() == ["press-1", "press-2"]

    @pytest.mark.parametrize("answer", ["\n", "n\n", "", "yess\n"])
    def test_anything_else_changes_nothing(self, fleet: list[Worker], answer: str) -> None:
        ran = manage(*ASK, "--all", types=answer)
        assert ran.code == Code.REFUSED
        assert "nothing was changed" in ran.err
        assert in_maintenance() == []

    def test_a_long_list_is_shortened(self, make_worker: Make) -> None:
        for number in range(50):
            make_worker(f"press-{number:02}")
        ran = manage(*ASK, "--all", types="n\n")
        assert "press-19" in ran.err
        assert "press-20" not in ran.err
        assert "and 30 more" in ran.err

    def test_the_question_does_not_get_into_the_json(self, fleet: list[Worker]) -> None:
        assert manage(*ASK, "--all", "--json", types="y\n").json["skipped"] == []


class TestParameters:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["request_maintenance"], "--comment"),
            (["request_maintenance", "--comment", " "], "is needed"),
            (["request_maintenance", "--comment", "x", "--until", "soon"], "must be a span such as 90m or 2h"),
            (["set_worker_concurrency", "--concurrency", "0"], "must be a whole number from 1 to 10000"),
            (["add_worker_queues", "--queues", ","], "is needed"),
        ],
    )
    def test_one_that_is_missing_or_wrong_is_wrong_usage(
        self, fleet: list[Worker], arguments: list[str], said: str
    ) -> None:
        ran = manage(*arguments, "press-1")
        assert ran.code == Code.WRONG_USAGE
        assert said in ran.err
        assert not Change.objects.exists()

    @pytest.mark.parametrize("name", ["set_worker_queues", "set_worker_concurrency"])
    def test_what_empty_takes_back_must_be_said_and_not_left_out(self, make_worker: Make, name: str) -> None:
        make_worker("press-1", queues_override=["floor"], concurrency_override=3)
        flag = "--queues" if name == "set_worker_queues" else "--concurrency"
        assert manage(name, "press-1").code == Code.WRONG_USAGE
        assert manage(name, "press-1", flag, "").code == Code.DONE
        worker = Worker.objects.get()
        assert None in (worker.queues_override, worker.concurrency_override)

    def test_every_operation_has_a_command_with_its_parameters_and_its_help(self) -> None:
        for operation in EVERY:
            ran = manage(operation.name, "--help")
            assert ran.code == Code.DONE
            assert operation.help in ran.out
            assert all(f"--{parameter.name}" in ran.out for parameter in operation.parameters)


class TestOutcome:
    def test_who_did_it_is_the_user_of_the_operating_system_on_this_host(self, fleet: list[Worker]) -> None:
        manage(*ASK, "press-1")
        change = Change.objects.get()
        assert (change.actor_kind, change.actor, change.origin) == ("command", getpass.getuser(), platform.node())

    def test_skipped_ones_are_named_with_the_reason_and_the_rest_is_done(self, fleet: list[Worker]) -> None:
        wishes.request_maintenance([fleet[0].pk], by=OPS, comment="x")
        ran = manage("exit_maintenance", "press-1", "lab")
        assert ran.code == Code.SKIPPED
        assert ran.out == "Exit maintenance: 1 done: press-1\n"
        assert ran.err == "skipped: lab: it is not in maintenance\n"

    def test_json_tells_both(self, fleet: list[Worker]) -> None:
        wishes.request_maintenance([fleet[0].pk], by=OPS, comment="x")
        ran = manage("exit_maintenance", "press-1", "lab", "--json")
        assert ran.json == {"done": ["press-1"], "skipped": [{"name": "lab", "why": "it is not in maintenance"}]}
        assert ran.code == Code.SKIPPED

    def test_one_that_is_removed_meanwhile_does_not_count_as_done(self, fleet: list[Worker]) -> None:
        class Remover:
            """Somebody is faster than the answer."""

            def isatty(self) -> bool:
                return True

            def readline(self) -> str:
                Worker.objects.get(name="press-1").delete()
                return "y\n"

        ran = manage(*ASK, "--pattern", "press-*", types=Remover())
        assert ran.code == Code.SKIPPED
        assert "no longer there" in ran.err
        assert in_maintenance() == ["press-2"]

    def test_a_bulk_operation_costs_the_same_for_many_as_for_few(self, make_worker: Make) -> None:
        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                assert manage(*ASK, "--all", "--yes").code == Code.DONE
            return len(queries)

        make_worker()
        few = cost()
        for _ in range(200):
            make_worker()
        assert cost() == few <= 10


class TestEnding:
    def test_each_code_has_its_meaning_in_the_help_of_what_can_have_it(self) -> None:
        pages = {name: " ".join(manage(name, "--help").out.split()) for name in ("list_workers", "shutdown_worker")}
        for code in Code:
            assert f"{code} {MEANINGS[code]}" in pages["shutdown_worker"]
        assert all(MEANINGS[code] not in pages["list_workers"] for code in (Code.SKIPPED, Code.UNFINISHED))

    def test_only_what_waits_can_run_out_of_time(self) -> None:
        for operation in EVERY:
            page = manage(operation.name, "--help").out
            assert ("--wait" in page) == (MEANINGS[Code.UNFINISHED] in page)

    @pytest.mark.parametrize("name", sorted(get_commands()))
    def test_every_command_of_ours_ends_by_the_same_rules(self, name: str) -> None:
        if get_commands()[name] not in ("workers_app", "jobs_app"):
            return
        assert load_command_class(get_commands()[name], name).codes[:3] == (Code.DONE, Code.REFUSED, Code.WRONG_USAGE)

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OperationalError("connection failed\nIs the server running?"), "away or failed: connection failed"),
            (ProgrammingError('relation "worker" does not exist'), "no tables"),
        ],
    )
    @pytest.mark.parametrize("arguments", [["list_workers"], [*ASK, "press-1"], ["create_enrolment_token", "x"]])
    def test_a_database_that_is_away_or_empty_is_one_line(
        self, db: None, arguments: list[str], error: Exception, said: str
    ) -> None:
        def away(*_: Any) -> None:
            raise error

        with connection.execute_wrapper(away):
            ran = manage(*arguments)
        assert ran.code == Code.REFUSED
        assert said in ran.err
        assert is_one_line(ran)
        assert ran.out == ""

    def test_ctrl_c_before_anything_was_done_says_so(self, fleet: list[Worker]) -> None:
        class Impatient:
            def isatty(self) -> bool:
                return True

            def readline(self) -> str:
                raise KeyboardInterrupt

        ran = manage(*ASK, "--all", types=Impatient())
        assert ran.code == Code.INTERRUPTED
        assert "Interrupted: nothing was changed" in ran.err
        assert in_maintenance() == []

    def test_ctrl_c_while_it_is_being_done_claims_nothing(self, fleet: list[Worker]) -> None:
        def interrupt(execute: Any, sql: str, *rest: Any) -> Any:
            if sql.startswith("UPDATE"):
                raise KeyboardInterrupt
            return execute(sql, *rest)

        with connection.execute_wrapper(interrupt):
            ran = manage(*ASK, "press-1")
        assert ran.code == Code.INTERRUPTED
        assert "whether it was done is not known" in ran.err


class TestWaiting:
    @pytest.mark.parametrize(
        ("command", "before", "reached"),
        [
            (["request_maintenance", "--comment", "x"], {}, {"reported": "maintenance", "state": "maintenance mode"}),
            (["request_maintenance", "--comment", "x"], {}, {"reported": "offline", "state": "offline maintenance"}),
            (
                ["exit_maintenance"],
                {"requested": "maintenance", "reported": "maintenance", "state": "maintenance mode"},
                {"reported": "idle", "state": "idle"},
            ),
            (["shutdown_worker"], {}, {"reported": "offline", "state": "offline"}),
        ],
    )
    def test_it_ends_once_the_worker_host_is_there(
        self, make_worker: Make, command: list[str], before: dict[str, str], reached: dict[str, str]
    ) -> None:
        make_worker("press-1", **before)
        seconds: list[None] = []

        def pass_time() -> None:
            seconds.append(None)
            if len(seconds) == 3:
                Worker.objects.update(**reached)

        ran = manage(command[0], "press-1", *command[1:], "--wait", during_wait=pass_time)
        assert (ran.code, len(seconds)) == (Code.DONE, 3)
        assert f"press-1: {reached['state']}" in ran.err

    def test_each_change_is_told_once(self, make_worker: Make) -> None:
        make_worker("press-1", reported="running", state="running", jobs_active=2)
        steps = iter(
            [
                {},
                {"reported": "maintenance_pending", "state": "maintenance pending"},
                {"jobs_active": 1},
                {},
                {"reported": "maintenance", "state": "maintenance mode", "jobs_active": 0},
            ]
        )
        ran = manage(*ASK, "press-1", "--wait", during_wait=lambda: void(Worker.objects.filter().update(**next(steps))))
        assert ran.err.splitlines() == [
            "press-1: maintenance request, 2 jobs",
            "press-1: maintenance pending, 2 jobs",
            "press-1: maintenance pending, 1 job",
            "press-1: maintenance mode",
        ]

    def test_while_nothing_changes_it_says_each_minute_whom_it_waits_for(self, make_worker: Make) -> None:
        make_worker("press-1")
        ran = manage(*ASK, "press-1", "--wait", "130", during_wait=lambda: None)
        assert ran.err.count("still waiting for press-1\n") == 2

    def test_it_runs_out_of_time_and_the_request_stands(self, make_worker: Make) -> None:
        make_worker("press-1")
        ran = manage(*ASK, "press-1", "--wait", "30", during_wait=lambda: None)
        assert ran.code == Code.UNFINISHED
        assert ran.err.endswith("Unfinished: after 30 s still waiting for press-1; the request stands\n")
        assert in_maintenance() == ["press-1"]

    def test_ctrl_c_leaves_the_request_standing(self, make_worker: Make) -> None:
        def interrupt() -> None:
            raise KeyboardInterrupt

        make_worker("press-1")
        ran = manage(*ASK, "press-1", "--wait", during_wait=interrupt)
        assert ran.code == Code.INTERRUPTED
        assert "Interrupted: what was asked for stands" in ran.err
        assert in_maintenance() == ["press-1"]

    def test_it_ends_when_somebody_wants_something_else(self, make_worker: Make) -> None:
        worker = make_worker("press-1")
        ran = manage(
            *ASK,
            "press-1",
            "--wait",
            during_wait=lambda: void(wishes.exit_maintenance([worker.pk], by=OPS)),
        )
        assert ran.code == Code.REFUSED
        assert "press-1: idle: active was asked for meanwhile by operator ops" in ran.err

    def test_it_ends_when_the_worker_host_is_removed(self, make_worker: Make) -> None:
        worker = make_worker("press-1")
        ran = manage(*ASK, "press-1", "--wait", during_wait=lambda: void(worker.delete()))
        assert (ran.code, ran.err.splitlines()[-1]) == (Code.REFUSED, "Refused: press-1: removed")

    def test_a_worker_host_that_was_started_again_had_been_shut_down(self, make_worker: Make) -> None:
        worker = make_worker("press-1")
        ran = manage(
            "shutdown_worker",
            "press-1",
            "--wait",
            during_wait=lambda: void(
                registry.register(worker=worker, introduction=Introduction(session=uuid.uuid4(), boot_id="boot-2"))
            ),
        )
        assert ran.code == Code.DONE
        assert "started again" in ran.err

    def test_those_that_are_there_already_are_not_waited_for(self, make_worker: Make) -> None:
        make_worker("press-1", reported="offline", state="offline")
        assert manage(*ASK, "press-1", "--wait").code == Code.DONE
        # Skipped, and nothing to wait for.
        assert manage("shutdown_worker", "press-1", "--wait").code == Code.SKIPPED

    def test_of_many_those_that_are_switched_off_and_were_skipped_are_not_waited_for(self, make_worker: Make) -> None:
        make_worker("press-1", requested="maintenance", reported="maintenance", state="maintenance mode")
        make_worker("press-2", reported="offline", state="offline")
        make_worker("press-3", state="unknown", heard_seconds_ago=900)
        back = {"reported": "idle", "state": "idle"}
        ran = manage(
            *("exit_maintenance", "--all", "--yes", "--wait", "30"),
            during_wait=lambda: void(Worker.objects.filter(name="press-1").update(**back)),
        )
        assert ran.code == Code.SKIPPED
        assert "press-1: idle" in ran.err
        assert "waiting for" not in ran.err

    def test_a_wait_is_taken_up_again_by_the_same_command(self, make_worker: Make) -> None:
        make_worker("press-1", requested="active", reported="maintenance", state="maintenance exit")
        ran = manage("exit_maintenance", "press-1", "--wait", "5", during_wait=lambda: None)
        assert ran.code == Code.UNFINISHED
        assert "skipped: press-1: it is not in maintenance" in ran.err

    def test_the_json_comes_before_the_wait_and_stays_alone_on_stdout(self, make_worker: Make) -> None:
        make_worker("press-1")
        ran = manage(*ASK, "press-1", "--wait", "5", "--json", during_wait=lambda: None)
        assert ran.json == {"done": ["press-1"], "skipped": []}
        assert ran.code == Code.UNFINISHED

    def test_a_database_that_is_away_for_a_while_ends_no_wait(self, transactional_db: None, make_worker: Make) -> None:
        make_worker("press-1")

        def away(*_: Any) -> None:
            raise OperationalError("away")

        with ExitStack() as outage:
            steps = iter(
                [
                    lambda: outage.enter_context(connection.execute_wrapper(away)),
                    lambda: None,
                    lambda: (outage.close(), Worker.objects.update(reported="maintenance", state="maintenance mode")),
                ]
            )
            ran = manage(*ASK, "press-1", "--wait", during_wait=lambda: void(next(steps)()))
        assert ran.code == Code.DONE
        assert ran.err.count("the database is away") == 1

    def test_a_look_costs_the_same_for_many_as_for_few(self, make_worker: Make) -> None:
        def cost() -> int:
            with CaptureQueriesContext(connection) as queries:
                manage(*ASK, "--all", "--yes", "--wait", "3", during_wait=lambda: None)
            return len(queries)

        make_worker()
        few = cost()
        for _ in range(50):
            make_worker()
        assert cost() == few

    def test_a_name_after_wait_is_not_taken_for_seconds(self, make_worker: Make) -> None:
        ran = manage(*ASK, "--wait", "press-1")
        assert ran.code == Code.WRONG_USAGE
        assert "names come before --wait" in ran.err


def void(_: object) -> None:
    """For a lambda whose result nobody wants."""
