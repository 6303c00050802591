"""The tasks of the fault cases: each says outside of every table when it begins and when it ends.

One DAG for each queue, `work_QUEUE`, so that cases on different queues can run at the same time. A run's conf may say
how long its tasks take: `{"seconds": 0.2}`, or a list of which each task takes its own; `again` is for further tries.
"""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from itertools import pairwise
from typing import Any

from airflow.sdk import dag, get_current_context, task

#: How many tasks a run has, by queue: so many after each other, each mapped so often.
TASKS = {
    "kills": (4, 50),
    "outage": (1, 24),
    "late": (1, 4),
    "doomed": (1, 3),
    "deleted": (1, 3),
    "hole": (3, 6),
    "crash": (1, 20),
    "reboot": (1, 6),
    "gone": (1, 4),
    "short": (2, 6),
    "cut": (1, 4),
    "calm": (1, 4),
}


def witness(what: str) -> None:
    """Append one line to the witness's file. A single write, so that lines of many processes never mix."""
    ti: Any = get_current_context()["ti"]
    line = {
        "dag": ti.dag_id,
        "run": ti.run_id,
        "task": ti.task_id,
        "map_index": ti.map_index,
        "try": ti.try_number,
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
    """What the run's conf says about this task."""
    context: Any = get_current_context()
    conf = context["dag_run"].conf or {}
    seconds = conf.get("seconds", 0.2)
    if context["ti"].try_number > 1:
        seconds = conf.get("again", seconds)
    return float(seconds[number % len(seconds)] if isinstance(seconds, list) else seconds)


def work(number: int) -> int:
    witness("start")
    until = time.time() + duration(number)
    line = 0
    while (left := until - time.time()) > 0:
        print(f"task {number}, line {line}: 20 °C, größer als 19 °C, 温度")  # noqa: T201
        line += 1
        time.sleep(min(left, 0.5))
    witness("end")
    return number


def make(queue: str, stages: int, tasks: int) -> None:
    # A retry that a fault burns shows as a second try.
    retried = {"retries": 3, "retry_delay": timedelta(seconds=1)}

    @dag(dag_id=f"work_{queue}", schedule=None, max_active_tasks=1000, default_args={"queue": queue, **retried})
    def of_queue():
        chain = [task(task_id=f"work_{stage}")(work).expand(number=list(range(tasks))) for stage in range(stages)]
        for before, after in pairwise(chain):
            before >> after

    of_queue()


for name, (stages, tasks) in TASKS.items():
    make(name, stages, tasks)


@dag(dag_id="work_beside", schedule=None)
def beside():
    """Work of another executor, which a fault of ours must not keep waiting."""
    task(task_id="work_0", executor="LocalExecutor")(work).expand(number=[0, 1])


beside()
