"""The checks of this machine itself: its settings, its state directory, its disk, and whether an agent runs."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from agent import config, state_dir, sysinfo
from agent.client import Client
from agent.doctor.examination import Examination, Finding, failed, ok, warning
from agent.errors import AgentError, BadStateDir, BadToken, WrongUrl
from agent.spool import PROBE_BYTES, is_nearly_full
from agent.transport import Transport

#: Opens nothing: stands in for a token that cannot be used, so that all else can be looked at.
NO_TOKEN = "ec_none_none"  # noqa: S105


def settings(examination: Examination) -> Iterator[Finding]:
    """Read them as `run` does. Without a token that can be tried, all but the token can still be looked at."""
    flags, environ, home = examination.flags, examination.environ, examination.home
    try:
        found = config.load(flags=flags, environ=environ, home=home)
    except WrongUrl as error:
        yield failed("url", str(error))
        return
    except AgentError as error:
        try:
            found = config.load(flags={**flags, "token": NO_TOKEN}, environ=environ, home=home)
        except AgentError:
            yield failed("token" if isinstance(error, BadToken) else "settings", str(error))
            return
        examination.bad_token = str(error)
    merged, _ = config.gather(flags=flags, environ=environ, home=home)
    examination.token_file = config.path_of(merged, "token_file")
    examination.config = found
    examination.secrets.add(found.token)
    examination.client = Client(
        url=found.url, token=found.token, session=uuid.uuid4(), new_session=Transport.of(found).session
    )
    file = config.settings_file(flags, environ)
    yield ok("settings", f"read{f' from {file}' if file else ''}: {found.url}, {found.concurrency} slots")


def state_directory(examination: Examination) -> Iterator[Finding]:
    folder, name = examination.settings.state_dir, "state directory"
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            yield failed(name, f"{folder} cannot be made in {parent} by user {sysinfo.user()}: choose a --state-dir")
        else:
            yield ok(name, f"{folder} is not there yet; the agent makes it")
        return
    if not folder.is_dir():
        yield failed(name, f"{folder} is not a directory: choose another --state-dir")
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b" " * PROBE_BYTES)
    except OSError as error:
        yield failed(
            name,
            f"{folder} cannot be written by user {sysinfo.user()} ({error.strerror}): give this command as the user "
            "that the agent runs as, or choose another --state-dir",
        )
        return
    facts = folder.stat()
    if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
        yield warning(name, f"{folder} belongs to another user (uid {facts.st_uid}): give this command as that user")
    elif os.name == "posix" and facts.st_mode & 0o006:
        yield warning(name, f"{folder} can be read by others: chmod go-rw {folder}")
    else:
        yield ok(name, str(folder))


def running_agent(examination: Examination) -> Iterator[Finding]:
    try:
        runs = state_dir.in_use(examination.settings.state_dir)
    except BadStateDir as error:
        yield failed("agent", str(error))
    else:
        yield ok("agent", "one runs here, and goes on undisturbed" if runs else "none runs here now")


def disk(examination: Examination) -> Iterator[Finding]:
    folder = examination.settings.state_dir
    usage = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists()))
    left = f"{usage.free / sysinfo.GIGABYTE:.1f} GB of {usage.total / sysinfo.GIGABYTE:.1f} GB are free"
    least = examination.settings.min_free_disk
    if usage.free < PROBE_BYTES:
        yield failed("disk", f"{left} at {folder}: make room, no job can be written down")
    elif least is not None and not least.is_left(free=usage.free, total=usage.total):
        yield warning("disk", f"{left} at {folder}, less than min_free_disk: the machine rests until there is more")
    elif is_nearly_full(free=usage.free, total=usage.total):
        yield warning("disk", f"only {left} at {folder}: make room, logs that wait for the control plane need it")
    else:
        yield ok("disk", left)
