"""One executor beside so many stored jobs, in a process of its own: what each turn of a scheduler's loop costs.

Started by `executor.py` with the interpreter whose executor it is, against a database of its own; prints its figures as
JSON. What machines at the edge would have done is written straight into the tables. Imports nothing of this
checkout but the executor, since edge3's interpreter has nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psutil
import psycopg
from airflow import settings
from airflow.executors import workloads
from airflow.executors.executor_utils import ExecutorName
from airflow.executors.workloads.base import BundleInfo
from airflow.executors.workloads.task import TaskInstanceDTO
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.session import create_session
from sqlalchemy import event

QUEUE = "bench"
RUN = "scheduled__2026-01-01T00:00:00+00:00"
#: Turns of an idle scheduler, a second apart; fewer when each takes long.
TURNS, TURNS_SECONDS, FEWEST = 10, 30.0, 3
#: The other figures are medians of so many turns; where one takes more than a second, there is one.
ROUNDS, DEAR_MS = 3, 1000.0
FEW, CHANGES = 10, 1000
#: For the tokens of jobs that were taken over, of which a turn renews a share.
SETTLE_SECONDS = 900.0
#: Of the changed ones that ended, so many did without telling Airflow.
SILENT_SHARE = 10


def workload(number: int) -> workloads.ExecuteTask:
    ti = TaskInstanceDTO(
        id=uuid4(),
        dag_version_id=uuid4(),
        dag_id=f"dag_{number % 500}",
        task_id=f"task_{number % 20}",
        run_id=RUN,
        map_index=number,
        try_number=1,
        pool_slots=1,
        queue=QUEUE,
        priority_weight=1 + number % 10,
        external_executor_id=str(uuid4()),
        context_carrier={"traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"},
    )
    path = f"dag_id={ti.dag_id}/run_id={RUN}/task_id={ti.task_id}/map_index={number}/attempt=1.log"
    return workloads.ExecuteTask(
        ti=ti,
        dag_rel_path=Path("tour.py"),
        token="x" * 320,  # as long as one of Airflow's
        bundle_info=BundleInfo(name="dags-folder"),
        log_path=path,
    )


def key_of(number: int) -> TaskInstanceKey:
    """Of the stored one with this number."""
    return TaskInstanceKey(f"dag_{number % 500}", f"task_{number % 20}", RUN, 1, -number)


class EdgeControl:
    """Ours; its tables are in the same database as Airflow's."""

    def __init__(self, database: psycopg.Connection[Any]) -> None:
        from airflow_bridge.executor import EdgeControlExecutor

        self.database = database
        self.figures: dict[str, float] = {}
        self.scheduler = uuid4()
        self.executor = EdgeControlExecutor(parallelism=10 * CHANGES)

    def start(self, *, job_id: int) -> None:
        begin(self.executor, job_id=job_id)

    def statements(self) -> int:
        """Those that SQLAlchemy knows nothing of."""
        return int(self.executor._store.done)

    def fill(self, number: int, *, waiting: bool) -> None:
        """Finished ones of which Airflow knows, or waiting ones that this scheduler has taken over."""
        self.database.execute(
            """
            INSERT INTO edgecontrol.job (id, kind, dag_id, task_id, run_id, map_index, try_number, airflow_id, workload,
                token, token_until, queue, slots, priority, state, finished_at, told_at, log_path, dispatcher, attempt,
                airflow_outcome, queued_at)
            SELECT id, 'ExecuteTask', dag_id, task_id, run_id, map_index, 1, ti_id,
                jsonb_build_object('type', 'ExecuteTask', 'filler', repeat('x', 700)),
                CASE WHEN %(waiting)s THEN repeat('x', 320) END, now() + interval '9 minutes', queue, 1, priority,
                CASE WHEN %(waiting)s THEN 'queued' ELSE 'success' END,
                CASE WHEN NOT %(waiting)s THEN now() END, CASE WHEN NOT %(waiting)s THEN now() END,
                'dag_id=' || dag_id || '/map_index=' || map_index, %(scheduler)s,
                CASE WHEN %(waiting)s THEN 0 ELSE 1 END, CASE WHEN %(waiting)s THEN '' ELSE 'success' END,
                now() + make_interval(secs => map_index * 0.01)
            FROM stored
            """,
            {"waiting": waiting, "scheduler": self.scheduler},
        )
        if waiting:
            rows = self.database.execute("SELECT ti_id, id, dag_id, task_id FROM stored").fetchall()
            self.executor.try_adopt_task_instances(
                [
                    SimpleNamespace(
                        id=ti_id, external_executor_id=str(job_id), dag_id=dag_id, task_id=task_id, state="queued"
                    )
                    for ti_id, job_id, dag_id, task_id in rows
                ]
            )
            self._settle()
            self.database.execute("VACUUM ANALYZE edgecontrol.job")

    def _settle(self) -> None:
        """Turns until all is taken over and has a fresh token, with which a scheduler's own life with it begins."""
        began, dearest = time.monotonic(), 0.0
        query = "SELECT 1 FROM edgecontrol.job WHERE state = 'queued' AND token = repeat('x', 320) LIMIT 1"
        while self.database.execute(query).fetchone():
            if time.monotonic() > began + SETTLE_SECONDS:
                raise RuntimeError(f"not all waiting jobs were taken over within {SETTLE_SECONDS:.0f} s")
            turn = time.perf_counter()
            self.executor.heartbeat()
            dearest = max(dearest, time.perf_counter() - turn)
            time.sleep(1.0)
        self.figures = {"adoption_max_ms": dearest * 1000, "adoption_seconds": time.monotonic() - began}

    def queue(self, tasks: Sequence[workloads.ExecuteTask]) -> None:
        for task in tasks:
            self.executor.queue_workload(task, session=None)

    def end(self, tasks: Sequence[workloads.ExecuteTask]) -> None:
        """As the control plane leaves them: most with the outcome that Airflow accepted."""
        for number, task in enumerate(tasks):
            silent = number % SILENT_SHARE == 0
            self.database.execute(
                """
                UPDATE edgecontrol.job SET state = %s, airflow_outcome = %s, reason = %s, finished_at = now(),
                    token = NULL, attempt = 1 WHERE id = %s
                """,
                [
                    "failed" if silent else "success",
                    "" if silent else "success",
                    "exit code 1" if silent else "",
                    task.ti.external_executor_id,
                ],
            )


