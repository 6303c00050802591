"""How long a job waits although an agent is free: commit of the job row -> claim answer in the agent's hands.

`python benchmarks/dispatch.py` starts an embedded PostgreSQL and a real `manage.py serve`, connects simulated agents,
queues single jobs through the bridge's own statement at random moments, and ends everything again. The clock
starts when that statement (which commits by itself) has returned, and stops when an agent has the whole answer.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import psycopg
from agents import SLOTS, Fleet
from control_plane import ControlPlane, Database, cpu_seconds, serving
from report import add_json_option, comma_list, command, facts, machine, percentile, postgresql, say, table, write_json

from airflow_bridge.database import StoreError
from airflow_bridge.store import NewJob, Store

QUEUE = "bench"
#: Jobs that are not counted, at least as many as agents: the server's threads and caches are cold at first.
WARM_UP = 30
_ANSWER_SECONDS = 30.0
#: Airflow's own edge executor (edge3) on such a machine; its agents ask again every few seconds.
EDGE3 = {"p50_ms": 2510.0, "p95_ms": 4910.0}
#: At the largest fleet.
AIM = {"p50_ms": 10.0, "p95_ms": 50.0, "p99_ms": 100.0}
#: Jobs a second. One agent is away for some 15 ms with each job (confirm, report, next claim): at 10 a second one job
#: in seven finds it away. 20 a second keeps 100 agents of 4 slots busy with tasks of twenty
#: seconds. A job costs about 25 ms of processor time on the server's side (measured on two cores of an AMD EPYC), so
#: 20 a second is half a core; at 40 the jobs wait for the processor, and that is another question (`--rate 40`).
RATE_OF_ONE, RATE_OF_MANY = 10.0, 20.0
SAMPLES_OF_ONE, SAMPLES_OF_MANY = 150, 200

#: A backlog that no agent here can take, by its name on the command line: words for the table, and values of its rows.
BACKLOGS = {
    "elsewhere": (
        "queued for 50 other queues",
        {"queue": "'elsewhere-' || mod(number, 50)", "slots": "1", "state": "'queued'", "finished_at": "NULL"},
    ),
    "too-big": (
        f"queued here, each needs {SLOTS + 1} slots",
        {"queue": f"'{QUEUE}'", "slots": str(SLOTS + 1), "state": "'queued'", "finished_at": "NULL"},
    ),
    "finished": (
        "finished",
        {"queue": f"'{QUEUE}'", "slots": "1", "state": "'success'", "finished_at": "now()"},
    ),
}

#: Finished jobs from before a backlog.
PAST = 2000
_VACUUM = "VACUUM (ANALYZE) edgecontrol.job"

_LOAD = """
WITH queues AS (
    INSERT INTO edgecontrol.queue (name) SELECT DISTINCT {queue} FROM generate_series(1, 50) AS number
    ON CONFLICT DO NOTHING
)
INSERT INTO edgecontrol.job (id, kind, dag_id, task_id, run_id, airflow_id, workload, queue, slots, priority, state,
                             finished_at, queued_at, log_path, dispatcher)
SELECT gen_random_uuid(), 'ExecuteTask', 'dag_' || mod(number, 500), 'task_' || mod(number, 20), 'run',
       gen_random_uuid(),
       jsonb_build_object('ti', jsonb_build_object('dag_id', 'dag_' || mod(number, 500)), 'filler', repeat('x', 200)),
       {queue}, {slots}, mod(number, 10), {state}, {finished_at}, now() - make_interval(secs => 400000 - number),
       'dag_id=dag_' || number, gen_random_uuid()
  FROM generate_series(1, %s) AS number
"""


@dataclass
class Flights:
    """When each job was committed and when its answer was there, by job id."""

    #: Milliseconds that the inserting statement took; not part of what is measured.
    inserts: dict[str, float] = field(default_factory=dict)
    committed: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    _news: threading.Condition = field(default_factory=threading.Condition)

    def note_arrival(self, job_id: str, moment: int) -> None:
        with self._news:
            self.arrived[job_id] = moment
            self._news.notify_all()

    def wait_for_all(self) -> None:
        """Raises RuntimeError when a job was not handed out in time."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.arrived) >= len(self.committed), _ANSWER_SECONDS):
                missing = len(self.committed) - len(self.arrived)
                raise RuntimeError(f"{missing} jobs were not handed out within {_ANSWER_SECONDS:.0f} s")

    def milliseconds(self, ids: Sequence[str]) -> list[float]:
        return [(self.arrived[job_id] - self.committed[job_id]) / 1e6 for job_id in ids]


