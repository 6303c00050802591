"""A stand-in for Airflow in the task interpreter: only its supervise call and its client, driven by the workload."""

from __future__ import annotations
