"""A stand-in for Airflow in the task interpreter: only its supervise call and its client, driven by the workload."""

from __future__ import annotations

import pkgutil

# As in the real one, so that providers may come from elsewhere.
__path__ = pkgutil.extend_path(__path__, __name__)
