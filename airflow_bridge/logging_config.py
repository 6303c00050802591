"""Airflow's own logging, plus where task logs are: for `[logging] logging_config_class`.

Set it to `airflow_bridge.logging_config.LOGGING_CONFIG`; Airflow finds REMOTE_TASK_LOG beside it. It needs no
`[logging] remote_logging`; where that names a cloud, its logs are shown and written as without EdgeControl.
"""

from __future__ import annotations

from copy import deepcopy

from airflow.config_templates import airflow_local_settings as airflows

from airflow_bridge import cloud_logs
from airflow_bridge.task_logs import EdgeControlLogs

LOGGING_CONFIG = deepcopy(airflows.DEFAULT_LOGGING_CONFIG)
REMOTE_TASK_LOG = EdgeControlLogs(cloud=cloud_logs.configured(airflows))
#: Of the cloud's credentials; Airflow looks for it beside the storage.
DEFAULT_REMOTE_CONN_ID = airflows.DEFAULT_REMOTE_CONN_ID
