"""Airflow's own logging, plus where task logs are: for `[logging] logging_config_class`.

Set it to `airflow_bridge.logging_config.LOGGING_CONFIG`; Airflow finds REMOTE_TASK_LOG beside it, and neither needs
nor minds `[logging] remote_logging`.
"""

from __future__ import annotations

from copy import deepcopy

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG

from airflow_bridge.task_logs import EdgeControlLogs

LOGGING_CONFIG = deepcopy(DEFAULT_LOGGING_CONFIG)
REMOTE_TASK_LOG = EdgeControlLogs()
