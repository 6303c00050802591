"""How long operators wait for a page: every list of the admin and of the operator API beside a large fleet's history.

`python benchmarks/admin.py` starts an embedded PostgreSQL with a database of its own, fills it with workers and jobs of
the last 30 days, asks for each page many times through the whole of Django, and ends everything again. What lies
between the browser and Django (gunicorn, the network) is not part of the figures: see dispatch.py for that.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
from control_plane import Database
from report import add_json_option, command, facts, machine, percentile, postgresql, say, table, write_json

WORKERS, JOBS = 1_000, 1_000_000
QUEUES, DAGS, DAYS = 200, 300, 30
#: Of the jobs that are not final: most wait, some run.
WAITING, RUNNING, CLAIMED = 5_000, 800, 40
REQUESTS, WARM_UP = 30, 3
#: Milliseconds, at the 95th percentile.
AIM = 300.0

_WORKERS = """
INSERT INTO edgecontrol.worker (id, name, session, boot_id, reported, state, queues, team_name, concurrency,
                                jobs_active, sysinfo, agent_version, airflow_version, first_online, last_heartbeat,
                                requested)
SELECT number, 'host-' || to_char(number, 'FM0000'), gen_random_uuid(), 'boot', reported, state,
       CASE WHEN number % 50 <> 0
            THEN ARRAY['queue-' || to_char(floor({queues} * power(random(), 3)), 'FM000'),
                       'queue-' || to_char(number % {queues}, 'FM000')] END,
       CASE WHEN number % 10 = 0 THEN 'red' WHEN number % 50 = 1 THEN 'blue' ELSE '' END,
       8, CASE WHEN state = 'running' THEN 1 + number % 4 ELSE 0 END,
       '{{"load_per_cpu": 0.4, "memory_used_percent": 41.5, "disk_free_gb": 120.0, "cpu_percent": 12.5}}',
       CASE WHEN number % 20 = 0 THEN '0.0.9' ELSE '0.1.0' END, '3.3.2', now() - interval '40 days',
       now() - (CASE WHEN state IN ('offline', 'unknown') THEN number * 60 ELSE number % 30 END) * interval '1 second',
       CASE WHEN state = 'maintenance mode' THEN 'maintenance' ELSE 'active' END
  FROM generate_series(1, {workers}) AS number,
       LATERAL (SELECT CASE WHEN number % 25 = 3 THEN 'offline' WHEN number % 25 = 4 THEN 'unknown'
                            WHEN number % 50 = 7 THEN 'maintenance mode'
                            WHEN number % 3 = 0 THEN 'running' ELSE 'idle' END AS state) AS one,
       LATERAL (SELECT CASE state WHEN 'unknown' THEN 'idle' WHEN 'maintenance mode' THEN 'maintenance'
                            ELSE state END AS reported) AS two
"""

# Every five minutes for a day: what a worker's page draws.
_SAMPLES = """
INSERT INTO edgecontrol.worker_sample (worker_id, at, jobs_active, concurrency, load_per_cpu, memory_used_percent)
SELECT worker.id, now() - five * interval '5 minutes', five % 8, 8, 0.1 * (five % 10), 40 + five % 20
  FROM edgecontrol.worker, generate_series(0, 287) AS five
"""

_CHANGES = """
INSERT INTO edgecontrol.change (at, actor_kind, actor, origin, action, subject_kind, subject_id, subject, comment)
SELECT now() - number * interval '5 minutes', 'person', 'operator-' || number % 20, '10.0.0.' || number % 250,
       'request_maintenance', 'worker', (1 + number % {workers})::text,
       'host-' || to_char(1 + number % {workers}, 'FM0000'), 'disk is full'
  FROM generate_series(1, 20000) AS number
"""

_QUEUES = """
INSERT INTO edgecontrol.queue (name, paused, pause_comment, concurrency_limit)
SELECT 'queue-' || to_char(number, 'FM000'), number % 40 = 5, CASE WHEN number % 40 = 5 THEN 'stocktaking' ELSE '' END,
       CASE WHEN number % 30 = 2 THEN 50 END
  FROM generate_series(0, {queues} - 1) AS number
