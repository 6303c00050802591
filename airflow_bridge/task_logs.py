"""Task logs in Airflow's UI, read from EdgeControl's tables: running and finished tasks alike, on any api-server.

A log that is not there, since another executor ran the task or its job was purged, is read from the storage in a cloud
that `[logging] remote_logging` configures; the same lines never come from both. Nothing is raised into the UI: when one
of the two is away, a line says so. Logs are written by the agents; only the triggerer's part of a deferred task's log
is stored from here.

Airflow imports this module while it is being imported itself, so what imports Airflow is imported on first use.
"""

from __future__ import annotations

import functools
import logging
import re
import shutil
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from airflow_bridge import cloud_logs
from airflow_bridge.database import StoreError
from airflow_bridge.log_lines import split_lines
from airflow_bridge.states import FINAL
from airflow_bridge.store import LogPart, Store

log = logging.getLogger(__name__)

#: Bytes read in one statement, and bytes of one stored chunk.
PAGE_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024
#: Of one process; readers beyond that wait for each other.
CONNECTIONS = 4
#: Files of the triggerer that wait for the database; older ones stay on its disk.
MOST_LEFT_BEHIND = 1000

#: The triggerer adds its own id to the task's log path (airflow/jobs/triggerer_job_runner.py, 3.3.2).
_TRIGGER_LOG = re.compile(r"(?P<log_path>.+)\.trigger\.[^/]+\.log")


@dataclass
class _LeftBehind:
    """A log of the triggerer that could not be stored yet."""

    log_path: str
    file: Path
    #: How much of it is stored.
    stored: int = 0


class EdgeControlLogs:
    """Airflow's RemoteLogIO and RemoteLogStreamIO, found as REMOTE_TASK_LOG beside the logging configuration.

    `cloud` is another RemoteLogIO, which has the logs that EdgeControl does not have; it may be None.
    """

    def __init__(self, *, cloud: Any = None) -> None:
        self.cloud = cloud
        self._left_behind: list[_LeftBehind] = []

    @functools.cached_property
    def _store(self) -> Store:
        # On first use: this module is imported by every process of Airflow, also by tasks, which have no database.
        from airflow_bridge import config

        return Store(config.read().database_url, connections=CONNECTIONS)

    @functools.cached_property
    def processors(self) -> tuple[Any, ...]:
        """What the cloud adds to how tasks write their logs; nothing when it cannot: no task fails over its log."""
        try:
            return tuple(getattr(self.cloud, "processors", ()))
        except Exception as error:
            log.warning("EdgeControl: Airflow's remote log storage gets no lines from this process: %s", error)
            return ()

    @property
    def base_log_folder(self) -> Any:
        """Where the cloud's looks for what it uploads; the runner of edge tasks gives it a copy to upload."""
        return getattr(self.cloud, "base_log_folder", None)

    @base_log_folder.setter
    def base_log_folder(self, folder: Any) -> None:
        if hasattr(self.cloud, "base_log_folder"):
            self.cloud.base_log_folder = folder

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], list[Generator[str, None, None]]]:
        """Where the lines come from, and one generator of lines per attempt of each job with this log path.

        A job without a line yet has an empty generator, since Airflow would else look for its log on port 8793 of the
        edge machine. For a task without a job here, and a job that ended without a line, what the cloud has.
        """
        path, complaint = str(relative_path), ""
        try:
            parts = self._store.log_parts(path)
        except StoreError as error:
            parts, complaint = [], _complaint(error)
        sources = [_source(part) for part in parts]
        if any(part.has_log or part.state not in FINAL for part in parts) or self.cloud is None:
            others: list[Generator[str, None, None]] = []
        else:
            more, others, trouble = cloud_logs.read(self.cloud, path, ti)
            sources += more
            complaint = ". ".join(filter(None, (complaint, trouble)))
        if complaint:
            sources.append(complaint)
        streams = others or [self._lines(part) for part in parts]
        # Airflow shows no local file of a finished task when there is any stream.
        if complaint and not streams and not _is_here(path):
            streams = [_single(complaint)]
        return sources, streams

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str]]:
        """The older form of `stream`, all at once."""
        sources, streams = self.stream(relative_path, ti)
        return sources, ["\n".join(stream) for stream in streams]

    def upload(self, path: Any, ti: Any = None) -> None:
        """Called where Airflow wrote a log file: store the triggerer's part of a deferred task's log, then let the
        cloud have the file.

        The end of a task calls this too. On an edge machine the agent ships that log, so nothing is stored. Raises what
        the cloud raises, as it would without EdgeControl.
        """
        stored = self._store_trigger_log(str(path))
        try:
            if self.cloud is not None:
                self.cloud.upload(path, ti)
        finally:
            if stored is not None:
                stored.unlink(missing_ok=True)

    def _store_trigger_log(self, relative_path: str) -> Path | None:
        """Store the triggerer's part and what earlier ones left behind; return its file when nothing is left of it."""
        from airflow_bridge import config

        match = _TRIGGER_LOG.fullmatch(relative_path)
        if not match or not config.read().database_url:
            return None
        mine = _LeftBehind(match["log_path"], config.log_folder() / relative_path)
        # A trigger that fired again has written the same file anew.
        self._left_behind = [left for left in self._left_behind if left.file != mine.file]
        try:
            while self._left_behind:
                if self._store_rest(self._left_behind[0]):
                    self._left_behind[0].file.unlink(missing_ok=True)
                del self._left_behind[0]
            return mine.file if self._store_rest(mine) else None
        except (StoreError, OSError) as error:
            log.warning("EdgeControl: %s stays on this disk for now: %s", relative_path, error)
            self._keep(mine)
            self._left_behind = [*self._left_behind, mine][-MOST_LEFT_BEHIND:]
            return None

    def _store_rest(self, left: _LeftBehind) -> bool:
        """Store what is not stored yet; False when no job of ours has this log path, or the file is gone."""
        if not left.file.exists():
            return False
        with left.file.open("rb") as source:
            source.seek(left.stored)
            while data := source.read(CHUNK_BYTES):
                if not self._store.add_log(log_path=left.log_path, data=data):
                    return False
                left.stored += len(data)
        return True

    def _keep(self, left: _LeftBehind) -> None:
        """Put a copy aside, since a cloud empties or deletes what it has uploaded."""
        from airflow_bridge import config

        if self.cloud is None:
            return
        aside = config.log_folder() / ".edgecontrol" / str(uuid4())
        try:
            aside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(left.file, aside)
            left.file = aside
        except OSError as error:
            log.warning("EdgeControl: %s could not be kept for EdgeControl: %s", left.file, error)

    def _lines(self, part: LogPart) -> Generator[str, None, None]:
        try:
            yield from split_lines(self._chunks(part))
        except StoreError as error:
            yield cloud_logs.as_line(_complaint(error), logger=__name__)
            return
        # Not while it runs: Airflow goes on after the lines that it has had, and this one would be no more.
        if part.state in FINAL and (missing := _missing(part)):
            yield cloud_logs.as_line(missing, logger=__name__)

    def _chunks(self, part: LogPart) -> Iterator[bytes]:
        start = 0
        while part.has_log:
            page = self._store.log_page(job_id=part.job_id, attempt=part.attempt, start=start, size=PAGE_BYTES)
            if not page:
                return
            for offset, data in page:
                yield data
                start = offset + len(data)


