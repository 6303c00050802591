"""Airflow's own Edge provider and EdgeControl in one Airflow, and the way from the one to the other."""

from __future__ import annotations