"""

# In the order in which time would have written them. Some queues, DAGs and workers are far busier than others, and one
# DAG ran only in the first days. The workload has the size of a real one.
_JOBS = """
INSERT INTO edgecontrol.job (id, kind, dag_id, task_id, run_id, map_index, try_number, airflow_id, workload, token,
                             queue, priority, team_name, state, attempt, worker_id, claim_id, queued_at, claimed_at,
                             started_at, finished_at, exit_code, airflow_outcome, reason, log_path, log_size,
                             log_final_size, log_sha256, dispatcher, told_at)
SELECT gen_random_uuid(), 'ExecuteTask', dag, task, run, CASE WHEN number % 20 = 0 THEN number % 7 ELSE -1 END,
       1 + (number % 25 = 0)::int, gen_random_uuid(),
       jsonb_build_object('type', 'ExecuteTask', 'dag_rel_path', dag || '.py', 'log_path', path,
           'bundle_info', jsonb_build_object('name', 'dags-folder', 'version', NULL),
           'ti', jsonb_build_object('id', gen_random_uuid(), 'dag_id', dag, 'task_id', task, 'run_id', run,
                 'queue', queue, 'dag_version_id', gen_random_uuid(), 'try_number', 1, 'pool_slots', 1,
                 'priority_weight', 1,
                 'context_carrier', jsonb_build_object('traceparent', '00-' || md5(number::text) || '-' || 'f2a1-01'),
                 'parent_context_carrier', NULL, 'executor_config', NULL)),
       CASE WHEN state IN ('queued', 'claimed', 'running') THEN 'token' END,
       queue, 1 + number % 10,
       CASE WHEN number % 100 < 12 THEN 'red' WHEN number % 100 = 13 THEN 'blue' WHEN number % 50000 = 20 THEN 'violet'
            ELSE '' END,
       state, CASE WHEN state = 'queued' THEN 0 ELSE 1 END,
       CASE WHEN state <> 'queued' THEN worker END, CASE WHEN state <> 'queued' THEN gen_random_uuid() END,
       queued_at, CASE WHEN state <> 'queued' THEN queued_at + wait END,
       CASE WHEN state NOT IN ('queued', 'claimed') THEN queued_at + wait + interval '0.3 seconds' END,
       CASE WHEN state NOT IN ('queued', 'claimed', 'running') THEN queued_at + wait + run_time END,
       CASE state WHEN 'success' THEN 0 WHEN 'failed' THEN 1 END,
       CASE state WHEN 'success' THEN CASE WHEN number % 41 = 0 THEN 'skipped' WHEN number % 53 = 0 THEN 'up_for_retry'
                                           WHEN number % 71 = 0 THEN 'deferred' WHEN number % 29 = 0 THEN 'failed'
                                           WHEN number % 50021 = 0 THEN 'up_for_reschedule'
                                           ELSE 'success' END
                  ELSE '' END,
       CASE state WHEN 'failed' THEN 'the task process ended with exit code 1' WHEN 'lost' THEN 'its machine rebooted'
                  WHEN 'revoked' THEN 'revoked by operator-3: wrong data' ELSE '' END,
       path, 20000, 20000, md5(number::text) || md5(number::text), gen_random_uuid(),
       CASE WHEN state NOT IN ('queued', 'claimed', 'running') THEN now() END
  FROM generate_series({first}, {last}) AS number,
       LATERAL (SELECT random() AS one, random() AS two, random() AS three, random() AS four,
                       number AS drawn_for) AS chance,
       LATERAL (SELECT 'queue-' || to_char(floor({queues} * power(one, 3)), 'FM000') AS queue,
                       CASE WHEN {finished} AND number < {jobs} / 20 AND number % 25 = 0 THEN 'retired'
                            ELSE (ARRAY['etl', 'ml', 'reports', 'edge'])[1 + floor({dags} * power(two, 2))::int % 4]
                                 || '_' || to_char(floor({dags} * power(two, 2)), 'FM000') END AS dag,
                       1 + floor({workers} * power(three, 1.5))::int AS worker,
                       (ARRAY['extract', 'transform', 'load', 'check', 'publish', 'train', 'report', 'clean'])
                           [1 + floor(four * 8)] AS task,
                       {queued_at} AS queued_at,
                       (1 + 30 * power(one, 8)) * interval '1 second' AS wait,
                       (2 + 600 * power(two, 4)) * interval '1 second' AS run_time,
                       {state} AS state) AS drawn,
       LATERAL (SELECT CASE WHEN number % 10 < 7 THEN 'scheduled__' ELSE 'manual__' END
                       || to_char(date_trunc('hour', queued_at AT TIME ZONE 'UTC'), 'YYYY-MM-DD"T"HH24:MI:SS')
                       || '+00:00' AS run) AS run,
       LATERAL (SELECT 'dag_id=' || dag || '/run_id=' || run || '/task_id=' || task || '/attempt=1.log/'
                       || number AS path) AS path
 ORDER BY number
