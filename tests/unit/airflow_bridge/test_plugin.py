from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.core_api.datamodels.plugins import ExternalViewResponse

from airflow_bridge import config
from airflow_bridge.plugin import EdgeControlPlugin
from airflow_bridge.provider import get_provider_info

SETTING = "AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://edge.example.com", "https://edge.example.com"),
        ("https://edge.example.com/", "https://edge.example.com"),
        (" HTTP://127.0.0.1:8086 ", "HTTP://127.0.0.1:8086"),
        ("http://[::1]:8086", "http://[::1]:8086"),
        ("https://example.com/edge/", "https://example.com/edge"),
    ],
)
def test_the_links_lead_to_the_lists_of_the_admin(monkeypatch: pytest.MonkeyPatch, url: str, address: str) -> None:
    monkeypatch.setenv(SETTING, url)
    assert {view["name"]: view["href"] for view in EdgeControlPlugin().external_views} == {
        "Edge Worker Hosts": f"{address}/admin/workers_app/worker/",
        "Edge Worker Jobs": f"{address}/admin/jobs_app/job/",
    }


def test_airflow_puts_the_links_into_its_admin_menu_and_shows_neither_in_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SETTING, "https://edge.example.com")
    views = [ExternalViewResponse.model_validate(view) for view in EdgeControlPlugin().external_views]
    assert [(view.destination, view.category, view.url_route) for view in views] == [("nav", "admin", None)] * 2


@pytest.mark.parametrize("url", [None, "", " "])
def test_without_an_address_there_are_no_links_and_no_complaint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str | None
) -> None:
    if url is None:
        monkeypatch.delenv(SETTING, raising=False)
    else:
        monkeypatch.setenv(SETTING, url)
    assert EdgeControlPlugin().external_views == []
    assert not caplog.records


@pytest.mark.parametrize(
    "url",
    [
        "edge.example.com",
        "edge.example.com:8086",
        "ftp://edge.example.com",
        "javascript:alert(1)//https://edge.example.com",
        "https://",
        "https:///admin",
        "https://edge.example.com:port",
        "https://edge example.com",
        "https://edge.example.com\\@elsewhere.example.com",
        "https://edge.example.com?next=",
        "https://edge.example.com/#",
        "https://somebody:secret@edge.example.com",
    ],
)
def test_a_malformed_address_gives_no_links_but_a_warning_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    monkeypatch.setenv(SETTING, url)
    assert EdgeControlPlugin().external_views == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "[edgecontrol] control_plane_url must be" in record.getMessage()
    assert "https://edge.example.com: http or https" in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_setting_that_cannot_be_read_gives_no_links_but_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*args: Any, **kwargs: Any) -> str:
        raise OSError("the vault is sealed")

    monkeypatch.setattr(config.airflow_conf, "get", raises)
    assert EdgeControlPlugin().external_views == []
    (record,) = caplog.records
    assert "the vault is sealed" in record.getMessage()
    assert record.exc_info is None


def test_another_setting_that_is_wrong_does_not_take_the_links_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "https://edge.example.com")
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__OUTAGE_PATIENCE", "four minutes")
    assert len(EdgeControlPlugin().external_views) == 2


def test_airflow_is_told_that_there_is_no_address_by_default() -> None:
    option = get_provider_info()["config"][config.SECTION]["options"]["control_plane_url"]
    assert option["default"] == config.read().control_plane_url == ""
    assert config.url_complaint(option["example"]) is None


@pytest.mark.parametrize("is_lazy", ["True", "False"])
def test_airflow_finds_the_plugin_once(tmp_path: Path, is_lazy: str) -> None:
    told = from_a_fresh_airflow(
        tmp_path,
        "from airflow import plugins_manager; import json;"
        "plugins = plugins_manager.get_plugin_info(['external_views', 'source']);"
        "print(json.dumps([[p['name'] for p in plugins if 'airflow_bridge' in str(p['source'])],"
        " plugins_manager.get_import_errors()]))",
        AIRFLOW__CORE__LAZY_LOAD_PLUGINS=is_lazy,
        AIRFLOW__CORE__LAZY_DISCOVER_PROVIDERS=is_lazy,
    )
    assert told == [["edgecontrol"], {}]


def test_the_plugin_needs_no_database_driver(tmp_path: Path) -> None:
    # Where the agent's wheel and Airflow share an interpreter, each task loads it, with no extra of the bridge's.
    loaded = from_a_fresh_airflow(
        tmp_path,
        "import sys; sys.modules['psycopg'] = None;"
        "import json; from airflow import plugins_manager; plugins_manager.ensure_plugins_loaded();"
        "print(json.dumps(['airflow_bridge.plugin' in sys.modules, plugins_manager.get_import_errors()]))",
    )
    assert loaded == [True, {}]


def from_a_fresh_airflow(home: Path, code: str, **settings: str) -> Any:
    """What the code prints as JSON in a process of its own, which does not see the checkout a second time."""
    environment = {**os.environ, **settings, "AIRFLOW_HOME": str(home), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
