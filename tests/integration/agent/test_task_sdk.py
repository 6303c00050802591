"""The real runner on the real Task SDK, at a stand-in for the Execution API: no supervisor of it sleeps over an end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.integration.agent.execution_api import ExecutionApi
from tests.integration.agent.runner_process import RunnerProcess

pytestmark = pytest.mark.airflow

# Without importing Airflow, which would make a home of its own for this process.
AIRFLOW = Path(str(next(iter(find_spec("airflow").submodule_search_locations))))  # type: ignore[union-attr, arg-type]
TESTS_OF_CONNECTIONS = AIRFLOW / "sdk" / "execution_time" / "connection_test_supervisor.py"

DAGS = """
from __future__ import annotations

import os
import subprocess

from airflow.sdk import dag, task


@dag(schedule=None)
def short():
    @task
    def nothing() -> None: ...

    @task
    def left_behind() -> None:
        child = subprocess.Popen(["sleep", "600"])
        print(f"left behind: {child.pid}")

    @task
    def closed_early() -> None:
        os.closerange(0, 64)

    nothing(), left_behind(), closed_early()


short()


@dag(schedule=None)
def elsewhere():
    @task(executor="an_alias_of_the_schedulers")
    def named() -> None: ...

    named()


elsewhere()
"""

ALERTS = """
from pathlib import Path


def tell(file, text):
    Path(file).write_text(text)


def fail():
    raise ValueError("nobody listens")
"""


class Site:
    """A runner and the API that its tasks speak to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "dags").mkdir()
        (folder / "dags" / "short.py").write_text(DAGS)
        (folder / "dags" / "alerts.py").write_text(ALERTS)
        self.api = ExecutionApi()
        self.runner = RunnerProcess(
            folder,
            python_path=[],
            AIRFLOW_HOME=str(folder / "airflow"),
            AIRFLOW__CORE__DAGS_FOLDER=str(folder / "dags"),
            AIRFLOW__CORE__LOAD_EXAMPLES="false",
            AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="false",
            # Longer than any test waits, as the clean-up of what a task left behind: neither may be what ends a wait.
            AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL="600",
            AIRFLOW__WORKERS__SOCKET_CLEANUP_TIMEOUT="600",
        )

    def run(self, task_id: str, *, dag_id: str = "short") -> Path:
        workload = self.api.workload(dag_file="short.py", dag_id=dag_id, task_id=task_id)
        return self.runner.run(workload, execution_api_url=self.api.url)

    def call_back(self, path: str, **kwargs: str) -> Path:
        workload = self.api.callback(path, **kwargs)
        return self.runner.run(workload, execution_api_url=self.api.url, kind="ExecuteCallback")

    def test_connection(self, **connection: str) -> tuple[str, Path]:
        workload = self.api.connection_test(**connection)
        directory = self.runner.run(workload, execution_api_url=self.api.url, kind="TestConnection")
        return workload["connection_test_id"], directory

    def close(self) -> None:
        self.runner.close()
        self.api.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


def test_a_task_leaves_little_to_import_for_the_next(site: Site) -> None:
    def imported() -> int:
        directory = site.run("nothing")
        assert site.runner.result(directory)["airflow_outcome"] == "success", (directory / "output").read_text()
        noted = directory / "imported"
        return len(noted.read_text().splitlines()) if noted.exists() else 0

    site.runner.until(lambda: imported() == 0)


def test_a_task_may_name_an_executor_that_only_schedulers_know(site: Site) -> None:
    directory = site.run("named", dag_id="elsewhere")
    assert site.runner.result(directory)["airflow_outcome"] == "success", (directory / "output").read_text()


def test_the_end_of_a_task_is_noticed_whoever_holds_its_output(site: Site) -> None:
    directory = site.run("left_behind")
    log = (directory / "log" / "task-0.log").read_text()
    child = psutil.Process(int(log.partition("left behind: ")[2].partition('"')[0]))
    assert child.name() == "sleep"
    child.kill()
    assert site.runner.result(directory)["state"] == "success"


def test_the_end_of_a_task_is_noticed_when_its_sockets_closed_before(site: Site) -> None:
    assert site.runner.result(site.run("closed_early"))["exit_code"] is not None


def test_a_callback_from_the_dags_folder_runs_here(site: Site, tmp_path: Path) -> None:
    told = tmp_path / "told"
    directory = site.call_back("alerts.tell", file=str(told), text="too late")
    assert site.runner.result(directory)["state"] == "success", (directory / "output").read_text()
    assert told.read_text() == "too late"


def test_a_callback_that_raises_has_failed_and_its_log_says_why(site: Site) -> None:
    directory = site.call_back("alerts.fail")
    assert site.runner.result(directory)["state"] == "failed"
    logs = [file.read_text() for file in (directory / "log").rglob("*") if file.is_file()]
    assert "nobody listens" in "".join(logs)


@pytest.mark.skipif(
    not TESTS_OF_CONNECTIONS.exists(),
    reason="this Airflow has no connection tests",
)
@pytest.mark.parametrize("there", [True, False])
def test_a_connection_is_tested_here(site: Site, tmp_path: Path, there: bool) -> None:
    path = tmp_path if there else tmp_path / "gone"
    test_id, directory = site.test_connection(conn_type="fs", extra=json.dumps({"path": str(path)}))
    state = "success" if there else "failed"
    assert site.runner.result(directory)["airflow_outcome"] == state, (directory / "output").read_text()
    assert (site.runner.result(directory)["state"], site.api.results[test_id]["state"]) == (state, state)
    assert str(path) in site.api.results[test_id]["result_message"]
