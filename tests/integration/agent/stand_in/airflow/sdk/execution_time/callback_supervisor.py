from __future__ import annotations

from typing import Any


def supervise_callback(*, callback_path: str, **rest: Any) -> int:
    if callback_path == "fails":
        raise RuntimeError("Callback subprocess exited with code 1")
    return 0