class Edge3:
    """Airflow's own edge executor."""

    def __init__(self, database: psycopg.Connection[Any]) -> None:
        from airflow.providers.edge3.executors import EdgeExecutor

        self.database = database
        self.figures: dict[str, float] = {}
        self.executor = EdgeExecutor(parallelism=10 * CHANGES)

    def start(self, *, job_id: int) -> None:
        begin(self.executor, job_id=job_id)

    def statements(self) -> int:
        return 0

    def fill(self, number: int, *, waiting: bool) -> None:
        """Rows as it leaves them until its purge, five minutes after a success; or waiting ones that it has queued.

        Their clock stands still, so that they are there as long as it is measured.
        """
        self.database.execute(
            """
            INSERT INTO edge_job (dag_id, task_id, run_id, map_index, try_number, task_instance_id, state, queue,
                concurrency_slots, priority_weight, command, queued_dttm, last_update)
            SELECT dag_id, task_id, run_id, map_index, 1, '', CASE WHEN %(waiting)s THEN 'queued' ELSE 'success' END,
                queue, 1, priority, %(command)s, now(),
                CASE WHEN NOT %(waiting)s THEN now() + interval '1 day' END
            FROM stored
            """,
            {"waiting": waiting, "command": workload(1).model_dump_json()},
        )
        if waiting:
            self.executor.running.update(key_of(one) for one in range(1, number + 1))
        self.database.execute("VACUUM ANALYZE edge_job")

    def queue(self, tasks: Sequence[workloads.ExecuteTask]) -> None:
        with create_session(scoped=False) as session:
            for task in tasks:
                self.executor.queue_workload(task, session=session)

    def end(self, tasks: Sequence[workloads.ExecuteTask]) -> None:
        for number, task in enumerate(tasks):
            state = "failed" if number % SILENT_SHARE == 0 else "success"
            self.database.execute(
                """
                UPDATE edge_job SET state = %s, last_update = now()
                WHERE dag_id = %s AND task_id = %s AND run_id = %s AND map_index = %s
                """,
                [state, task.ti.dag_id, task.ti.task_id, task.ti.run_id, task.ti.map_index],
            )


