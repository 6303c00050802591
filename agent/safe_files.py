"""Files of a job that its task could write too: none is opened through a link, and none that is somebody else's.

An agent that is root would otherwise read out, or overwrite, whatever a task's user lets a link point to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path, PurePath
from uuid import uuid4

#: A link is refused, and a FIFO does not wait for its other end. Windows has neither.
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_DIRECTORY", 0)
_BY_HANDLE = os.open in os.supports_dir_fd
#: Of a name behind which there is no file of its job, and never will be by waiting.
NEVER_A_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EPERM, errno.EFBIG, errno.EMLINK}
)
#: Each look removes what it finds; more than one is needed only where somebody still writes.
_LOOKS = 3


def relative_parts(name: str) -> tuple[str, ...]:
    """The path below a folder that it must not leave. Raises ValueError when it does, or names no file."""
    parts = PurePath(os.path.normpath(name)).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts or "\0" in name or parts == (".",):
        raise ValueError(f"the path {name!r} leaves its directory")
    return parts


def open_inside(folder: Path, name: str, flags: int, *, uid: int | None) -> int:
    """Open the regular file below the folder, whose own path must be nobody else's to change.

    With `uid`, the file must belong to that user. Raises OSError when there is none, ValueError as `relative_parts`.
    """
    *between, last = relative_parts(name)
    above = _open_folder(folder, between)
    try:
        where = {"dir_fd": above} if above is not None else {}
        path = last if above is not None else folder.joinpath(*between, last)
        handle = os.open(path, flags | _CAREFULLY, 0o600, **where)
    finally:
        if above is not None:
            os.close(above)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or (uid is not None and found.st_uid != uid):
        os.close(handle)
        raise PermissionError(errno.EPERM, "not a file of its task's user", str(folder / name))
    return handle


def read_inside(folder: Path, name: str, *, most_bytes: int, uid: int | None) -> bytes:
    """The file's content. Raises OSError also when it is larger."""
    with os.fdopen(open_inside(folder, name, os.O_RDONLY, uid=uid), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, "larger than it can be", str(folder / name))
    return content


def unlink_inside(folder: Path, name: str) -> None:
    """Remove the file, or the link in its place. Raises OSError, ValueError."""
    *between, last = relative_parts(name)
    above = _open_folder(folder, between)
    if above is None:
        folder.joinpath(*between, last).unlink()
        return
    try:
        os.unlink(last, dir_fd=above)
    finally:
        os.close(above)


def remove(folder: Path) -> None:
    """Remove the folder with all that is in it, as far as that can be done. Never raises, and follows no link.

    It may be nested deeper than Python recurses, a path may be long or descriptors are free.
    """
    with contextlib.suppress(OSError, RecursionError):
        if not _BY_HANDLE:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for _ in range(_LOOKS):
            handle = os.open(folder, _FOLDER)
            try:
                _empty(handle)
            finally:
                os.close(handle)
            with contextlib.suppress(OSError):
                folder.rmdir()
                return


def _empty(top: int) -> None:
    """Remove what is in an open folder. What lies deeper is first moved up into it: so two handles are enough."""
    folders = _remove_files(top)
    while folders:
        name = folders.pop()
        with contextlib.suppress(OSError):
            handle = os.open(name, _FOLDER, dir_fd=top)
            try:
                for inner in _remove_files(handle):
                    moved = f".{uuid4().hex}"
                    with contextlib.suppress(OSError):
                        os.rename(inner, moved, src_dir_fd=handle, dst_dir_fd=top)
                        folders.append(moved)
            finally:
                os.close(handle)
            os.rmdir(name, dir_fd=top)


def _remove_files(folder: int) -> list[str]:
    """Remove all but the folders from an open folder, and return the names of those."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def is_there(path: Path) -> bool:
    """Whether the name exists, whatever it is. Raises OSError when that cannot be told now."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _open_folder(folder: Path, between: list[str]) -> int | None:
    """A handle of the folder that lies so far below; None where files cannot be opened from one."""
    if not _BY_HANDLE:
        return None
    handle = os.open(folder, _FOLDER)
    for part in between:
        above = handle
        try:
            handle = os.open(part, _FOLDER, dir_fd=above)
        finally:
            os.close(above)
    return handle
