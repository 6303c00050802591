"""How much of a scheduler's loop is spent on the database, and what is left for the next turn.

Nothing here knows jobs: a step has a name, in the words of a complaint about it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_bridge.database import NoConnection, StoreError
from airflow_bridge.outage import Outage
from airflow_bridge.store import Store

#: What needs no hurry is done this often.
WATCH_SECONDS = 1


class Turns:
    """The time of one turn, the pauses after failures, and the round of what needs no hurry."""

    def __init__(self, store: Store, *, log: Any, kept: Callable[[], int]) -> None:
        """`kept` says how many workloads are not stored yet, which is what people ask in an outage."""
        self._store = store
        self._log = log
        self._kept = kept
        self.outage = Outage()
        self.ends = float("-inf")
        self.next_watch = float("-inf")
        self.due: deque[str] = deque()

    def begin(self, *, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def time_is_left(self) -> bool:
        return time.monotonic() < self.ends

    def go_on_watching(self, watches: Mapping[str, Callable[[], None]]) -> None:
        """Each of these steps once a second; what does not fit into this turn comes first in the next."""
        if not self.due and time.monotonic() >= self.next_watch:
            self.next_watch = time.monotonic() + WATCH_SECONDS
            self.due.extend(watches)
        while self.due:
            step = self.due.popleft()
            with self.reaching_store(step) as reachable:
                if reachable:
                    watches[step]()
            if not self.time_is_left():
                return

    @contextmanager
    def reaching_store(self, step: str) -> Iterator[bool]:
        """Around each thing that needs the database: False while that is left alone.

        A failure, ours too, makes a pause of this step; of all while there is no connection.
        """
        if not self.outage.may_try(step):
            yield False
            return
        done, away = self._store.done, self.outage.lasts
        kept = self._kept()
        try:
            yield True
        except NoConnection as error:
            if self.outage.failed(step, alone=False):
                self._log.error("EdgeControl: the job table cannot be reached (%s workloads are kept): %s", kept, error)
        except StoreError as error:
            if self.outage.failed(step, alone=True):
                self._log.error("EdgeControl: could not %s (%s workloads are kept): %s", step, kept, error)
        except Exception:
            if self.outage.failed(step, alone=True):
                self._log.exception("EdgeControl: could not %s (%s workloads are kept)", step, kept)
        else:
            # A step that had nothing to do proves nothing.
            if self._store.done != done and self.outage.over(step):
                what = "the job table can be reached again" if away else f"can {step} again"
                self._log.info("EdgeControl: %s", what)
