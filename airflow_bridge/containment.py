"""The one wall between our mistakes and the scheduler's loop, which has nothing around its executors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def contained(*, otherwise: Callable[[], Any]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """For methods of the executor: log any exception, and answer `otherwise()`."""

    def wall(method: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(method)
        def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                return method(*args, **kwargs)
            except Exception:
                executor: Any = args[0]
                executor.log.exception("EdgeControl: %s failed", method.__name__)
                return otherwise()

        return inside

    return wall


def nothing() -> None:
    return None
