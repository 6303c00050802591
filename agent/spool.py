"""The spool: which jobs lie on this machine's disk, how one comes there whole or not at all, and if there is room."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from agent.accounts import Account
from agent.files import sync, write
from agent.jobs import PLACES, PLACES_MODE, Job, read_job
from agent.safe_files import remove

log = logging.getLogger("agent.jobs")

#: Set aside on the disk for the result of each job: more than any result has.
RESULT_BYTES = 8 * 1024
#: A disk with less than this takes no job: workloads are a few KB, and the job's log needs room too.
PROBE_BYTES = 64 * 1024
#: A disk with less free than both, in bytes and as a share of it, is nearly full.
ROOM_BYTES = 1 << 30
ROOM_SHARE = 0.05


class Spool:
    """The directory of all held jobs. `account_of` names the user that tasks of a queue run as."""

    def __init__(self, *, state_dir: Path, account_of: Callable[[str], Account | None] = lambda queue: None) -> None:
        self.folder = state_dir / "jobs"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.places = state_dir / PLACES
        self._account_of = account_of

    def add(self, offer: dict[str, Any], *, settings: dict[str, Any]) -> Job:
        """Write an offered job down, whole or not at all; the same offer again returns what is there.

        Raises OSError when the disk does not take it: then the job must not be confirmed. An offer that makes no sense
        raises KeyError, TypeError or ValueError.
        """
        directory = self.folder / f"{UUID(offer['id'])}.{int(offer['attempt'])}"
        if not directory.exists():
            facts = {key: offer[key] for key in ("id", "attempt", "kind", "queue", "slots", "log_path")} | settings
            files = {
                "exit.reserved": b" " * RESULT_BYTES,
                "workload.json": json.dumps(offer["workload"]).encode(),
                "job.json": json.dumps(facts).encode(),
            }
            account = self._account_of(str(offer["queue"]))
            if account is not None:
                self._make_place(directory.name, files, account=account)
                files = {"job.json": json.dumps({**facts, "uid": account.uid}).encode()}
            make_folder(directory, files)
        job = read_job(directory)
        if job is None:
            raise OSError(f"{directory} cannot be read back")
        return job

    def _make_place(self, name: str, files: dict[str, bytes], *, account: Account) -> None:
        """What another user's task needs of its job, in a directory of that user."""
        self.places.mkdir(exist_ok=True)
        self.places.chmod(PLACES_MODE)
        remove(self.places / name)  # of a job that never came to be
        make_folder(self.places / name, files, account=account)

    def trouble(self) -> str:
        """Why no job can be written down now; empty when one can. Writes as much as a job needs, and removes it."""
        probe = self.folder / ".probe"
        try:
            write(probe, b" " * PROBE_BYTES)
        except OSError as error:
            return str(error.strerror or error)
        finally:
            for leftover in (probe, probe.with_name(".probe.tmp")):
                with contextlib.suppress(OSError):
                    leftover.unlink(missing_ok=True)
        return ""

    def nearly_full(self) -> bool:
        """Whether what is left of the disk is what running tasks need."""
        usage = shutil.disk_usage(self.folder)
        return is_nearly_full(free=usage.free, total=usage.total)

    def load(self) -> Iterator[Job]:
        """All jobs that an earlier agent process held. What is not whole was never confirmed, and is removed."""
        for place in self.places.iterdir() if self.places.is_dir() else ():
            if not (self.folder / place.name).is_dir():
                remove(place)
        for directory in sorted(self.folder.iterdir()):
            try:
                job = None if directory.name.startswith(".") else read_job(directory)
            except Exception as error:  # whatever a task has made of it, the agent starts
                log.error("%s cannot be read and stays as it is: %s", directory, error)
                continue
            if job is None:
                remove(directory)
            else:
                yield job

    def forget(self, job: Job) -> None:
        """Remove the job's directory, all at once for whoever looks: without its `started` it could start again."""
        removed = job.directory.with_name(f".{job.name}.removed")
        try:
            job.directory.rename(removed)
        except OSError:
            removed = job.directory
        remove(removed)
        if job.uid is not None:
            remove(job.place)


def is_nearly_full(*, free: int, total: int) -> bool:
    """Whether so little of a disk is left that logs which wait for the control plane have to go."""
    return free < min(ROOM_BYTES, total * ROOM_SHARE)


def make_folder(folder: Path, files: dict[str, bytes], *, account: Account | None = None) -> None:
    """Make a private folder with these files, whole or not at all; with `account`, it belongs to that user then."""
    temporary = folder.with_name(f".{folder.name}")
    remove(temporary)
    temporary.mkdir(mode=0o700)
    try:
        for name, content in files.items():
            write(temporary / name, content, durable=name != "exit.reserved")
        if account is not None:
            for path in (*(temporary / name for name in files), temporary):
                os.chown(path, account.uid, account.gid)
        temporary.rename(folder)
        sync(folder.parent)
    except BaseException:
        remove(temporary)
        raise