"""
_FINISHED = {
    "finished": "true",
    "queued_at": f"now() - interval '5 minutes' - {DAYS} * interval '1 day' * (1 - number::float / {{jobs}})",
    "state": """CASE WHEN number % 1000 < 40 THEN 'failed' WHEN number % 1000 < 44 THEN 'revoked'
                     WHEN number % 1000 < 47 THEN 'lost' WHEN number % 10000 = 47 THEN 'refused' ELSE 'success' END""",
}
_OPEN = {
    "finished": "false",
    "queued_at": "now() - (number - {jobs}) * interval '0.2 seconds' * power(one, 4)",
    "state": f"""CASE WHEN number - {{jobs}} <= {WAITING} THEN 'queued'
                      WHEN number - {{jobs}} <= {WAITING + RUNNING} THEN 'running' ELSE 'claimed' END""",
}


def fill(connection: psycopg.Connection[Any], *, workers: int, jobs: int) -> None:
    """Workers, queues, changes and the jobs of a month, in a database that holds nothing yet but its tables."""
    numbers = {"workers": workers, "jobs": jobs, "queues": QUEUES, "dags": DAGS}
    for statement in (_QUEUES, _WORKERS, _SAMPLES, _CHANGES):
        connection.execute(statement.format(**numbers))
    for first, last, kind in ((1, jobs, _FINISHED), (jobs + 1, jobs + WAITING + RUNNING + CLAIMED, _OPEN)):
        parts = {name: text.format(**numbers) for name, text in kind.items()}
        connection.execute(_JOBS.format(**numbers, first=first, last=last, **parts))
    connection.commit()
    connection.autocommit = True
    # As autovacuum leaves them.
    connection.execute("VACUUM ANALYZE")


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    address: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    case: str
    address: str
    p50_ms: float
    p95_ms: float
    max_ms: float
    #: Processor time of Django at the median, without PostgreSQL's: it depends little on what else the machine does.
    cpu_ms: float
    queries: int
    kib: float


def cases(connection: psycopg.Connection[Any]) -> Iterator[Case]:
    """Every list, with what people narrow it down by: common and rare, new and old, none at all."""

    def one(sql: str) -> Any:
        row = connection.execute(sql).fetchone()  # type: ignore[call-overload]
        return row[0]

    def admin(name: str, page: str, **asked: Any) -> Case:
        return Case(name=name, address=f"/admin/{page}" + (f"?{urlencode(asked, doseq=True)}" if asked else ""))

    now = one("SELECT now()")
    old = {
        "queued_at_from": f"{now - timedelta(days=29):%Y-%m-%d}",
        "queued_at_to": f"{now - timedelta(days=28):%Y-%m-%d}",
    }
    job = "SELECT id FROM edgecontrol.job WHERE state = '{}' ORDER BY queued_at DESC LIMIT 1"
    tens = "SELECT id FROM edgecontrol.job WHERE state = 'success' ORDER BY queued_at DESC OFFSET {} LIMIT 1"
    place = "SELECT queued_at FROM edgecontrol.job WHERE id = '{}'"
    page_2, far = one(tens.format(100)), one(tens.format(500_000))
    worker = one("SELECT worker_id FROM edgecontrol.job WHERE state = 'running' LIMIT 1")
    jobs = "jobs_app/job/"
    yield Case(name="home", address="/admin/")
    yield Case(name="home, its refresh", address="/admin/figures/")
    yield admin("worker hosts", "workers_app/worker/")
    yield admin("worker hosts, page 20", "workers_app/worker/", p=20)
    yield admin("worker hosts, by state", "workers_app/worker/", state="running")
    yield admin("worker hosts, by queue", "workers_app/worker/", queue="queue-000")
    yield admin("worker hosts, search", "workers_app/worker/", q="07")
    yield admin("worker host", f"workers_app/worker/{worker}/change/")
    yield admin("jobs", jobs)
    yield admin("jobs, page 2", jobs, p=f"older-{one(place.format(page_2)).isoformat()}_{page_2}")
    yield admin("jobs, half a million further", jobs, p=f"older-{one(place.format(far)).isoformat()}_{far}")
    yield admin("jobs, last page", jobs, p="oldest")
    for state in ("queued", "claimed", "running", "success", "failed", "refused", "lost", "revoked"):
        yield admin(f"jobs, {state}", jobs, state=state)
    yield admin("jobs, failed or lost", jobs, state=["failed", "lost"])
    yield admin("jobs, busy queue", jobs, queue="queue-000")
    yield admin("jobs, quiet queue", jobs, queue="queue-199")
    yield admin("jobs, unknown queue", jobs, queue="nowhere")
    yield admin("jobs, waiting in a queue", jobs, queue="queue-000", state="queued")
    yield admin("jobs, lost of a queue", jobs, queue="queue-000", state="lost")
    yield admin("jobs, busy worker", jobs, worker=1)
    yield admin("jobs, quiet worker", jobs, worker=999)
    yield admin("jobs, failed on a worker", jobs, worker=500, state="failed")
    yield admin("jobs, large team", jobs, team="red")
    yield admin("jobs, tiny team", jobs, team="violet")
    yield admin("jobs, a DAG", jobs, dag="etl_000")
    yield admin("jobs, a DAG that ended weeks ago", jobs, dag="retired")
    yield admin("jobs, outcome success", jobs, outcome="success")
    yield admin("jobs, rare outcome", jobs, outcome="up_for_reschedule")
    yield admin("jobs, two days of last month", jobs, **old)
    yield admin("jobs, lost in these two days", jobs, **old, state="lost")
    yield admin("jobs, search id", jobs, q=one(job.format("success")))
    yield admin("jobs, search common", jobs, q="etl")
    yield admin("jobs, search rare and old", jobs, q="retired")
    yield admin(
        "jobs, search run", jobs, q=one("SELECT run_id FROM edgecontrol.job ORDER BY queued_at OFFSET 9999 LIMIT 1")
    )
    yield admin("jobs, search task", jobs, q="train")
    yield admin("jobs, search nothing", jobs, q="no such thing")
    yield admin("job, waiting", f"{jobs}{one(job.format('queued'))}/change/")
    yield admin("job, running", f"{jobs}{one(job.format('running'))}/change/")
    yield admin("job, failed", f"{jobs}{one(job.format('failed'))}/change/")
    yield admin("job, its refresh", f"{jobs}{one(job.format('queued'))}/live/")
    yield admin("queues", "jobs_app/queue/")
    yield admin("queues, page 4", "jobs_app/queue/", p=4)
    yield admin("queue", "jobs_app/queue/queue_2D000/change/")
    yield admin("changes", "workers_app/change/")
    yield admin("changes, by actor", "workers_app/change/", actor="operator-3")
    fleet = "/api/v1/fleet/"
    yield Case(name="API workers", address=f"{fleet}workers/")
    yield Case(name="API jobs", address=f"{fleet}jobs/")
    for asked in (
        {"state": "queued"},
        {"state": "lost"},
        {"queue": "queue-199"},
        {"dag_id": "retired"},
        {"team": "violet"},
        {"search": "etl"},
        {"search": "retired"},
        {"search": "no such thing"},
    ):
        (pair,) = asked.items()
        yield Case(name=f"API jobs, {'='.join(pair)}", address=f"{fleet}jobs/?{urlencode(asked)}")
    yield Case(name="API queues", address=f"{fleet}queues/")


def measure(case: Case, client: Any, *, requests: int) -> Figure | None:
    """None when there is no such page."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    # From within the list: it would else come back as it was last left.
    headers = {"Referer": f"http://testserver{case.address.partition('?')[0]}"}
    for _ in range(WARM_UP):
        answer = client.get(case.address, headers=headers)
        if answer.status_code != 200:
            say(f"{case.name}: {case.address} answers {answer.status_code}")
            return None
    took, worked = [], []
    for _ in range(requests):
        began, worked_before = time.perf_counter(), time.process_time()
        answer = client.get(case.address, headers=headers)
        took.append((time.perf_counter() - began) * 1000)
        worked.append((time.process_time() - worked_before) * 1000)
    with CaptureQueriesContext(connection) as queries:
        client.get(case.address, headers=headers)
    return Figure(
        case=case.name,
        address=case.address,
        p50_ms=percentile(took, 0.5),
        p95_ms=percentile(took, 0.95),
        max_ms=max(took),
        cpu_ms=percentile(worked, 0.5),
        queries=len(queries),
        kib=len(answer.content) / 1024,
    )


