"""Runs inside a task interpreter and prints what its Airflow has and is set to, as one line of JSON; changes nothing.

One file of the standard library and Airflow, given to the interpreter on its standard input: `doctor` reads what it
prints. Values of settings that may hold secrets are not among it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

MARK = "edgecontrol-look "
LOCAL = "LocalDagBundle"
PROVIDERS = "apache-airflow-providers-"
#: Files are counted up to this; a folder may be a whole network share.
MOST_FILES = 1000
MOST_ENTRIES = 20000


def version() -> str:
    for name in ("apache-airflow-core", "apache-airflow"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def providers() -> dict[str, str]:
    found = {}
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(PROVIDERS):
            found[name[len(PROVIDERS) :]] = distribution.version
    return found


def count_files(folder: str) -> int:
    """How many files could hold DAGs, up to a limit."""
    count = entries = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        count += sum(name.endswith((".py", ".zip")) for name in names)
        entries += len(names)
        if count >= MOST_FILES or entries >= MOST_ENTRIES:
            break
    return count


def bundle(entry: dict[str, Any], dags_folder: str) -> dict[str, Any]:
    """One configured bundle: of a local one the folder, of another whether its class is installed."""
    module, _, name = str(entry.get("classpath", "")).rpartition(".")
    said: dict[str, Any] = {"name": entry.get("name", ""), "kind": name}
    if name == LOCAL:
        path = str((entry.get("kwargs") or {}).get("path") or dags_folder)
        there = Path(path).is_dir()
        return {**said, "path": path, "exists": there, "files": count_files(path) if there else 0}
    try:
        getattr(importlib.import_module(module), name)
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    return said


def settings() -> dict[str, Any]:
    """What matters to tasks from elsewhere: where DAGs are, and how long Airflow waits."""
    from airflow.sdk.configuration import conf

    dags_folder = str(conf.get("core", "dags_folder", fallback=""))
    said: dict[str, Any] = {"dags_folder": dags_folder}
    for name in ("task_queued_timeout", "task_instance_heartbeat_timeout"):
        said[name] = float(conf.get("scheduler", name, fallback="nan"))
    text = conf.get("dag_processor", "dag_bundle_config_list", fallback="[]")
    said["bundles"] = [bundle(entry, dags_folder) for entry in json.loads(text)]
    return said


def look(preload: list[str]) -> dict[str, Any]:
    said: dict[str, Any] = {"python": sys.version.split()[0], "airflow_version": version(), "providers": providers()}
    step = "importing Airflow"
    try:
        for name in preload:
            importlib.import_module(name)
        step = "reading its settings"
        said.update(settings())
    except BaseException as error:
        said["error"] = f"{step} failed ({type(error).__name__}: {error})"
    return said


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry]  # as the runner: nothing comes from where we happen to be
    os.environ.setdefault("_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK", "1")
    print("\n" + MARK + json.dumps(look(sys.argv[1:])))  # noqa: T201
