"""Airflow's own logging, plus where task logs are: for `[logging] logging_config_class`.

Set `airflow_bridge.logging_config.LOGGING_CONFIG` there; Airflow then finds REMOTE_TASK_LOG beside it.
"""

from __future__ import annotations

from copy import deepcopy

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG

LOGGING_CONFIG = deepcopy(DEFAULT_LOGGING_CONFIG)
