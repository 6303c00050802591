"""The work of the benchmarks on real Airflow: tasks that do nothing, and tasks that only wait."""

from __future__ import annotations

import time

from airflow.sdk import Param, dag, task


@dag(schedule=None, max_active_tasks=1000, params={"tasks": Param(1), "seconds": Param(0.0, type="number")})
def bench():
    @task(queue="bench")
    def numbers(params=None):
        return list(range(params["tasks"]))

    @task(queue="bench")
    def work(number, params=None):
        time.sleep(params["seconds"])

    work.expand(number=numbers())


bench()
