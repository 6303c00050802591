"""The bridge: it runs inside Airflow's own processes, and never imports the control plane or the agent."""

from __future__ import annotations