def _source(part: LogPart) -> str:
    """One line for people under "Log message source details"."""
    if part.attempt == 0 and part.has_log:
        where = "at Airflow's triggerer"
    else:
        where = f"on {part.worker}" if part.worker else f"in queue {part.queue}"
    why = f" ({part.reason})" if part.reason else ""
    missing = f". {_missing(part)}" if _missing(part) else ""
    return f"EdgeControl job {part.job_id}, attempt {part.attempt} {where}: {part.state}{why}{missing}"


def _missing(part: LogPart) -> str:
    """Why this is not the whole log; empty when nothing is amiss. As the control plane says it: `jobs_app/logs.py`."""
    told = part.log_final_size
    if not part.newest or (told is not None and part.log_size >= told):
        return ""
    if part.log_full:
        return f"The log has reached the size that EdgeControl keeps, {part.log_size:,} bytes; the rest is not kept."
    of_these = f" ({part.log_size:,} of {told:,} bytes are here)" if told is not None else ""
    if part.log_trouble and part.worker:
        return f"The log is not all here{of_these}; {part.worker} says: {part.log_trouble}"
    return (
        "" if told is None else f"The rest of the log has not come from {part.worker or 'its machine'} yet{of_these}."
    )


def _complaint(error: StoreError) -> str:
    return f"EdgeControl's log cannot be read now: {error}"


def _single(event: str) -> Generator[str, None, None]:
    yield cloud_logs.as_line(event, logger=__name__)


def _is_here(relative_path: str) -> bool:
    """Whether Airflow has a file of this log on this machine, which it shows by itself."""
    from airflow_bridge import config

    return (config.log_folder() / relative_path).exists()
