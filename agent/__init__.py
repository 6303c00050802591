"""The edge agent: takes jobs from the control plane over outbound HTTPS and runs them on this machine."""

from __future__ import annotations

__version__ = "0.1.0"

#: The version of the wire between agent and control plane (`/api/v1/edge/`).
PROTOCOL = 1

#: Which Airflow a task interpreter may have: from this version to below that one.
AIRFLOW_FROM, AIRFLOW_BELOW = "3.2.2", "3.4"
#: The same, as pip is told.
AIRFLOW = f"apache-airflow>={AIRFLOW_FROM},<{AIRFLOW_BELOW}"
