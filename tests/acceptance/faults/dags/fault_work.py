"""The tasks of the fault cases; a run's conf says how long they take (see `witnessed.duration`).

One DAG for each queue, `work_QUEUE`, so that cases on different queues can run at the same time.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from airflow.sdk import dag, task
from witnessed import work

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
