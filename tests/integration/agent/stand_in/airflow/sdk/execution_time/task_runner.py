from __future__ import annotations

import sys
from collections.abc import Callable

from airflow.sdk.api.client import get_hostname

__all__ = ["get_hostname", "main"]

#: What the task does, set by the supervisor before it forks; the code it returns is the process's.
work: Callable[[], int] = int


def main() -> None:
    sys.exit(work())
