"""Tasks with a log that is watched while it grows, and with a large one; the run's conf says of how many lines."""

from __future__ import annotations

import time
from typing import Any

from airflow.sdk import dag, get_current_context, task
from witnessed import witness


def lines() -> int:
    context: Any = get_current_context()
    return int((context["dag_run"].conf or {}).get("lines", 40))


@dag(dag_id="work_live_log", schedule=None, default_args={"queue": "live_log"})
def live_log():
    @task
    def work_0() -> None:
        witness("start")
        for _ in range(lines()):
            print(f"at {time.time():.3f}")  # noqa: T201
            time.sleep(0.3)
        witness("end")

    work_0()


def large() -> None:
    witness("start")
    for number in range(lines()):
        print(f"{number:09d} {'x' * 900}")  # noqa: T201
    witness("end")


@dag(dag_id="work_large_log", schedule=None, default_args={"queue": "large_log"})
def large_log():
    task(task_id="work_0")(large)()
    task(task_id="beside", executor="LocalExecutor")(large)()


live_log()
large_log()
