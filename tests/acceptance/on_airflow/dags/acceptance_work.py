"""The DAGs of the acceptance on real Airflow; a run's conf says how long its tasks take (see `witnessed.duration`).

Each DAG `work_NAME` has the queue NAME, so that cases on different queues can run at the same time.
"""

from __future__ import annotations

import time
from datetime import timedelta
from itertools import pairwise
from typing import Any

from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import BaseOperator, DeadlineAlert, DeadlineReference, SyncCallback, dag, task
from witnessed import duration, say, witness, work

#: How many tasks a run has, by queue: so many after each other, each mapped so often.
MAPPED = {"shifts": (3, 100), "wide": (1, 200), "away": (1, 100), "here": (2, 10), "two_servers": (1, 1)}
#: Runs of one plain task.
SINGLE = ("cleared", "stopped", "rerun")
#: Runs that nobody serves before they are withdrawn.
WITHDRAWN = ("deleted", "failed", "chosen")
#: How a task says where it is to run: what the executor is called there.
CHOICES = {
    "by_default": None,
    "by_alias": "edge",
    "by_path": "airflow_bridge.executor.EdgeControlExecutor",
    "by_class": "EdgeControlExecutor",
    "beside_by_class": "LocalExecutor",
    "beside_by_path": "airflow.executors.local_executor.LocalExecutor",
}


def mapped(queue: str, stages: int, tasks: int) -> None:
    @dag(dag_id=f"work_{queue}", schedule=None, max_active_tasks=1000, default_args={"queue": queue})
    def of_queue():
        chain = [task(task_id=f"work_{stage}")(work).expand(number=list(range(tasks))) for stage in range(stages)]
        for before, after in pairwise(chain):
            before >> after

    of_queue()


def single(queue: str, tasks: int = 1) -> None:
    @dag(dag_id=f"work_{queue}", schedule=None, default_args={"queue": queue})
    def of_queue():
        for number in range(tasks):
            task(task_id=f"work_{number}")(work)(number)

    of_queue()


for name, (stages, tasks) in MAPPED.items():
    mapped(name, stages, tasks)
for name in SINGLE:
    single(name)
for name in WITHDRAWN:
    single(name, tasks=2)


@dag(dag_id="work_choice", schedule=None, default_args={"queue": "choice"})
def choice():
    for name, executor in CHOICES.items():
        task(task_id=name, executor=executor)(work)(0)


def missed(context: dict[str, Any]) -> None:
    """The deadline has passed: this runs where the executor runs its work."""
    run = context["dag_run"]
    place = {"dag": run["dag_id"], "run": run["dag_run_id"], "task": "missed", "map_index": -1, "try_number": 0}
    say("callback start", **place)
    time.sleep(float((run["conf"] or {}).get("callback_seconds", 0)))
    say("callback end", **place)


@dag(
    dag_id="work_late",
    schedule=None,
    default_args={"queue": "late"},
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(seconds=1),
        callback=SyncCallback(missed, executor="edge"),
    ),
)
def late():
    task(task_id="work_0")(work)(0)


class Deferring(BaseOperator):
    """Works, waits in the triggerer without a slot, and goes on at the edge."""

    def execute(self, context: Any) -> None:
        witness("start")
        self.defer(trigger=TimeDeltaTrigger(timedelta(seconds=2)), method_name="go_on")

    def go_on(self, context: Any, event: Any = None) -> None:
        witness("resumed")
        time.sleep(duration(0))
        witness("end")


@dag(dag_id="work_deferred", schedule=None, default_args={"queue": "deferred"})
def deferred():
    Deferring(task_id="work_0")


choice()
late()
deferred()
