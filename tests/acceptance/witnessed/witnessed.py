"""What tasks of the acceptance DAGs do: each says outside of every table when it begins and when it ends.

On the PYTHONPATH of Airflow and of the machines, and no DAG file itself.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from airflow.sdk import get_current_context


def witness(what: str) -> None:
    """Append one line about the running task to the witness's file."""
    ti: Any = get_current_context()["ti"]
    say(what, dag=ti.dag_id, run=ti.run_id, task=ti.task_id, map_index=ti.map_index, try_number=ti.try_number)


def say(what: str, *, dag: str, run: str, task: str, map_index: int, try_number: int) -> None:
    """Append one line to the witness's file. A single write, so that lines of many processes never mix."""
    line = {
        "dag": dag,
        "run": run,
        "task": task,
        "map_index": map_index,
        "try": try_number,
        "pid": os.getpid(),
        "at": time.time(),
        "what": what,
    }
    handle = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)


def duration(number: int) -> float:
    """What the run's conf says about this task: `{"seconds": 0.2}`, or a list of which each task takes its own.

    `again` is for further tries.
    """
    context: Any = get_current_context()
    conf = context["dag_run"].conf or {}
    seconds = conf.get("seconds", 0.2)
    if context["ti"].try_number > 1:
        seconds = conf.get("again", seconds)
    return float(seconds[number % len(seconds)] if isinstance(seconds, list) else seconds)


def work(number: int) -> int:
    """The work of one task, with lines in its log while it lasts."""
    witness("start")
    until = time.time() + duration(number)
    line = 0
    while (left := until - time.time()) > 0:
        print(f"task {number}, line {line}: 20 °C, größer als 19 °C, 温度")  # noqa: T201
        line += 1
        time.sleep(min(left, 0.5))
    witness("end")
    return number
