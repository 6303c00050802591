from __future__ import annotations

import importlib.resources
import json
import tomllib
from pathlib import Path

import jsonschema

from airflow_bridge import config
from airflow_bridge.provider import get_provider_info


def test_airflow_accepts_the_provider_info() -> None:
    schema = json.loads(importlib.resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_package_name_is_the_wheels() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert get_provider_info()["package-name"] == project["name"]


def test_declared_defaults_are_those_that_the_bridge_uses() -> None:
    options = get_provider_info()["config"][config.SECTION]["options"]
    read = config.read()
    # What only the command line uses is no setting of the bridge.
    assert set(options) == {*read.__slots__, "api_token_file"}
    assert int(options["outage_patience"]["default"]) == config.DEFAULT_OUTAGE_PATIENCE == read.outage_patience
    assert int(options["queue_wait_limit"]["default"]) == config.DEFAULT_QUEUE_WAIT_LIMIT == read.queue_wait_limit
    assert options["database_url"]["default"] == read.database_url == ""
    assert options["api_token_file"]["default"] == config.api_token_file() == ""
