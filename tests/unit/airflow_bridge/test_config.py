from __future__ import annotations

import pytest
from airflow.executors.base_executor import ExecutorConf

from airflow_bridge import config


def test_settings_come_from_airflows_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE", "100")
    read = config.read()
    assert (read.database_url, read.outage_patience) == ("postgresql://h/d", 100)


def test_what_a_team_has_not_set_is_as_for_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", "postgresql://h/all")
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE", "100")
    monkeypatch.setenv("AIRFLOW__TEAM_A___EDGECONTROL__QUEUE_WAIT_LIMIT", "60")
    monkeypatch.setenv("AIRFLOW__TEAM_B___EDGECONTROL__DATABASE_URL", "postgresql://h/b")
    team_a, team_b = (config.read(ExecutorConf(team)) for team in ("team_a", "team_b"))
    assert (team_a.database_url, team_a.outage_patience, team_a.queue_wait_limit) == ("postgresql://h/all", 100, 60)
    assert (team_b.database_url, team_b.outage_patience, team_b.queue_wait_limit) == ("postgresql://h/b", 100, 86400)


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


def test_a_token_that_an_outage_outlives_is_complained_about(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "jwt_expiration_time (600 s) should be at least 5 times" in str(config.token_complaint(config.read()))
    monkeypatch.setenv("AIRFLOW__EXECUTION_API__JWT_EXPIRATION_TIME", "1200")
    assert config.token_complaint(config.read()) is None
