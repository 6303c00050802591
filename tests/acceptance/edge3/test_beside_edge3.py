"""With Airflow's own Edge provider installed beside EdgeControl, nothing of the two clashes and nothing complains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.edge3.conftest import Both

pytestmark = [pytest.mark.slow, pytest.mark.airflow]

DAGS = Path(__file__).with_name("dags")
GUIDE = Path(__file__).resolve().parents[3] / "docs" / "migrate-from-edge3.md"
#: Anything that mentions one of the two.
OURS = re.compile("edge", re.IGNORECASE)
_VIEWS = """
import json
from airflow.plugins_manager import get_import_errors, get_plugin_info
plugins = [each for each in get_plugin_info() if "edge" in each["name"]]
kinds = ("external_views", "react_apps", "fastapi_apps")
views = [view for each in plugins for kind in kinds for view in each[kind]]
print(json.dumps([[each["name"] for each in plugins], views, get_import_errors()], default=str))
"""
_EXECUTORS = """
import json
from airflow.executors.executor_loader import ExecutorLoader
made = ExecutorLoader.init_executors()
print(json.dumps([[each.name.alias, type(each).__name__] for each in made]))
"""
_PARSED = """
import json
from airflow.dag_processing.dagbag import DagBag
bag = DagBag()
assert not bag.import_errors, bag.import_errors
print(json.dumps({task.task_id: task.executor for task in bag.dags["two_queues"].tasks}))
"""


def complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.search("warn|error|duplicate|clash|more than once", line, re.I)]


def test_both_groups_of_commands_are_there_and_nothing_is_said_of_it(both: Both) -> None:
    for group in ("edge", "edgecontrol"):
        done = both.airflow(group, "--help")
        assert "list-workers" in done.stdout
        assert not [line for line in complaints(done.stderr) if OURS.search(line)]


def test_airflow_lists_both_providers_executors_and_sections(both: Both) -> None:
    providers = both.airflow("providers", "list", "--output", "json")
    names = {each["package_name"] for each in json.loads(providers.stdout)}
    assert {"edgecontrol", "apache-airflow-providers-edge3"} <= names
    executors = both.airflow("providers", "executors", "--output", "json")
    assert {
        "airflow_bridge.executor.EdgeControlExecutor",
        "airflow.providers.edge3.executors.EdgeExecutor",
    } <= {each["executor_class_names"] for each in json.loads(executors.stdout)}
    ours = both.airflow("config", "list", "--section", "edgecontrol", "--show-values", "--include-descriptions")
    assert {"database_url", "outage_patience", "queue_wait_limit", "control_plane_url", "api_token_file"} <= set(
        re.findall(r"^#? ?(\w+) = ", ours.stdout, re.M)
    )
    theirs = both.airflow("config", "list", "--section", "edge")
    assert "api_url" in theirs.stdout
    for done in (providers, executors, ours, theirs):
        assert not [line for line in complaints(done.stderr) if OURS.search(line)]


def test_both_plugins_are_loaded_and_share_no_name_and_no_address(both: Both) -> None:
    both.settings = {
        "edge.api_enabled": "true",
        "edge.api_url": "http://127.0.0.1:9/edge_worker/v1/rpcapi",
        "edgecontrol.control_plane_url": "https://edge.example.com",
    }
    code = "import sys; sys.argv = ['airflow', 'api-server']\n" + _VIEWS
    plugins, views, errors = both.python_says(code)
    assert sorted(plugins) == ["edge_executor", "edgecontrol"]
    assert errors == {}
    names = [view["name"] for view in views]
    assert {"Edge Executor", "Edge Worker Hosts", "Edge Worker Jobs"} <= set(names)
    assert len(names) == len(set(names))
    for key in ("url_route", "href", "url_prefix"):
        addresses = [view[key] for view in views if view.get(key)]
        assert len(addresses) == len(set(addresses))


def test_both_executors_are_made_under_their_aliases(both: Both) -> None:
    assert both.python_says(_EXECUTORS) == [["EdgeExecutor", "EdgeExecutor"], ["EdgeControl", "EdgeControlExecutor"]]


def test_the_guides_policy_moves_one_queue_and_leaves_what_chose_for_itself(both: Both) -> None:
    (policy,) = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S)
    config = both.home / "config"
    config.mkdir()
    (config / "airflow_local_settings.py").write_text(policy)
    both.settings = {"core.dags_folder": str(DAGS)}
    assert both.python_says(_PARSED) == {"moved": "EdgeControl", "left": None, "chosen": "EdgeExecutor"}
