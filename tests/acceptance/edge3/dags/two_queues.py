"""One task in a queue that has moved to EdgeControl, one in a queue that has not, one that chooses for itself."""

from __future__ import annotations

from airflow.sdk import DAG, task

with DAG("two_queues", schedule=None):

    @task(queue="floor")
    def moved() -> None:
        pass

    @task(queue="paint")
    def left() -> None:
        pass

    @task(queue="floor", executor="EdgeExecutor")
    def chosen() -> None:
        pass

    moved()
    left()
    chosen()
