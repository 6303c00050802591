"""A home of its own for the Airflow that tests import; to be imported before anything of Airflow."""

from __future__ import annotations

import os
import tempfile

# Processes that share the tests may have inherited the home of the one that started them.
if "AIRFLOW_HOME" not in os.environ or "PYTEST_XDIST_WORKER" in os.environ:
    _home = tempfile.TemporaryDirectory(prefix="edgecontrol-tests-airflow-")
    os.environ["AIRFLOW_HOME"] = _home.name
os.environ.setdefault("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
os.environ.setdefault(
    "AIRFLOW__API_AUTH__JWT_SECRET", "a secret that only signs the tokens of tests, and only those " * 2
)
