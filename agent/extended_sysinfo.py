"""A function of the operator's own that tells more about the machine; whatever it does, it holds up and breaks nothing.

It is called in a thread of its own, one call at a time. As Airflow's edge workers have it, it returns a dict of
figures, or is `async`; `status` among them is a level of Python's logging (40, or "error", makes the machine rest), and
`status_text` says why. What it tells is made fit for JSON and bounded; its errors are shown where its figures would be.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import date
from datetime import time as time_of_day
from enum import Enum
from pathlib import Path
from typing import Any

from agent.log_lines import without_secrets

log = logging.getLogger("agent.sysinfo")

EVERY_SECONDS = 30.0
#: After this an `async` function is cancelled; another one is left alone and not called again until it has ended.
DEADLINE_SECONDS = 10.0

ERROR = "extended_sysinfo_error"
STATUS = "status"
#: What stands for the agent itself, and is not the function's to say.
RESERVED = frozenset({"not_working", "not_served", "airflow_version", ERROR})
LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "fatal": 50, "critical": 50}

MOST_FIGURES = 50
MOST_BYTES = 16 * 1024
LONGEST_NAME, LONGEST_TEXT = 100, 1000
MOST_DEPTH = 3

Figures = dict[str, Any]


class ExtendedSysinfo:
    """Calls the function again and again; `figures` and `level` say what it told last, without waiting."""

    def __init__(
        self,
        function: str | None,
        *,
        folder: Path | None = None,
        every_seconds: float = EVERY_SECONDS,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        """`folder` is where else its module may be."""
        self._name = function
        self._folder = folder
        self._every_seconds = every_seconds
        self._deadline_seconds = deadline_seconds
        self._told: Figures = {}
        self._calling_since: float | None = None
        self._failing = False
        #: Called when it told something else than figures that go up and down: another status, an error, a new figure.
        self.on_change: Callable[[], None] = lambda: None

    def start(self) -> None:
        if self._name is not None:
            threading.Thread(target=self._run, name="extended-sysinfo", daemon=True).start()

    def figures(self) -> Figures:
        """What the function told last; the error alone when it failed or does not come back."""
        since = self._calling_since
        if since is not None and time.monotonic() - since > self._deadline_seconds + 1.0:
            return {ERROR: self._late()}
        return self._told

    @property
    def level(self) -> int | None:
        """The newest status, as a level of Python's logging; None when nobody knows."""
        level = self.figures().get(STATUS)
        return level if isinstance(level, int) and not isinstance(level, bool) else None

    @property
    def text(self) -> str:
        """What the function says of its status."""
        return str(self.figures().get("status_text") or "")

    def step(self) -> None:
        """Call the function once, and keep what it tells."""
        self._calling_since = time.monotonic()
        try:
            told = bounded(self._call())
        except TimeoutError:
            told = {ERROR: self._late()}
        except BaseException as error:  # whatever it raises, SystemExit too, is its own affair
            told = {ERROR: cut(f"{type(error).__name__}: {error}")}
        before, self._told, self._calling_since = self._told, told, None
        self._say(str(told.get(ERROR, "")))
        if headline(told) != headline(before):
            self.on_change()

    def _run(self) -> None:
        while True:
            self.step()
            time.sleep(self._every_seconds)

    def _call(self) -> Any:
        if self._folder is not None and str(self._folder) not in sys.path:
            sys.path.append(str(self._folder))  # last: what is there takes the place of no module of ours
        module, _, name = str(self._name).partition(":")
        told = getattr(importlib.import_module(module), name)()
        return self._until_deadline(told) if inspect.isawaitable(told) else told

    def _until_deadline(self, told: Awaitable[Any]) -> Any:
        import asyncio  # most functions need none of it

        async def wait() -> Any:
            return await asyncio.wait_for(told, self._deadline_seconds)

        return asyncio.run(wait())

    def _late(self) -> str:
        return f"{self._name} does not answer within {self._deadline_seconds:g} s"

    def _say(self, error: str) -> None:
        if error and not self._failing:  # once, as its words may differ each time
            log.warning("extended_sysinfo: %s", error)
        self._failing = bool(error)


def headline(figures: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of any figures is told at once; the rest goes up and down, and can wait."""
    told = [figures.get(name) for name in ("not_working", "not_served", STATUS, ERROR)]
    return *told, frozenset(figures)


def bounded(told: Any) -> Figures:
    """The figures as they can travel; what is too much is left out, and the error says so."""
    if not isinstance(told, Mapping):
        return {ERROR: f"it returned {cut(type(told).__name__)}, not a dict"}
    figures: Figures = {}
    left_out, size = 0, 0
    for key, value in list(told.items()):
        name = cut(str(key), LONGEST_NAME)
        fitting = fit(value)
        if name == STATUS and isinstance(fitting, str):
            fitting = LEVELS.get(fitting.strip().lower(), fitting)
        more = len(json.dumps([name, fitting], ensure_ascii=False).encode())
        if name in RESERVED or len(figures) >= MOST_FIGURES or size + more > MOST_BYTES:
            left_out += 1
        else:
            figures[name] = fitting
            size += more
    if left_out:
        figures[ERROR] = f"{left_out} figures are left out: too many, too long, or under a name of the agent's own"
    return figures


def fit(value: Any, *, depth: int = 0) -> Any:
    """The value itself if JSON and PostgreSQL can have it, else what comes nearest to it."""
    if isinstance(value, Enum):
        return fit(value.value, depth=depth)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 2**63 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, date | time_of_day):
        return value.isoformat()
    if isinstance(value, bytes):
        return cut(value[: 4 * LONGEST_TEXT].decode(errors="replace"))
    if isinstance(value, Mapping) and depth < MOST_DEPTH:
        items = list(value.items())[:MOST_FIGURES]
        return {cut(str(key), LONGEST_NAME): fit(item, depth=depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < MOST_DEPTH:
        return [fit(item, depth=depth + 1) for item in list(value)[:MOST_FIGURES]]
    return cut(str(value))


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """The text without what cannot be stored, without a token, and not endless."""
    text = text[: 2 * longest].replace("\0", "\ufffd").encode(errors="replace").decode()
    text = without_secrets(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
