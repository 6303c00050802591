"""What the spool keeps, and what a restarted agent concludes from it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import jobs, state_dir
from agent.errors import BadStateDir
from agent.held import Held
from agent.jobs import Found, Job
from agent.locks import is_locked
from agent.spool import Spool
from tests.unit.agent.conftest import write_log

Add = Callable[..., Job]


@pytest.mark.parametrize(
    ("files", "locked", "found"),
    [
        ([], False, Found.UNCONFIRMED),
        (["confirmed"], False, Found.WAITING),
        (["confirmed"], True, Found.RUNNING),
        (["confirmed", "started"], True, Found.RUNNING),
        (["confirmed", "started"], False, Found.DIED),
        (["confirmed", "started", "exit.json"], False, Found.ENDED),
        (["confirmed", "started", "exit.json"], True, Found.RUNNING),
        (["confirmed", "exit.json"], False, Found.ENDED),
        (["started"], False, Found.DIED),
    ],
)
def test_the_disk_tells_what_became_of_a_job(
    add_job: Add, monkeypatch: pytest.MonkeyPatch, files: list[str], locked: bool, found: Found
) -> None:
    directory = add_job().directory
    for name in files:
        (directory / name).write_text("{}")
    monkeypatch.setattr(jobs, "is_locked", lambda path, uid: locked)
    job = jobs.read_job(directory)
    assert job is not None
    assert job.look() is found


def test_a_start_between_two_looks_is_no_death(add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job()
    (job.directory / "started").write_text("{}")
    looks = iter([False, True])
    monkeypatch.setattr(jobs, "is_locked", lambda path, uid: next(looks))
    assert job.look() is Found.RUNNING


def test_an_end_between_two_looks_is_no_death(add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job()
    (job.directory / "started").write_text("{}")
    looks = []

    def look(path: Path, *, uid: int | None) -> bool:
        looks.append(path)
        if len(looks) == 2:
            (job.directory / "exit.json").write_text("{}")
        return False

    monkeypatch.setattr(jobs, "is_locked", look)
    assert job.look() is Found.ENDED


def test_a_job_is_read_back_as_it_was(add_job: Add, held: Held) -> None:
    job = add_job(slots=3)
    job.mark_confirmed()
    job.mark_shipped(77, done=False)
    job.mark_reported()
    (again,) = held.spool.load()
    assert (again.key, again.slots, again.log_path, again.boot_id) == (job.key, 3, job.log_path, "boot-1")
    assert (again.confirmed, again.reported, again.shipped, again.log_done) == (True, True, 77, False)


def test_the_same_offer_twice_is_one_job(add_job: Add, held: Held) -> None:
    job = add_job()
    job.mark_confirmed()
    again = add_job(id=job.id, workload={"token": "another"})
    assert again.confirmed
    assert json.loads((job.directory / "workload.json").read_text()) == {"token": "secret"}
    assert len(held.all()) == 1


def test_what_was_half_written_is_removed(held: Held) -> None:
    for name in (".11.1", "22.1"):
        (held.spool.folder / name).mkdir()
    (held.spool.folder / "22.1" / "workload.json").write_text("{}")
    assert list(held.spool.load()) == []
    assert list(held.spool.folder.iterdir()) == []


@pytest.mark.parametrize(
    "facts",
    [b"[" * 100_000, b"\xff", b'{"slots": Infinity}', b"x" * (2 << 20)],
    ids=["nested", "no text", "endless", "large"],
)
def test_the_agent_starts_whatever_lies_in_its_spool(add_job: Add, held: Held, facts: bytes) -> None:
    spoilt, job = add_job(), add_job()
    if facts.startswith(b"{"):
        facts = json.dumps(json.loads((spoilt.directory / "job.json").read_text()) | json.loads(facts)).encode()
    (spoilt.directory / "job.json").write_bytes(facts)
    (held.spool.folder / "a file").touch()
    os.mkfifo(held.spool.folder / "a pipe")
    (held.spool.folder / "of nobody").mkdir()
    os.mkfifo(held.spool.folder / "of nobody/job.json")
    assert [found.key for found in held.spool.load()] == [job.key]


def test_a_disk_that_is_full_keeps_no_half_job(add_job: Add, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, **more: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("agent.spool.write", full)
    with pytest.raises(OSError, match="No space"):
        add_job()
    assert list(held.spool.folder.iterdir()) == []


@pytest.mark.parametrize("broken", [{"id": "../../escape"}, {"id": ""}, {"attempt": "x"}, {"slots": None}])
def test_an_offer_that_makes_no_sense_is_refused(add_job: Add, tmp_path: Path, broken: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError, OSError)):
        add_job(**broken)
    assert not list(tmp_path.rglob("escape*"))


def test_files_are_for_their_owner_only(add_job: Add) -> None:
    directory = add_job().directory
    assert oct(directory.stat().st_mode & 0o777) == "0o700"
    assert {oct(path.stat().st_mode & 0o777) for path in directory.iterdir()} == {"0o600"}


def test_a_supervisor_of_an_earlier_boot_is_nobody(add_job: Add) -> None:
    job = add_job()
    (job.directory / "started").write_text('{"pid": 4242, "started_at": 1.0}')
    assert job.supervisor(boot_id="boot-2") is None
    supervisor = job.supervisor(boot_id="boot-1")
    assert supervisor is not None
    assert supervisor.pid == 4242


def test_slots_are_counted_once_for_jobs_and_claims(add_job: Add, held: Held) -> None:
    job = add_job(slots=2)
    assert held.free_slots() == 2
    assert held.reserve() == 2
    assert held.reserve() == 0
    held.unreserve(2)
    held.ended(job, {"state": "success"})
    assert held.free_slots() == 2
    held.told(job)
    assert held.free_slots() == 4


def test_a_job_is_held_until_its_end_and_its_log_are_told(add_job: Add, held: Held) -> None:
    job = add_job()
    held.ended(job, {"state": "success"})
    held.told(job)
    assert held.unreported() == []
    assert job.directory.exists()
    job.mark_shipped(0, done=True)
    held.settle(job)
    assert not job.directory.exists()
    assert held.all() == []


def test_an_agent_killed_while_it_forgets_a_job_leaves_nothing_to_start(
    add_job: Add, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job()
    job.mark_confirmed()
    with monkeypatch.context() as patch:
        patch.setattr("agent.spool.remove", lambda path: (path / "started").unlink(missing_ok=True))
        held.forget(job)
    assert not job.directory.exists()
    assert list(held.spool.load()) == []
    assert list(held.spool.folder.iterdir()) == []


def nest(folder: Path, *, depth: int) -> None:
    """Folders in folders, deeper than any path can name."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=handle)
        above, handle = handle, os.open("deeper", os.O_RDONLY, dir_fd=handle)
        os.close(above)
    os.close(os.open("a file", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
    os.close(handle)


def test_folders_that_a_task_has_nested_keep_no_agent_from_forgetting_its_job_or_starting(
    add_job: Add, held: Held
) -> None:
    ended, job = add_job(), add_job()
    orphan = held.spool.folder / f".{ended.name}"
    orphan.mkdir()
    for folder in (ended.directory, orphan):
        nest(folder, depth=3000)
    held.forget(ended)
    assert [found.key for found in held.spool.load()] == [job.key]
    assert list(held.spool.folder.iterdir()) == [job.directory]


@pytest.mark.parametrize("shipped", ['{"size": Infinity}', "[]", "x", '{"size": "x"}', '{"size": null}'])
def test_a_log_position_that_cannot_be_read_begins_anew(add_job: Add, held: Held, shipped: str) -> None:
    (add_job().directory / "shipped").write_text(shipped)
    (again,) = held.spool.load()
    assert (again.shipped, again.log_done) == (0, False)


def test_a_file_system_that_has_no_locks_is_not_one_that_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "lock").touch()
    monkeypatch.setattr("agent.locks.fcntl.lockf", no_locks)
    with pytest.raises(OSError, match="No locks"):
        is_locked(tmp_path / "lock")
    with pytest.raises(BadStateDir, match="No locks"):
        state_dir.take(tmp_path)


def test_two_spools_do_not_share(tmp_path: Path) -> None:
    one, two = Spool(state_dir=tmp_path / "a"), Spool(state_dir=tmp_path / "b")
    assert one.folder != two.folder


def test_the_digest_of_a_log_is_made_once_until_the_log_changes(add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job()
    write_log(job, b"one")
    made: list[object] = []
    sha256 = jobs.hashlib.sha256
    monkeypatch.setattr(jobs.hashlib, "sha256", lambda: Counting(sha256(), made))
    first = job.log_digest(most_bytes=6)
    assert job.log_digest(most_bytes=6) == first
    assert len(made) == 1
    write_log(job, b"two")
    assert job.log_digest(most_bytes=6) == (6, sha256(b"onetwo").hexdigest())


def test_a_log_of_any_size_holds_nobody_up(add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job()
    write_log(job, b"one")
    made: list[object] = []
    sha256 = jobs.hashlib.sha256
    monkeypatch.setattr(jobs.hashlib, "sha256", lambda: Counting(sha256(), made))
    os.truncate(job.log_file, 1 << 40)
    assert job.log_digest(most_bytes=1 << 20) == (1 << 40, "")
    assert made == []


def test_a_log_that_grows_while_it_is_read_holds_nobody_up(add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job()
    write_log(job, b"x" * 10)
    size = os.stat_result((0o100600, 1, 1, 1, os.getuid(), 0, 3, 0, 0, 0))
    monkeypatch.setattr(jobs.os, "fstat", lambda handle: size)
    assert job.log_digest(most_bytes=5) == (10, "")


class Counting:
    """A digest that notes what it reads."""

    def __init__(self, digest: Any, made: list[object]) -> None:
        self.digest, self.made = digest, made

    def update(self, block: bytes) -> None:
        self.made.append(len(block))
        self.digest.update(block)

    def hexdigest(self) -> Any:
        return self.digest.hexdigest()


@pytest.mark.parametrize("note", [lambda job: job.mark_reported(), lambda job: job.mark_shipped(3, done=True)])
def test_nobody_may_remove_a_directory_that_is_still_written_to(
    add_job: Add, monkeypatch: pytest.MonkeyPatch, note: Callable[[Job], None]
) -> None:
    job = add_job()
    done_with: list[bool] = []
    monkeypatch.setattr("agent.jobs.write", lambda *args, **options: done_with.append(job.reported or job.log_done))
    note(job)
    assert done_with == [False]
    assert job.reported or job.log_done
