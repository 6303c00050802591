"""What a disk without room may not do: end a task, undo a result, take work from machines that have room."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from agent import processes, runner
from agent.files import read_json
from agent.gate import Gate
from agent.held import Held
from agent.intake import Intake
from agent.jobs import Job
from agent.orders import Orders
from agent.spool import RESULT_BYTES
from tests.unit.agent.conftest import SETTINGS, Plane

Add = Callable[..., Job]


def offer(**changes: Any) -> dict[str, Any]:
    whole = {"id": str(uuid4()), "attempt": 1, "kind": "ExecuteTask", "queue": "q", "slots": 1, "log_path": "a.log"}
    return {**whole, "workload": {}, **changes}


def no_space(*arguments: Any, **options: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_result_takes_the_room_that_was_set_aside_for_it(add_job: Add) -> None:
    directory = add_job().directory
    reserved = (directory / "exit.reserved").stat()
    assert reserved.st_size == RESULT_BYTES
    runner.write_result(directory, {"state": "success"})
    written = (directory / "exit.json").stat()
    assert (written.st_ino, written.st_blocks) == (reserved.st_ino, reserved.st_blocks)
    assert read_json(directory / "exit.json") == {"state": "success"}


def test_a_job_that_an_older_agent_wrote_down_has_its_result_too(add_job: Add) -> None:
    directory = add_job().directory
    (directory / "exit.reserved").unlink()
    runner.write_result(directory, {"state": "success"})
    assert read_json(directory / "exit.json") == {"state": "success"}


def test_a_log_that_cannot_be_written_ends_no_task() -> None:
    supervisor = SimpleNamespace(_log_to_target=no_space)
    runner.survive_full_disks(supervisor)
    runner.survive_full_disks(supervisor)
    supervisor._log_to_target("logger", 20, "text", more="words")


def test_what_a_supervisor_prints_to_a_full_disk_is_lost_without_an_error() -> None:
    program = f"import sys; sys.path.insert(0, {str(Path(runner.__file__).parent)!r}); import runner\n"
    program += "sys.stdout, sys.stderr = runner.forgiving(1), runner.forgiving(2)\n"
    program += "for _ in range(3): print('x' * 10_000, flush=True); print('y', file=sys.stderr)\n"
    with Path("/dev/full").open("wb") as full:
        code = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full).returncode
    assert code == 0


def test_work_is_taken_again_only_once_the_disk_has_room() -> None:
    disk = ["No space left on device", "No space left on device", ""]
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: "", disk=lambda: disk.pop(0))
    assert gate.closed_because() == "", "a disk that never failed is not tried out"
    gate.start_failed("no luck")
    gate._braked_until = 0.0
    assert "No space left" in gate.closed_because()
    assert "No space left" in gate.closed_because()
    assert gate.closed_because() == ""
    assert gate.closed_because() == ""


def test_the_spool_says_whether_it_has_room(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    assert held.spool.trouble() == ""
    assert list(held.spool.folder.iterdir()) == []
    monkeypatch.setattr("os.fsync", no_space)
    assert held.spool.trouble() == "No space left on device"
    assert list(held.spool.folder.iterdir()) == []


@pytest.fixture
def intake(plane: Plane, held: Held) -> Intake:
    orders = Orders(concurrency=4)
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: "")
    starter = SimpleNamespace(order=lambda job: None)
    return Intake(
        client=plane,  # type: ignore[arg-type]
        spool=held.spool,
        held=held,
        gate=gate,
        orders=orders,
        starter=starter,
        settings=SETTINGS,
    )


def test_what_cannot_be_written_down_is_given_back_at_once(
    intake: Intake, plane: Plane, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = held.spool.add
    homeless = offer()
    monkeypatch.setattr(
        held.spool, "add", lambda offered, **options: (no_space if offered is homeless else add)(offered, **options)
    )
    intake.take([homeless, other := offer()], reserved=2)
    (report,) = plane.said("report")
    assert (report["attempt"], report["state"]) == (1, "not_started")
    assert "No space left" in report["reason"]
    assert [job.id for job in held.all()] == [other["id"]]
    assert "No space left" in intake.gate.closed_because()


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "text",
        {},
        offer(id=7),
        offer(id="../../escape"),
        offer(attempt="many"),
        offer(attempt=float("inf")),
        offer(slots=None),
        offer(slots=float("inf")),
        offer(log_path=["a"]),
        {**offer(), "workload": {1: {2}}},
    ],
)
def test_no_offer_harms_the_others_of_its_answer(intake: Intake, plane: Plane, held: Held, bad: Any) -> None:
    good = [offer(), offer()]
    intake.take([good[0], bad, good[1]], reserved=3)
    assert {job.id for job in held.all()} >= {one["id"] for one in good}
    assert {entry["id"] for entry in plane.said("confirm")[0]} >= {one["id"] for one in good}


def test_a_process_is_known_again_whatever_the_clock_says(add_job: Add) -> None:
    job = add_job()
    started = {"pid": os.getpid(), "started_at": 0.0, "ticks": runner.start_ticks()}
    (job.directory / "started").write_text(json.dumps(started))
    supervisor = job.supervisor(boot_id="boot-1")
    assert supervisor is not None
    assert not processes._is_stranger(supervisor), "as after a clock was set forward by decades"
    assert processes._is_stranger(supervisor._replace(ticks=1))


def test_a_reason_of_any_length_fits_into_a_heartbeat() -> None:
    gate = Gate(runner_ready=lambda: True, execution_api=lambda: "")
    gate.start_failed("a path " * 100_000)
    assert len(gate.closed_because()) == 500