def browser() -> Any:
    """A logged-in superuser, through all of Django but without a network."""
    from django.contrib.auth.models import User
    from django.test import Client

    client = Client()
    client.force_login(User.objects.create_superuser("bench"))
    return client


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--jobs", type=int, default=JOBS, help="finished ones")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="to each page")
    parser.add_argument("--only", default="", metavar="TEXT", help="pages whose name begins like this")
    add_json_option(parser)
    options = parser.parse_args()
    where = machine()
    database = Database()
    os.environ["EDGECONTROL_DATABASE_URL"] = url = database.url("admin")
    os.environ["EDGECONTROL_DATA_DIR"] = str(database.directory)
    os.environ["EDGECONTROL_ALLOWED_HOSTS"] = "testserver"
    os.environ["EDGECONTROL_AIRFLOW_URL"] = "https://airflow.example.com"
    os.environ["DJANGO_SETTINGS_MODULE"] = "edgecontrol.settings"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    with psycopg.connect(url) as connection:
        say(f"filling the database with {options.workers:,} workers and {options.jobs:,} jobs; that takes minutes")
        fill(connection, workers=options.workers, jobs=options.jobs)
        where |= postgresql(connection)
        chosen = [case for case in cases(connection) if case.name.startswith(options.only)]
        size = connection.execute("SELECT pg_size_pretty(pg_total_relation_size('edgecontrol.job'))").fetchone()
    client = browser()
    figures = []
    for case in chosen:
        if figure := measure(case, client, requests=options.requests):
            say(f"{figure.p95_ms:7.1f} ms  {case.name}")
            figures.append(figure)
    missed = [figure.case for figure in figures if figure.p95_ms > AIM]
    rows = [(f.case, f.p50_ms, f.p95_ms, f.max_ms, f.cpu_ms, f.queries, f.kib) for f in figures]
    print(table(rows, head=("page", "p50 ms", "p95 ms", "max ms", "CPU ms", "queries", "KiB")))
    verdict = f"missed by {', '.join(missed)}" if missed else "met by every page"
    print()
    print(
        facts(
            where
            | {
                "workers": options.workers,
                "jobs": options.jobs,
                "table_of_jobs": size[0] if size else "",
                "requests": options.requests,
                "aim": f"p95 below {AIM:.0f} ms: {verdict}",
                "command": command(),
            }
        )
    )
    write_json(options.json, {"machine": where, "aim_ms": AIM, "pages": [asdict(figure) for figure in figures]})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
