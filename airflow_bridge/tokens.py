"""How long the tokens of waiting jobs last, and when they are minted anew."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Collection
from uuid import UUID

from airflow.configuration import conf as airflow_conf

from airflow_bridge.ledger import Ledger
from airflow_bridge.store import Store

#: Tokens renewed in one statement, and what one turn may spend on them; more where they are about to run out.
RENEW_LIMIT = 250
RENEW_SECONDS = 0.05
URGENT_SECONDS = 0.25
#: How much of a token's life counts: who is given a job needs some of it to start it.
TOKEN_SHARE = 0.9


class Tokens:
    """The tokens of one dispatcher's waiting jobs."""

    def __init__(self, store: Store, ledger: Ledger, *, mint: Callable[[UUID], str]) -> None:
        """`mint` makes a token for a task instance, callback or connection test."""
        self._store = store
        self._ledger = ledger
        self._mint = mint

    @functools.cached_property
    def lifetime(self) -> float:
        """For how long a token that Airflow mints for a queued workload is accepted."""
        return float(airflow_conf.getfloat("scheduler", "task_queued_timeout"))

    def left(self, *, age: float) -> float:
        """Seconds for which a token of that age still serves who is given its job."""
        return max(0.0, self.lifetime * TOKEN_SHARE - age)

    def renew_in(self, *, left: float) -> float:
        """In how many seconds a token that serves for so long should be renewed."""
        return left - self.lifetime * (TOKEN_SHARE - 1 / 3)

    def renew(self, *, held: Collection[UUID], ends: float) -> None:
        """Mint those anew that are due: Airflow's own last for [scheduler] task_queued_timeout only.

        As many as need it: after an outage that is all of them. Jobs that are held need none.
        """
        began = time.monotonic()
        while due := self._ledger.due_for_renewal(now=time.monotonic(), limit=RENEW_LIMIT):
            waiting = [job for job in due if job.id not in held]
            again_in = 0.0
            try:
                if waiting:
                    tokens = {job.id: self._mint(job.airflow_id) for job in waiting}
                    self._store.renew_tokens(tokens, seconds=self.lifetime * TOKEN_SHARE)
                # What was queued together does not stay together.
                again_in = self.lifetime / 3 * random.uniform(0.5, 1)  # noqa: S311
            finally:
                for job in due:
                    self._ledger.renew(job.id, at=time.monotonic() + again_in)
            now = time.monotonic()
            urgent = self._ledger.next_renewal() < now - self.lifetime / 6
            if now >= min(ends, began + (URGENT_SECONDS if urgent else RENEW_SECONDS)):
                return