def begin(executor: Any, *, job_id: int) -> None:
    """As the scheduler does it."""
    executor.name = ExecutorName(module_path=os.environ["AIRFLOW__CORE__EXECUTOR"])
    executor.job_id = job_id
    executor.start()


class Meter:
    """Milliseconds and statements of what is done between two looks."""

    def __init__(self, site: EdgeControl | Edge3) -> None:
        self.site = site
        self.seen = 0
        event.listen(settings.engine, "before_cursor_execute", self._count)

    def _count(self, *args: Any) -> None:
        self.seen += 1

    def of(self, *steps: Callable[[], object]) -> dict[str, float]:
        seen = self.seen + self.site.statements()
        began, busy = time.perf_counter(), time.process_time()
        for step in steps:
            step()
        busy = time.process_time() - busy
        milliseconds = (time.perf_counter() - began) * 1000
        return {"ms": milliseconds, "cpu_ms": busy * 1000, "statements": self.seen + self.site.statements() - seen}


def add_task_instances(database: psycopg.Connection[Any], tasks: Sequence[workloads.ExecuteTask], state: str) -> None:
    """What Airflow's scheduler has committed before the executor's turn."""
    with database.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots,
                span_status, state, external_executor_id, queue, queued_by_job_id, queued_dttm, last_heartbeat_at)
            VALUES (%s, %s, %s, %s, %s, 1, 1, 'default_pool', 1, 'not_started', %s, %s, %s, 1, now(), now())
            """,
            [
                (ti.id, ti.task_id, ti.dag_id, ti.run_id, ti.map_index, state, ti.external_executor_id, QUEUE)
                for ti in (task.ti for task in tasks)
            ],
        )


def prepare(database: psycopg.Connection[Any], *, number: int, waiting: bool) -> int:
    """A scheduler that lives, and the task instances of what is stored; returns the scheduler's job id."""
    database.execute("SET session_replication_role = replica")  # DAGs and their runs do not matter here
    database.execute(
        """
        CREATE TEMPORARY TABLE stored AS
        SELECT gen_random_uuid() AS id, gen_random_uuid() AS ti_id, 'dag_' || mod(number, 500) AS dag_id,
            'task_' || mod(number, 20) AS task_id, %s AS run_id, -number AS map_index, 1 + mod(number, 10) AS priority,
            %s AS queue
        FROM generate_series(1, %s) AS number
        """,
        [RUN, QUEUE, number],
    )
    database.execute(
        """
        INSERT INTO task_instance (id, task_id, dag_id, run_id, map_index, try_number, max_tries, pool, pool_slots,
            span_status, state, external_executor_id, queue, queued_by_job_id, queued_dttm)
        SELECT ti_id, task_id, dag_id, run_id, map_index, 1, 1, 'default_pool', 1,
            'not_started', %s, id::text, queue, 1, now() FROM stored
        """,
        ["queued" if waiting else "success"],
    )
    row = database.execute(
        """
        INSERT INTO job (job_type, state, latest_heartbeat, start_date)
        VALUES ('SchedulerJob', 'running', now() + interval '1 hour', now()) RETURNING id
        """
    ).fetchone()
    assert row is not None
    database.execute("VACUUM ANALYZE task_instance")
    return int(row[0])


def peak_mib(*, forget: bool = False) -> float:
    """The most memory since the last time it was forgotten."""
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def warm_up(site: EdgeControl | Edge3, database: psycopg.Connection[Any]) -> None:
    """A few jobs of each sort, as after a scheduler's start: connections are made, models and statements known."""
    run_jobs(site, database, [workload(1_000 + number) for number in range(FEW)])
    site.executor.heartbeat()
    database.execute("UPDATE task_instance SET state = 'up_for_retry' WHERE state = 'running'")
    site.executor.heartbeat()
    site.executor.get_event_buffer()


