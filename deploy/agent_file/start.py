"""The start of edge-agent.pyz: unpacks what it holds, once for each user and version, and goes on as the agent.

Unpacked, because binary modules are not loaded from a zip file, and because Python keeps what it has compiled beside
its source. The interpreter stays the one that was named: unless told otherwise, it is the tasks' own too.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

OLDEST = (3, 11)
#: Modules for one kind of machine are in a folder of its name below this one.
MACHINES = "machines"


def main() -> None:
    if sys.version_info[:2] < OLDEST:
        sys.exit("edge-agent: needs Python 3.11 or newer, not {}".format(sys.version.split()[0]))  # noqa: UP032
    archive = Path(sys.path[0])
    folder = unpacked(archive)
    machine = folder / MACHINES / f"{sys.platform}-{platform.machine().lower()}"
    sys.path[:1] = [str(folder), str(machine)]
    try:
        import psutil  # noqa: F401
    except ImportError as error:
        kinds = ", ".join(sorted(path.name for path in (folder / MACHINES).iterdir()))
        sys.exit(
            f"edge-agent: {archive.name} has psutil for {kinds}, and this is {machine.name} ({error}): "
            f"install it with `{sys.executable} -m pip install psutil`"
        )
    from agent.cli import main as agent

    sys.exit(agent())


def unpacked(archive: Path) -> Path:
    """The folder with the file's content: in this user's cache, or where that cannot be used for this process alone."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    with zipfile.ZipFile(archive) as content:
        try:
            cache = cache_folder()
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = cache / digest[:16]
            if is_ours(cache) and (is_whole(folder, content) or unpack(content, cache=cache, folder=folder)):
                return folder
        except (OSError, RuntimeError):  # no home, or no room
            pass
        alone = tempfile.mkdtemp(prefix="edge-agent-")
        atexit.register(shutil.rmtree, alone, ignore_errors=True)
        content.extractall(alone)
        return Path(alone)


def cache_folder() -> Path:
    """Where the file is unpacked. Raises RuntimeError for a user without a home."""
    given = os.environ.get("CACHE_DIRECTORY", "").split(":")[0] or os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "edge-agent"
    if hasattr(os, "getuid") and os.getuid() == 0:  # whose home may be another user's, after `sudo`
        return Path("/var/cache/edge-agent")
    return Path.home() / ".cache" / "edge-agent"


def is_ours(cache: Path) -> bool:
    """Whether nobody else can have put anything there that would run as this user."""
    if not hasattr(os, "getuid"):
        return True
    facts = cache.lstat()
    return facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def is_whole(folder: Path, content: zipfile.ZipFile) -> bool:
    """Whether every file is there in its full size: a power cut may have emptied some, a cleaner removed others."""
    try:
        return all(
            (folder / each.filename).stat().st_size == each.file_size
            for each in content.infolist()
            if not each.is_dir()
        )
    except OSError:
        return False


def unpack(content: zipfile.ZipFile, *, cache: Path, folder: Path) -> bool:
    """Put the content there in one step; another process may do the same at this moment. False when it is not whole."""
    made = Path(tempfile.mkdtemp(dir=str(cache)))
    try:
        content.extractall(made)
        if folder.exists():
            folder.rename(made.with_name(made.name + ".removed"))
        made.rename(folder)
    except OSError:
        pass  # the other process was faster
    finally:
        shutil.rmtree(made, ignore_errors=True)
        shutil.rmtree(made.with_name(made.name + ".removed"), ignore_errors=True)
    return is_whole(folder, content)


if __name__ == "__main__":
    main()
