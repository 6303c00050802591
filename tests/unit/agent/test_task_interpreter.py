"""What `doctor` says of a task interpreter by the Airflow that it has."""

from __future__ import annotations

import pytest

from agent.doctor.examination import State
from agent.doctor.task_interpreter import about


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("3.2.2", State.OK),
        ("3.3.10", State.OK),
        ("3.3.0rc1", State.OK),
        ("3.2.1", State.WARNING),
        ("3.4.0", State.WARNING),
        ("2.11.0", State.WARNING),
        ("unknown", State.WARNING),
        ("", State.FAILED),
    ],
)
def test_an_airflow_that_the_agent_is_not_made_for_is_named(version: str, state: State) -> None:
    finding = about("/opt/airflow/bin/python", {"airflow_version": version, "python": "3.12.1"})
    assert finding.state is state
    assert ("pip install 'apache-airflow" in finding.text) is (state is not State.OK)