def run_jobs(
    site: EdgeControl | Edge3, database: psycopg.Connection[Any], tasks: Sequence[workloads.ExecuteTask]
) -> None:
    """Queue these tasks and let machines end them; the executor's next turn hears of that."""
    add_task_instances(database, tasks, "running")
    site.queue(tasks)
    for _ in range(2):
        site.executor.heartbeat()
        time.sleep(1.0)
    site.end(tasks)


def measure(site: EdgeControl | Edge3, database: psycopg.Connection[Any]) -> dict[str, Any]:
    meter, executor = Meter(site), site.executor
    turn = [executor.heartbeat, executor.get_event_buffer]
    warm_up(site, database)
    memory = psutil.Process().memory_info().rss / 2**20
    peak_mib(forget=True)
    quiet: list[dict[str, float]] = []
    began = time.monotonic()
    while len(quiet) < FEWEST or (len(quiet) < TURNS and time.monotonic() - began < TURNS_SECONDS):
        time.sleep(1.0)  # as an idle scheduler does
        quiet.append(meter.of(*turn))
    queued, changed, following = [], [], []
    rounds = 1 if statistics.median(one["ms"] for one in quiet) > DEAR_MS else ROUNDS
    for number in range(1, rounds + 1):
        few = [workload(number * 100_000 + one) for one in range(FEW)]
        add_task_instances(database, few, "queued")
        queued.append(meter.of(lambda tasks=few: site.queue(tasks), *turn))
        changed.append(thousand_changes(site, database, meter, first=number * 10_000))
        database.execute("UPDATE task_instance SET state = 'up_for_retry' WHERE state = 'running'")
        following.append(meter.of(*turn))
    return {
        **{f"quiet_{figure}": value for figure, value in typical(quiet).items()},
        "quiet_max_ms": max(one["ms"] for one in quiet),
        **{f"queued_{figure}": value for figure, value in typical(queued).items()},
        **{f"changes_{figure}": value for figure, value in typical(changed).items()},
        **{f"after_{figure}": value for figure, value in typical(following).items()},
        "memory_mib": memory,
        "peak_mib": peak_mib(),
        **site.figures,
    }


def thousand_changes(
    site: EdgeControl | Edge3, database: psycopg.Connection[Any], meter: Meter, *, first: int
) -> dict[str, float]:
    """Half of them have ended since the last turn, half are new. Raises RuntimeError when one of them is not told."""
    half = CHANGES // 2
    ended = [workload(first + number) for number in range(half)]
    run_jobs(site, database, ended)
    new = [workload(first + half + number) for number in range(half)]
    add_task_instances(database, new, "queued")
    site.executor.get_event_buffer()
    events: dict[Any, Any] = {}
    cost = meter.of(
        lambda: site.queue(new),
        site.executor.heartbeat,
        lambda: events.update(site.executor.get_event_buffer()),
    )
    told = sum(state in ("success", "failed") for state, _ in events.values())
    if told != half:
        raise RuntimeError(f"of {half} ended jobs {told} were told")
    return cost


def typical(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    return {figure: statistics.median(one[figure] for one in turns) for figure in turns[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executor", choices=("edgecontrol", "edge3"))
    parser.add_argument("--stored", type=int, required=True)
    parser.add_argument("--waiting", action="store_true")
    options = parser.parse_args()
    with psycopg.connect(os.environ["PROBE_DATABASE"], autocommit=True) as database:
        job_id = prepare(database, number=options.stored, waiting=options.waiting)
        site = {"edgecontrol": EdgeControl, "edge3": Edge3}[options.executor](database)
        site.start(job_id=job_id)
        site.fill(options.stored, waiting=options.waiting)
        json.dump(measure(site, database), sys.stdout)


if __name__ == "__main__":
    main()
