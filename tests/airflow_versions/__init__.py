"""Another Airflow than the one in .venv: its lock, its environment, and the tests that have to pass there."""

from __future__ import annotations
