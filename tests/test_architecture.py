"""Who may import whom, and who may write a job's state; read from the source, so that nothing needs to run."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVER = {"edgecontrol", "workers_app", "jobs_app"}
FOREIGN = {
    "agent": {*SERVER, "airflow_bridge", "django", "rest_framework", "psycopg", "airflow"},
    "airflow_bridge": {*SERVER, "agent", "django", "rest_framework"},
    "workers_app": {"jobs_app", "edgecontrol", "airflow_bridge", "agent", "airflow"},
    "jobs_app": {"edgecontrol", "airflow_bridge", "agent", "airflow"},
    "edgecontrol": {"airflow_bridge", "agent", "airflow"},
}
#: Files of stdlib, Airflow and what Airflow itself needs, each run by itself in the task interpreter.
IN_TASK_INTERPRETER = ("agent/runner.py", "agent/doctor/look.py")
BROUGHT_BY_AIRFLOW = {"airflow", "httpx", "pydantic", "setproctitle"}

#: Inside an app: each layer may import the ones below it, never above.
LAYERS = {
    "workers_app": [
        ["admin", "agent_api", "me_api", "operator_api", "management"],
        ["admin_worker_page"],
        ["admin_changes", "admin_connect", "admin_tokens"],
        ["admin_filters", "admin_lists", "admin_operations", "admin_words", "operation_views"],
        ["operations"],
        ["admission", "enrolment"],
        ["agent_file"],
        ["auth", "personal_tokens", "wishes"],
        ["registry"],
        ["api_lists"],
        ["audit", "notices", "selection", "versions"],
        ["models"],
        ["states", "errors", "outcomes", "credentials"],
    ],
    "jobs_app": [
        ["admin", "agent_api", "agent_jobs_api", "operator_api", "self_api", "management"],
        ["agent_requests"],
        ["admin_job_page", "admin_logs", "admin_queues"],
        ["admin_job_list"],
        ["admin_job_words", "admin_queue_words"],
        ["operations"],
        ["figures", "listing", "logs", "queues", "waiting"],
        ["lifecycle"],
        ["picking", "notices"],
        ["models"],
        ["states", "waiting_words"],
    ],
}


def sources(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", FOREIGN)
def test_a_program_imports_only_what_it_may_know(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imported(path)
        if name.split(".")[0] in FOREIGN[package] - (BROUGHT_BY_AIRFLOW if runs_there(path) else set())
    ]
    assert not wrong


def runs_there(path: Path) -> bool:
    return str(path.relative_to(ROOT)) in IN_TASK_INTERPRETER


@pytest.mark.parametrize("path", IN_TASK_INTERPRETER)
def test_what_runs_in_a_task_interpreter_knows_only_airflow_and_the_standard_library(path: str) -> None:
    tops = {name.split(".")[0] for name in imported(ROOT / path)}
    assert tops <= {*sys.stdlib_module_names, *BROUGHT_BY_AIRFLOW}


@pytest.mark.parametrize("app", LAYERS)
def test_inside_an_app_imports_point_downwards(app: str) -> None:
    rank = {module: level for level, modules in enumerate(LAYERS[app]) for module in modules}
    wrong = []
    for path in sources(app):
        module = path.relative_to(ROOT / app).parts[0].removesuffix(".py")
        if module in ("__init__", "apps"):
            continue
        for name in imported(path):
            package, _, rest = name.partition(".")
            target = rest.split(".")[0]
            if package == app and target in rank and target != module and rank[target] <= rank[module]:
                wrong.append(f"{module} imports {target}")
    assert not wrong


#: An assignment to the state column of a job, in SQL or by Django's ORM.
WRITES_STATE = re.compile(
    r"UPDATE (?:edgecontrol\.)?job\b[^;]*?\bSET\b[^;]*?\bstate\s*=|\.update\([^()]*\bstate=", re.S
)


def test_a_jobs_state_has_one_writer_on_each_side_of_the_seam() -> None:
    writers = {
        str(path.relative_to(ROOT))
        for package in ("edgecontrol", "jobs_app", "airflow_bridge")
        for path in sources(package)
        if WRITES_STATE.search(path.read_text())
    }
    assert writers == {"jobs_app/lifecycle.py", "airflow_bridge/store.py"}


def test_every_template_and_static_file_is_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    files = [
        path
        for package in sorted(SERVER)
        for folder in ("templates", "static")
        for path in (ROOT / package / folder).rglob("*")
        if path.is_file()
    ]
    packed = {path for package in SERVER for pattern in patterns for path in (ROOT / package).glob(pattern)}
    assert not [str(path.relative_to(ROOT)) for path in files if path not in packed]


def test_only_one_module_of_the_server_reads_the_environment() -> None:
    readers = {
        str(path.relative_to(ROOT))
        for package in SERVER
        for path in sources(package)
        if re.search(r"os\.(environ(?!\.setdefault)|getenv)", path.read_text())
    }
    assert readers == {"edgecontrol/environment.py"}
