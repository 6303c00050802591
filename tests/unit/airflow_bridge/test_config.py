from __future__ import annotations

import pytest

from airflow_bridge import config


def test_settings_come_from_airflows_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE", "100")
    read = config.read()
    assert (read.database_url, read.outage_patience) == ("postgresql://h/d", 100)


@pytest.mark.parametrize(("patience", "fine"), [("299", True), ("300", False), ("600", False)])
def test_a_patience_beyond_airflows_own_is_complained_about(
    monkeypatch: pytest.MonkeyPatch, patience: str, fine: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE", patience)
    complaint = config.patience_complaint(config.read())
    assert (complaint is None) is fine
    assert fine or "task_instance_heartbeat_timeout (300 s)" in str(complaint)


def test_a_patience_beyond_the_life_of_a_token_is_complained_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT", "240")
    assert "task_queued_timeout (240 s)" in str(config.patience_complaint(config.read()))
    monkeypatch.setenv("AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT", "241")
    assert config.patience_complaint(config.read()) is None
