"""Task logs in Airflow's UI, read from EdgeControl's tables: running and finished tasks alike, on any api-server.

Nothing is raised into the UI: when the database is away, a line of the log says so. Logs are written by the agents;
only the triggerer's part of a deferred task's log is stored from here.

Airflow imports this module while it is being imported itself, so what imports Airflow is imported on first use.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Generator, Iterator
from typing import Any

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


class EdgeControlLogs:
    """Airflow's RemoteLogIO and RemoteLogStreamIO, found as REMOTE_TASK_LOG beside the logging configuration."""

    #: Nothing is added to how tasks write their logs.
    processors: tuple[Any, ...] = ()

    def __init__(self) -> None:
        #: Triggerer logs that could not be stored yet, and how many bytes of each were.
        self._left_behind: dict[str, int] = {}

    @functools.cached_property
    def _store(self) -> Store:
        # On first use: this module is imported by every process of Airflow, also by tasks, which have no database.
        from airflow_bridge import config

        return Store(config.read().database_url, connections=CONNECTIONS)

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], list[Generator[str, None, None]]]:
        """Where the lines come from, and one generator of lines per attempt of each job with this log path.

        Nothing at all for a task that another executor ran. A job without a line yet has an empty generator,
        since Airflow would else look for its log on port 8793 of the edge machine.
        """
        try:
            parts = self._store.log_parts(str(relative_path))
        except StoreError as error:
            return [_complaint(error)], [_single(_complaint(error))]
        return [_source(part) for part in parts], [self._lines(part) for part in parts]

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str]]:
        """The older form of `stream`, all at once."""
        sources, streams = self.stream(relative_path, ti)
        return sources, ["\n".join(stream) for stream in streams]

    def upload(self, path: Any, ti: Any = None) -> None:
        """Called where Airflow wrote a log file: store the triggerer's part of a deferred task's log.

        The end of a task calls this too, on the edge machine: the agent ships that log, so nothing is done.
        """
        from airflow_bridge import config

        relative_path = str(path)
        if not _TRIGGER_LOG.fullmatch(relative_path) or not config.read().database_url:
            return
        self._left_behind[relative_path] = 0
        try:
            for waiting in list(self._left_behind):
                self._store_file(waiting)
                del self._left_behind[waiting]
        except (StoreError, OSError) as error:
            log.warning("EdgeControl: %s stays on this disk for now: %s", relative_path, error)
            while len(self._left_behind) > MOST_LEFT_BEHIND:
                del self._left_behind[next(iter(self._left_behind))]

    def _store_file(self, relative_path: str) -> None:
        """Store the rest of the file and remove it; leave it alone when no job of ours has this log path."""
        from airflow_bridge import config

        match = _TRIGGER_LOG.fullmatch(relative_path)
        file = config.log_folder() / relative_path
        if not match or not file.exists():
            return
        with file.open("rb") as source:
            source.seek(self._left_behind[relative_path])
            while data := source.read(CHUNK_BYTES):
                if not self._store.add_log(log_path=match["log_path"], data=data):
                    return
                self._left_behind[relative_path] += len(data)
        file.unlink()

    def _lines(self, part: LogPart) -> Generator[str, None, None]:
        try:
            yield from split_lines(self._chunks(part))
        except StoreError as error:
            yield _line(_complaint(error))
            return
        # Not while it runs: Airflow goes on after the lines that it has had, and this one would be no more.
        if part.state in FINAL and (missing := _missing(part)):
            yield _line(missing)

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


def _line(event: str) -> str:
    return json.dumps({"event": event, "level": "error", "logger": __name__})


def _single(event: str) -> Generator[str, None, None]:
    yield _line(event)
