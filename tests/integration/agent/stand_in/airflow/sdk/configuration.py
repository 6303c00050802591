"""Airflow's settings: from its variables, else the defaults that matter here."""

from __future__ import annotations

import os

DEFAULTS = {
    ("core", "dags_folder"): "/nonexistent/dags",
    ("scheduler", "task_queued_timeout"): "600.0",
    ("scheduler", "task_instance_heartbeat_timeout"): "300",
    ("dag_processor", "dag_bundle_config_list"): """[{"name": "dags-folder", "kwargs": {},
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle"}]""",
}


class Conf:
    def get(self, section: str, name: str, fallback: str = "") -> str:
        variable = f"AIRFLOW__{section}__{name}".upper()
        return os.environ.get(variable, DEFAULTS.get((section, name), fallback))


conf = Conf()
