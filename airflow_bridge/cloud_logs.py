"""The log storage of Airflow's `[logging] remote_logging`, beside EdgeControl's: how it is made and asked.

Whatever it speaks, older or newer form, it is read as generators of lines; no failure of a reading is raised.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterable
from itertools import chain
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

Lines = Generator[str, None, None]


def configured(settings: ModuleType) -> Any:
    """The one that Airflow would use without EdgeControl, given its default logging module; None without one."""
    found = settings.REMOTE_TASK_LOG
    make = getattr(type(found), "from_config", None)
    if make is None:
        return found
    try:
        # Airflow asks the provider first, which knows more settings than the default module (3.3.2).
        return make()
    except Exception as error:
        log.warning(
            "EdgeControl: %s.from_config failed, its settings are Airflow's own: %s", type(found).__name__, error
        )
        return found


def read(cloud: Any, relative_path: str, ti: Any) -> tuple[list[str], list[Lines], str]:
    """Where the lines come from, generators of them, and why they cannot be read, empty when they can."""
    ask = getattr(cloud, "stream", None) or cloud.read
    try:
        sources, logs = ask(relative_path, ti)
    except Exception as error:
        return [], [], complaint(error)
    texts = [one for one in logs or () if isinstance(one, str)]
    streams = [_to_its_end(one) for one in logs or () if not isinstance(one, str)]
    if texts:
        # As Airflow reads the older form: whatever it is cut into, it is one log.
        streams.append(_to_its_end(chain.from_iterable(map(_lines_of, texts))))
    return list(sources or ()), streams, ""


def complaint(error: Exception) -> str:
    """Why the cloud's part of a log cannot be shown, in one line."""
    text = " ".join(str(error).split())[:500]
    return f"The log in Airflow's remote log storage cannot be read now: {type(error).__name__} {text}".rstrip()


def as_line(event: str, *, logger: str) -> str:
    """A line of our own in a log, in the form of Airflow's."""
    return json.dumps({"event": event, "level": "error", "logger": logger})


def _to_its_end(lines: Iterable[Any]) -> Lines:
    try:
        yield from lines
    except Exception as error:
        yield as_line(complaint(error), logger=__name__)


def _lines_of(text: str) -> Lines:
    """Its lines, without a second copy of it all."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    if start < len(text):
        yield text[start:]
