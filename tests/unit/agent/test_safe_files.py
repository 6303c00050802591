"""What is opened of a job's files, and what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.safe_files import open_inside, read_inside, relative_parts, remove, unlink_inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job/log").mkdir(parents=True)
    (tmp_path / "job/log/task.log").write_text("of the task")
    (tmp_path / "secret").write_text("of the agent")
    return tmp_path / "job"


def read(folder: Path, name: str, *, uid: int | None = None) -> bytes:
    return read_inside(folder, name, most_bytes=100, uid=uid)


def test_a_file_is_read_by_its_path(folder: Path) -> None:
    assert read(folder, "log/task.log") == read(folder, "log/x/../task.log") == b"of the task"
    assert read(folder, "log/task.log", uid=os.getuid()) == b"of the task"


@pytest.mark.parametrize("name", ["../secret", "log/../../secret", "/etc/passwd", "", ".", "log/..", "a\0b"])
def test_a_path_that_leaves_its_folder_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves"):
        read(folder, name)
    with pytest.raises(ValueError, match="leaves"):
        relative_parts(name)


def test_a_link_is_not_followed_at_any_part_of_the_path(folder: Path) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "aside").symlink_to(folder.parent)
    for name in ("link", "aside/secret"):
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            read(folder, name)
        with pytest.raises(OSError, match=r"Too many levels|Not a directory"):
            open_inside(folder, name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, uid=None)
    unlink_inside(folder, "link")
    assert not (folder / "link").is_symlink()
    with pytest.raises(OSError, match="Not a directory"):
        unlink_inside(folder, "aside/secret")
    assert (folder.parent / "secret").read_text() == "of the agent"


def test_only_a_file_is_one_and_nobody_is_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    for name in ("pipe", "log"):
        with pytest.raises(OSError, match="not a file"):
            read(folder, name)


def test_a_second_name_of_somebody_elses_file_is_not_the_tasks(folder: Path) -> None:
    """Where the system lets users link to files that they cannot read."""
    (folder / "linked").hardlink_to(folder.parent / "secret")
    with pytest.raises(PermissionError, match="not a file of its task's user"):
        read(folder, "linked", uid=os.getuid() + 1)


def test_what_is_too_large_is_not_read(folder: Path) -> None:
    (folder / "large").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="larger"):
        read(folder, "large")


def test_a_folder_is_removed_with_all_that_is_in_it_and_nothing_that_its_links_lead_to(folder: Path) -> None:
    outside = folder.parent / "kept"
    outside.mkdir()
    (outside / "file").touch()
    (folder / "log/aside").symlink_to(outside)
    (folder / "secret").symlink_to(folder.parent / "secret")
    (folder / "secret too").hardlink_to(folder.parent / "secret")
    for part in ("a/b/c", "a/b/d", "a/e"):
        (folder / part).mkdir(parents=True)
        (folder / part / "file").touch()
    os.mkfifo(folder / "a/pipe")
    remove(folder)
    assert sorted(path.name for path in folder.parent.rglob("*")) == ["file", "kept", "secret"]
    assert (folder.parent / "secret").read_text() == "of the agent"


def test_what_cannot_be_removed_is_left_without_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove(folder / "never there")
    remove(folder / "log/task.log")
    link = folder.parent / "link"
    link.symlink_to(folder)
    remove(link)
    assert (folder / "log/task.log").read_text() == "of the task"

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("immutable")

    with monkeypatch.context() as patch:
        patch.setattr("agent.safe_files.os.unlink", refuse)
        remove(folder)
    assert (folder / "log/task.log").exists() or list(folder.rglob("task.log"))
