from __future__ import annotations

from airflow.sdk.api.client import get_hostname

__all__ = ["get_hostname"]
