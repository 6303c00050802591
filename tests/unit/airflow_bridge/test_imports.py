from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["executor", "task_logs", "config", "queueing"])
def test_every_module_may_be_the_first_that_is_imported(module: str) -> None:
    # Airflow loads our logging configuration while Airflow itself is being imported.
    setting = "AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS"
    environment = {**os.environ, setting: "airflow_bridge.logging_config.LOGGING_CONFIG"}
    check = "from airflow.logging_config import get_remote_task_log; print(get_remote_task_log())"
    code = f"import airflow_bridge.{module}; {check}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "EdgeControlLogs" in done.stdout


@pytest.mark.parametrize("module", ["states", "database", "store", "outage", "ledger", "log_lines"])
def test_what_knows_no_airflow_imports_none(module: str) -> None:
    check = "assert not [name for name in sys.modules if name.startswith('airflow.')]"
    code = f"import sys, airflow_bridge.{module}; {check}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
