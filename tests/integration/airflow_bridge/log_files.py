"""Where the log of one task lies: its path as Airflow names it, and files beside it that Airflow's own side writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

PATH = "dag_id=etl/run_id=manual/task_id=extract/attempt=1.log"
TRIGGER_PATH = f"{PATH}.trigger.7.log"
TI = SimpleNamespace(dag_id="etl")


def write(folder: Path, path: str, data: bytes) -> Path:
    file = folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file
