"""The real runner on the real Task SDK, where the machine uploads logs to a storage: the agent's log stays whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.agent.execution_api import ExecutionApi
from tests.integration.agent.runner_process import RunnerProcess

pytestmark = pytest.mark.airflow

DAGS = """
from airflow.sdk import dag, task


@dag(schedule=None)
def talk():
    @task
    def hello() -> None:
        print("hello from the edge")

    hello()


talk()
"""
#: What Airflow's own storages do: they note their folder when they are made, and empty or delete what they uploaded.
STORAGE = """
import os, pathlib, shutil

from airflow.config_templates.airflow_local_settings import BASE_LOG_FOLDER, DEFAULT_LOGGING_CONFIG as LOGGING_CONFIG


class Storage:
    processors = ()
    base_log_folder = pathlib.Path(BASE_LOG_FOLDER)

    def upload(self, path, ti=None):
        file, there = self.base_log_folder / path, pathlib.Path(os.environ["STORED"]) / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(file.read_text())
        if os.environ["STORAGE"] == "deletes":
            shutil.rmtree(file.parent)
        else:
            file.write_text("")

    def read(self, path, ti=None):
        return [], []


REMOTE_TASK_LOG = Storage()
"""
#: The same, where EdgeControl's own logging configuration was copied to the machine as well.
BESIDE = """
from airflow_bridge.task_logs import EdgeControlLogs
from storage import LOGGING_CONFIG, Storage

REMOTE_TASK_LOG = EdgeControlLogs(cloud=Storage())
"""


class Site:
    def __init__(self, folder: Path, *, storage: str, configuration: str) -> None:
        self.stored = folder / "stored"
        modules = folder / "modules"
        modules.mkdir()
        (modules / "talk.py").write_text(DAGS)
        (modules / "storage.py").write_text(STORAGE)
        (modules / "beside.py").write_text(BESIDE)
        self.api = ExecutionApi()
        self.runner = RunnerProcess(
            folder,
            python_path=[modules, Path(__file__).resolve().parents[3]],
            AIRFLOW_HOME=str(folder / "airflow"),
            AIRFLOW__CORE__DAGS_FOLDER=str(modules),
            AIRFLOW__CORE__LOAD_EXAMPLES="false",
            AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="false",
            AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS=f"{configuration}.LOGGING_CONFIG",
            STORAGE=storage,
            STORED=str(self.stored),
        )

    def run(self) -> Path:
        return self.runner.run(
            self.api.workload(dag_file="talk.py", dag_id="talk", task_id="hello"), execution_api_url=self.api.url
        )

    def close(self) -> None:
        self.runner.close()
        self.api.close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(storage: str, configuration: str = "storage") -> Site:
        sites.append(Site(tmp_path, storage=storage, configuration=configuration))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.mark.parametrize(
    ("storage", "configuration"), [("empties", "storage"), ("deletes", "storage"), ("empties", "beside")]
)
def test_the_log_is_uploaded_and_stays_whole_for_the_agent(
    make_site: Callable[..., Site], storage: str, configuration: str
) -> None:
    site = make_site(storage, configuration)
    directory = site.run()
    assert site.runner.result(directory)["state"] == "success"
    log = (directory / "log" / "task-0.log").read_text()
    assert "hello from the edge" in [json.loads(line)["event"] for line in log.splitlines()]
    uploaded = (site.stored / "task-0.log").read_text()
    assert log.startswith(uploaded)
    assert "hello from the edge" in uploaded
    assert not (directory / "upload").exists()
