"""What one Airflow has and an older one has not: asked here alone, by feature, never by version; nothing is patched."""

from __future__ import annotations

from typing import Any

from airflow._shared.observability.metrics import stats as _stats
from airflow.executors import workloads

try:
    from airflow.models.connection_test import ConnectionTestKey, ConnectionTestRequest
except ImportError:
    ConnectionTestKey = ConnectionTestRequest = None

__all__ = [
    "CONNECTION_TESTS",
    "EXPANDS_NAMES",
    "ConnectionTestKey",
    "ConnectionTestRequest",
    "stats",
    "workload_key",
]

#: Whether Airflow hands connection tests to executors (since 3.3).
CONNECTION_TESTS: bool = ConnectionTestKey is not None

#: `gauge`, `incr`, `timing` ...: functions of a module since 3.3, and of a class in it before.
stats: Any = _stats if hasattr(_stats, "gauge") else _stats.Stats

#: Whether these send what is on Airflow's own list of metrics under a second name too, with its tags in it (since 3.3).
EXPANDS_NAMES: bool = stats is _stats


def workload_key(workload: Any) -> Any:
    """Airflow's key of what is executed. Since 3.3 a workload knows its own; before, what is in it does."""
    if isinstance(workload, workloads.ExecuteTask):
        return workload.ti.key
    if isinstance(workload, workloads.ExecuteCallback):
        return workload.callback.key
    return workload.key
