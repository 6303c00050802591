from __future__ import annotations

from collections.abc import Callable

import pytest

from agent import log_shipper
from agent.client import NOT_OURS, ApiError
from agent.held import Held
from agent.jobs import Job, read_job
from agent.log_shipper import SMALLEST_CHUNK, LogShipper
from tests.unit.agent.conftest import Plane, refusal, write_log

Add = Callable[..., Job]


@pytest.fixture
def shipper(plane: Plane, held: Held) -> LogShipper:
    return LogShipper(client=plane, held=held, chunk_bytes=4096)  # type: ignore[arg-type]


def run(shipper: LogShipper, *, turns: int = 50) -> None:
    for _ in range(turns):
        if shipper.step() > 0:
            return


def end(held: Held, job: Job, state: str = "success") -> None:
    held.ended(job, {"state": state})


def test_bytes_arrive_as_they_are(shipper: LogShipper, plane: Plane, held: Held, add_job: Add) -> None:
    job = add_job()
    data = bytes(range(256)) * 100 + "日本".encode()[:-1]
    write_log(job, data)
    end(held, job)
    run(shipper)
    assert plane.log == data
    assert all(size <= 4096 for _, size in plane.said("log"))
    assert job.log_done


def test_the_log_of_a_job_that_was_given_up_is_shipped_to_its_end(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add
) -> None:
    job = add_job()
    job.gone = True
    write_log(job, b"stopping; ")
    run(shipper)
    write_log(job, b"stopped")
    end(held, job, "failed")
    run(shipper)
    assert plane.log == b"stopping; stopped"
    assert job.log_done


def test_only_new_bytes_of_a_running_job_are_shipped(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"one")
    run(shipper)
    write_log(job, b"two")
    run(shipper)
    assert plane.said("log") == [(0, 3), (3, 3)]
    assert not job.log_done


def test_the_offset_moves_only_when_the_answer_came(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"abc")
    plane.answers["log"] = [refusal(None)]
    shipper.step()
    assert job.shipped == 0
    job.ship_after = 0.0
    run(shipper)
    assert plane.said("log") == [(0, 3), (0, 3)]


