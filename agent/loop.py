"""How every loop of the agent runs: step, wait, survive; what a step does is decided elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from agent.client import SAY_AGAIN_SECONDS, ApiError
from agent.errors import AgentError
from agent.retry import Backoff

log = logging.getLogger("agent.loop")


class Loop(threading.Thread):
    """Calls `step` until told to end. A step returns how many seconds it can wait; `wake` cuts the wait short.

    No exception ends the loop: it is said in one line, and the next step comes after a growing pause. Only an
    AgentError, by which this agent has to end, is handed to `on_fatal`. `answered_at` tells when a request was last
    answered, in this loop or another: on a line that loses some, the pause must not grow.
    """

    def __init__(
        self,
        *,
        name: str,
        step: Callable[[], float],
        on_fatal: Callable[[AgentError], None],
        answered_at: Callable[[], float] = lambda: 0.0,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step
        self._on_fatal = on_fatal
        self._answered_at = answered_at
        self._failed_at = 0.0
        self._woken = threading.Event()
        self._ending = threading.Event()
        self._backoff = backoff or Backoff()
        self._said: tuple[str, float] = ("", 0.0)
        #: When the step that it is in began; None between steps.
        self.began_at: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has been told to end."""
        return self._ending.is_set()

    def wake(self) -> None:
        self._woken.set()

    def end(self) -> None:
        self._ending.set()
        self._woken.set()

    def run(self) -> None:
        while not self._ending.is_set():
            self._woken.clear()
            self.began_at = time.monotonic()
            failed, seconds = self._step_safely()
            self.began_at = None
            if failed:
                # A wake-up must not turn an outage into a flood.
                self._ending.wait(seconds)
            else:
                self._woken.wait(seconds)

    def _step_safely(self) -> tuple[bool, float]:
        try:
            seconds = self._step()
        except AgentError as error:
            self._on_fatal(error)
            return True, 1.0
        except ApiError as error:
            if not error.repeatable and error.status != 401:  # the client has said the others
                self._say(str(error))
            if self._answered_at() > self._failed_at:
                self._backoff.reset()
            self._failed_at = time.monotonic()
            return True, self._backoff.next_seconds(retry_after=error.retry_after)
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
            log.debug("%s failed", self.name, exc_info=True)
            return True, self._backoff.next_seconds()
        self._backoff.reset()
        return False, seconds

    def _say(self, text: str) -> None:
        said, said_at = self._said
        if text != said or time.monotonic() - said_at >= SAY_AGAIN_SECONDS:
            self._said = (text, time.monotonic())
            log.error("%s: %s; trying again", self.name, text)
