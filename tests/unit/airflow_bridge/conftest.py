from __future__ import annotations

import tests.unit.airflow_bridge.airflow_home  # noqa: F401