def test_a_second_silence_in_a_row_ends_the_turn(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    for _ in range(4):
        write_log(add_job(), b"abc")
    plane.answers["log"] = [refusal(None)] * 4
    with pytest.raises(ApiError):
        shipper.step()
    assert len(plane.said("log")) == 2


def test_a_restarted_agent_goes_on_where_the_control_plane_was(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"abc")
    run(shipper)
    again = read_job(job.directory)
    assert again is not None
    assert again.shipped == 3


@pytest.mark.parametrize("size", [0, 2, 5])
def test_a_wrong_offset_is_corrected(shipper: LogShipper, plane: Plane, held: Held, add_job: Add, size: int) -> None:
    job = add_job()
    write_log(job, b"abcdef")
    plane.log = b"abcdef"[:size]
    plane.answers["log"] = [refusal(409, "wrong_offset", size=size)]
    end(held, job)
    run(shipper)
    assert plane.log == b"abcdef"


def test_a_control_plane_that_has_more_than_the_file_stops_the_log(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add
) -> None:
    job = add_job()
    write_log(job, b"abc")
    plane.answers["log"] = [refusal(409, "wrong_offset", size=900)]
    run(shipper)
    assert job.log_done
    assert job in held.all()


def test_a_chunk_that_is_too_large_is_halved_for_all(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add
) -> None:
    job = add_job()
    write_log(job, b"x" * 5000)
    plane.answers["log"] = [refusal(413, "too_large"), refusal(413), None, None]
    end(held, job)
    run(shipper)
    assert plane.log == b"x" * 5000
    assert shipper.chunk_bytes == 1024
    assert [size for _, size in plane.said("log")][:3] == [4096, 2048, 1024]


def test_the_smallest_chunk_refused_pauses_the_log(shipper: LogShipper, plane: Plane, held: Held, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"x" * 5000)
    plane.answers["log"] = [refusal(413)] * 3
    run(shipper)
    assert not job.log_done
    assert job.ship_after > 0
    assert shipper.chunk_bytes == SMALLEST_CHUNK
    job.ship_after = 0.0
    end(held, job)
    run(shipper)
    assert plane.log == b"x" * 5000


def test_a_larger_chunk_is_tried_again_after_some_time(
    shipper: LogShipper, plane: Plane, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job()
    write_log(job, b"x" * 20_000)
    plane.answers["log"] = [refusal(413), refusal(413), None]
    monkeypatch.setattr(log_shipper, "LARGER_SECONDS", 0.0)
    run(shipper)
    assert [size for _, size in plane.said("log")][:5] == [4096, 2048, 1024, 2048, 4096]


def test_many_wrong_offsets_in_a_long_life_do_not_end_a_log(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add
) -> None:
    job = add_job()
    for number in range(30):
        write_log(job, b"ab")
        plane.answers["log"] = [refusal(409, "wrong_offset", size=number * 2)]
        run(shipper)
    assert plane.log == b"ab" * 30
    assert job.ship_after == 0.0


def test_wrong_offsets_in_a_row_pause_a_log(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"ab")
    plane.answers["log"] = [refusal(409, "wrong_offset", size=0)] * 50
    run(shipper)
    assert len(plane.said("log")) == log_shipper.MOST_JUMPS
    assert job.ship_after > 0
    assert not job.log_done


def test_why_a_log_does_not_get_through_is_kept_until_it_does(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add
) -> None:
    stuck, other = add_job(), add_job()
    write_log(stuck, b"abc")
    write_log(other, b"abc")
    plane.answers["log"] = [refusal(503), refusal(503)]
    run(shipper)
    assert [said["trouble"] for said in held.log_troubles()] == ["answers 503 ", "answers 503 "]
    held.log_troubles_told(held.log_troubles())
    assert held.log_troubles() == []
    stuck.ship_after = 0.0
    plane.log = b""
    run(shipper)
    assert {said["trouble"] for said in held.log_troubles()} == {""}
    assert other.shipped == 3, "what held one up may have held up the other"


def test_a_log_that_was_told_to_wait_waits_whatever_becomes_of_others(
    shipper: LogShipper, plane: Plane, add_job: Add
) -> None:
    stuck, told = add_job(), add_job()
    write_log(stuck, b"abc")
    write_log(told, b"abc")
    plane.answers["log"] = [refusal(503), ApiError("busy", status=429, retry_after=60.0)]
    run(shipper)
    stuck.ship_after = 0.0
    run(shipper)
    assert (stuck.shipped, told.shipped) == (3, 0)


def test_it_says_once_a_minute_that_logs_do_not_get_through(
    shipper: LogShipper, plane: Plane, add_job: Add, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [add_job() for _ in range(20)]
    for job in jobs:
        write_log(job, b"abc")
    plane.answers["log"] = [refusal(403)] * 200
    for _ in range(10):
        for job in jobs:
            job.ship_after = 0.0
        shipper.step()
    assert [record.message for record in caplog.records if record.name == "agent.logs"] == [
        "logs of 20 jobs wait on disk and do not get through: answers 403 "
    ]


def test_a_nearly_full_disk_takes_the_oldest_log_that_does_not_get_through(
    shipper: LogShipper, plane: Plane, held: Held, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, older, newer = add_job(), add_job(), add_job()
    for job in (running, older, newer):
        write_log(job, b"abc")
    plane.answers["log"] = [refusal(503)] * 3
    for job in (older, newer):
        end(held, job)
        held.told(job)
    run(shipper)
    monkeypatch.setattr(log_shipper, "ROOM_SECONDS", 0.0)
    shipper._room_at = 0.0
    monkeypatch.setattr(held.spool, "nearly_full", lambda: older.log_file.exists())
    run(shipper)
    assert [job.log_file.exists() for job in (running, older, newer)] == [True, False, True]
    assert older in held.all(), "that it was deleted is still to be told"
    held.log_troubles_told(held.log_troubles())
    assert held.all() == [running, newer]


@pytest.mark.parametrize(("status", "code"), [(413, "log_full"), (409, "stale_attempt")])
def test_what_nobody_wants_is_shipped_no_further(
    shipper: LogShipper, plane: Plane, add_job: Add, status: int, code: str
) -> None:
    job = add_job()
    write_log(job, b"abc")
    plane.answers["log"] = [refusal(status, code)]
    run(shipper)
    assert job.log_done
    assert len(plane.said("log")) == 1


@pytest.mark.parametrize("code", [NOT_OURS, "not_found"])
def test_an_address_that_is_not_there_now_ends_no_log(
    shipper: LogShipper, plane: Plane, add_job: Add, code: str
) -> None:
    job = add_job()
    write_log(job, b"abc")
    plane.answers["log"] = [refusal(404, code)]
    run(shipper)
    assert not job.log_done
    job.ship_after = 0.0
    run(shipper)
    assert plane.log == b"abc"


def test_one_bad_log_does_not_hold_up_another(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    bad, good = add_job(), add_job()
    for job in (bad, good):
        write_log(job, b"abc")
    plane.answers["log"] = [refusal(500)]
    run(shipper)
    assert good.shipped == 3
    assert bad.shipped == 0
    assert bad.ship_after > 0


def test_a_big_log_does_not_hold_up_another(shipper: LogShipper, plane: Plane, add_job: Add) -> None:
    big, small = add_job(), add_job()
    write_log(big, b"x" * 40_000)
    write_log(small, b"y")
    shipper.step()
    assert small.shipped == 1
    assert big.shipped < 40_000


def test_a_job_that_was_never_started_has_no_log(shipper: LogShipper, plane: Plane, held: Held, add_job: Add) -> None:
    job = add_job()
    write_log(job, b"abc")
    end(held, job, "not_started")
    run(shipper)
    assert plane.said("log") == []
    assert job.log_done