def main() -> int:
    options = parse()
    sys.setswitchinterval(0.001)  # the measuring threads share one interpreter; the default of 5 ms would show
    figures: dict[str, Any] = {"benchmark": "dispatch", "command": command(), "machine": machine()}
    began = time.monotonic()
    say("starting PostgreSQL")
    database = Database()
    cases: list[dict[str, Any]] = []
    for number, (size, kind) in enumerate(backlogs(options)):
        say(f"control plane beside {size:,} jobs" + (f" {BACKLOGS[kind][0]}" if kind else ""))
        with serving(database, name=f"bench_{number}") as control_plane:
            cases += run_cases(control_plane, database, size=size, kind=kind, options=options)
    with psycopg.connect(database.url("postgres")) as connection:
        figures["postgresql"] = postgresql(connection)
    figures |= {"seconds": round(time.monotonic() - began, 1), "cases": cases, "edge3": EDGE3, "aim": AIM}
    show(figures)
    write_json(options.json, figures)
    return 1 if any("failed" in case for case in cases) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--agents", type=comma_list(int), default=[1, 100], help="fleet sizes (default: 1,100)")
    parser.add_argument("--backlog", type=comma_list(int), default=[0, 200_000], help="jobs beside (default: 0,200000)")
    parser.add_argument(
        "--kinds", type=comma_list(str), default=list(BACKLOGS), help=f"of backlog (default: {','.join(BACKLOGS)})"
    )
    parser.add_argument(
        "--samples", type=int, help=f"jobs per case (default: {SAMPLES_OF_ONE} with one agent, else {SAMPLES_OF_MANY})"
    )
    parser.add_argument(
        "--rate",
        type=float,
        help=f"jobs a second (default: {RATE_OF_ONE:g} with one agent, else {RATE_OF_MANY:g})",
    )
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(BACKLOGS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: choose from {', '.join(BACKLOGS)}")
    if min(options.agents, default=0) < 1:
        parser.error("--agents: at least one")
    return options


def backlogs(options: argparse.Namespace) -> list[tuple[int, str]]:
    return [(size, kind) for size in options.backlog for kind in (options.kinds if size else [""])]


def run_cases(
    control_plane: ControlPlane, database: Database, *, size: int, kind: str, options: argparse.Namespace
) -> list[dict[str, Any]]:
    most = max(options.agents)
    tokens = control_plane.issue_tokens(most)
    beside = f"{size:,} {BACKLOGS[kind][0]}" if size else "nothing"
    cases = []
    with psycopg.connect(control_plane.database_url, autocommit=True) as connection:
        if size:
            # A table with a past, which autovacuum has seen with an empty queue: then comes the burst.
            connection.execute(_LOAD.format(**BACKLOGS["finished"][1]), [PAST])
            connection.execute(_VACUUM)
            began = time.monotonic()
            connection.execute(_LOAD.format(**BACKLOGS[kind][1]), [size])
            say(f"  backlog written in {time.monotonic() - began:.1f} s")
        # The variants say whether a backlog matters; the largest fleet is enough for that.
        fleets = options.agents if kind in ("", "elsewhere") else [most]
        # First with the statistics from before the burst; then as autovacuum leaves it, a minute later at the latest.
        # Either may mislead the planner.
        for agents, vacuum in [*((agents, False) for agents in fleets), *([(most, True)] if size else [])]:
            if vacuum:
                connection.execute(_VACUUM)
            few = agents == 1
            try:
                case = measure(
                    control_plane,
                    database,
                    connection,
                    tokens=tokens[:agents],
                    samples=options.samples or (SAMPLES_OF_ONE if few else SAMPLES_OF_MANY),
                    rate=options.rate or (RATE_OF_ONE if few else RATE_OF_MANY),
                )
                say(f"  {agents} agents: p50 {case['p50_ms']:.1f} ms, p95 {case['p95_ms']:.1f} ms")
            except (RuntimeError, StoreError) as error:
                # The other cases still say something.
                case = {"failed": str(error)}
                say(f"  {agents} agents: failed: {error}")
            cases.append({"agents": agents, "beside": beside, "statistics": statistics(connection), **case})
    return cases


def measure(
    control_plane: ControlPlane,
    database: Database,
    connection: psycopg.Connection[Any],
    *,
    tokens: Sequence[str],
    samples: int,
    rate: float,
) -> dict[str, Any]:
    """Queue jobs one by one while this fleet is parked; return the figures of one line."""
    flights = Flights()
    fleet = Fleet(port=control_plane.port, tokens=tokens, queues=[QUEUE], arrival=flights.note_arrival)
    fleet.start(connection)
    store = Store(control_plane.database_url)
    try:
        queue_at_random(store, flights, count=max(WARM_UP, len(tokens)), rate=rate)
        flights.wait_for_all()
        before = _usage(control_plane, database)
        ids = queue_at_random(store, flights, count=samples, rate=rate)
        flights.wait_for_all()
        usage = {name: value - before[name] for name, value in _usage(control_plane, database).items()}
    finally:
        store.close()
        fleet.stop(connection)
    if fleet.failures:
        raise RuntimeError(f"{len(fleet.failures)} agents failed, the first: {fleet.failures[0]}")
    waits = flights.milliseconds(ids)
    usage["others_cpu"] = usage["machine_cpu"] - sum(
        usage[f"{name}_cpu"] for name in ("server", "postgres", "generator")
    )
    return {
        "samples": len(waits),
        "rate_per_second": rate,
        **{f"p{share}_ms": percentile(waits, share / 100) for share in (50, 95, 99)},
        "max_ms": max(waits),
        "insert_p95_ms": percentile([flights.inserts[job_id] for job_id in ids], 0.95),
        "before_commit_returned": sum(wait < 0 for wait in waits),
        # Of one core: a machine of two has 200.
        **{f"{name}_percent": 100 * usage[name] / usage["wall"] for name in usage if name != "wall"},
    }


def queue_at_random(store: Store, flights: Flights, *, count: int, rate: float) -> list[str]:
    """Queue single jobs at exponential intervals, whatever became of the ones before; return their ids."""
    dice = random.Random(count)
    moment = time.perf_counter()
    ids = []
    for _ in range(count):
        moment += dice.expovariate(rate)
        time.sleep(max(0.0, moment - time.perf_counter()))
        job = new_job()
        began = time.perf_counter_ns()
        store.enqueue([job])
        flights.committed[str(job.id)] = ended = time.perf_counter_ns()
        flights.inserts[str(job.id)] = (ended - began) / 1e6
        ids.append(str(job.id))
    return ids


def new_job() -> NewJob:
    """A job with a workload of the size that Airflow makes."""
    task_instance = {
        "id": str(uuid.uuid4()),
        "dag_version_id": str(uuid.uuid4()),
        "task_id": "extract",
        "dag_id": "edge_tour",
        "run_id": "manual__2026-01-01T00:00:00+00:00",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": QUEUE,
        "priority_weight": 1,
        "context_carrier": {"traceparent": f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"},
    }
    path = f"dag_id=edge_tour/run_id=manual/task_id=extract/{task_instance['id']}/attempt=1.log"
    return NewJob(
        id=uuid.uuid4(),
        kind="ExecuteTask",
        airflow_id=uuid.UUID(str(task_instance["id"])),
        workload={
            "type": "ExecuteTask",
            "ti": task_instance,
            "dag_rel_path": "edge_tour.py",
            "bundle_info": {"name": "dags-folder", "version": None},
            "log_path": path,
        },
        token="x" * 300,  # as long as one of Airflow's
        queue=QUEUE,
        slots=1,
        priority=1,
        team_name="",
        dispatcher=uuid.uuid4(),
        dag_id="edge_tour",
        task_id="extract",
        run_id="manual__2026-01-01T00:00:00+00:00",
        try_number=1,
        log_path=path,
    )


def statistics(connection: psycopg.Connection[Any]) -> str:
    """What PostgreSQL's planner knew of the job table by the end of the case; autovacuum may have come in between."""
    row = connection.execute(
        """
        SELECT analyze_count + autoanalyze_count FROM pg_stat_user_tables
         WHERE schemaname = 'edgecontrol' AND relname = 'job'
        """
    ).fetchone()
    analysed = row[0] if row else 0
    return ("none", "stale")[analysed] if analysed < 2 else "fresh"


def _usage(control_plane: ControlPlane, database: Database) -> dict[str, float]:
    times = psutil.cpu_times()
    busy = ("user", "nice", "system", "irq", "softirq", "steal")
    return {
        "wall": time.monotonic(),
        "server_cpu": cpu_seconds(control_plane.process),
        "postgres_cpu": cpu_seconds(database.process),
        "generator_cpu": time.process_time(),
        "machine_cpu": sum(getattr(times, name, 0.0) for name in busy),
    }


def show(figures: dict[str, Any]) -> None:
    columns = {
        "agents": "agents",
        "beside": "beside",
        "statistics": "statistics",
        "jobs/s": "rate_per_second",
        "n": "samples",
        "p50": "p50_ms",
        "p95": "p95_ms",
        "p99": "p99_ms",
        "max": "max_ms",
        "insert": "insert_p95_ms",
        "server": "server_cpu_percent",
        "postgres": "postgres_cpu_percent",
        "generator": "generator_cpu_percent",
        "others": "others_cpu_percent",
    }
    lines = [
        *figures["cases"],
        {"agents": "aim", "beside": "with 100 agents", "statistics": "", **figures["aim"]},
        {"agents": "edge3", "beside": "measured on such a machine", "statistics": "", **figures["edge3"]},
    ]
    rows = [[line.get(key) for key in columns.values()] for line in lines]
    print("commit of the job row -> claim answer in the agent's hands, in milliseconds;")
    print("insert: p95 of the inserting statement, which comes before and is not part of it;")
    print("server to others: processor time, 100 = one core busy (others: what else ran on this machine)\n")
    print(table([[str(agents), *rest] for agents, *rest in rows], head=list(columns)))
    early = sum(case.get("before_commit_returned", 0) for case in figures["cases"])
    print(f"\nanswers that were there before the COMMIT had returned (counted as negative): {early}")
    for case in figures["cases"]:
        if "failed" in case:
            print(f"{case['agents']} agents beside {case['beside']}, statistics {case['statistics']}: {case['failed']}")
    print(f"whole run: {figures['seconds']:.0f} s\n")
    versions = {name.replace("server_version", "postgresql"): value for name, value in figures["postgresql"].items()}
    print(facts({"command": figures["command"], **figures["machine"], **versions}))


if __name__ == "__main__":
    sys.exit(main())
