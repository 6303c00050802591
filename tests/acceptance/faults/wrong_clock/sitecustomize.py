"""A wall clock that is wrong by as many seconds as the file WRONG_CLOCK says, at each look anew; Python imports this.

Monotonic clocks and what the system itself stamps stay right, as on a machine whose clock somebody sets.
"""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import Any

_now, _now_ns = time.time, time.time_ns
_gmtime, _localtime, _strftime = time.gmtime, time.localtime, time.strftime
_datetime = datetime.datetime


def off() -> float:
    try:
        return float(Path(os.environ["WRONG_CLOCK"]).read_text())
    except (KeyError, OSError, ValueError):
        return 0.0


class _Kind(type(_datetime)):  # type: ignore[misc]
    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _datetime)


class _WrongDatetime(_datetime, metaclass=_Kind):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _datetime.now(tz) + datetime.timedelta(seconds=off())

    @classmethod
    def utcnow(cls) -> Any:
        return _datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=off())


time.time = lambda: _now() + off()
time.time_ns = lambda: _now_ns() + int(off() * 1e9)
time.gmtime = lambda at=None: _gmtime(time.time() if at is None else at)
time.localtime = lambda at=None: _localtime(time.time() if at is None else at)
time.strftime = lambda form, *at: _strftime(form, *(at or (time.localtime(),)))
datetime.datetime = _WrongDatetime  # type: ignore[misc]
