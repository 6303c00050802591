"""Tasks whose logs may come from the edge and from Airflow's own machines, in every form that a log can have."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, dag, get_current_context, task


def mark(kind: str) -> None:
    """Two lines that are like no other task's, nor like another try's."""
    ti: Any = get_current_context()["ti"]
    for line in range(2):
        print(f"{kind} {ti.map_index} try {ti.try_number} line {line} 温度")  # noqa: T201


class Waits(BaseOperator):
    """Begins at the edge, waits in the triggerer, and goes on at the edge."""

    def execute(self, context: Any) -> None:
        mark("before")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=1)), method_name="go_on")

    def go_on(self, context: Any, event: Any = None) -> None:
        mark("after")


@dag(schedule=None, default_args={"queue": "plant"})
def both_logs():
    @task
    def edge() -> None:
        mark("edge")

    @task(executor="LocalExecutor")
    def beside() -> None:
        mark("beside")

    @task(retries=1, retry_delay=timedelta(0))
    def again(number: int) -> None:
        mark("again")
        context: Any = get_current_context()
        if context["ti"].try_number == 1:
            raise RuntimeError("the first try fails")

    edge()
    beside()
    again.expand(number=[0, 1])
    Waits(task_id="deferred")


both_logs()
