"""What an executor costs Airflow's scheduler, beside 10, 1,000 and 100,000 stored jobs: ours and Airflow's own edge3.

`python benchmarks/executor.py` measures turns of the loop (`heartbeat()` and the reading of its events) in a process of
their own for each case, with real tables of Airflow in an embedded PostgreSQL: a turn with nothing to do, one with ten
new tasks, and one with a thousand changes (500 tasks are new, 500 have ended, one in ten without telling Airflow).
Half of the cases stand beside jobs that have ended, half beside jobs that wait for a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from airflow_pair import edge3_python
from control_plane import CHECKOUT, Database
from psycopg import sql
from report import (
    add_json_option,
    comma_list,
    command,
    facts,
    machine,
    postgresql,
    say,
    table_of,
    write_json,
)

SIZES = [10, 1_000, 100_000]
#: For one turn with a thousand changes.
AIM_MS = 50.0
PROBE = Path(__file__).with_name("executor_probe.py")
NAMES = {"edgecontrol": "EdgeControl", "edge3": "edge3"}
_MIGRATE_EDGE3 = "from airflow.providers.edge3.executors import EdgeExecutor; EdgeExecutor().start()"


def main() -> int:
    options = parse()
    began = time.monotonic()
    figures: dict[str, Any] = {"benchmark": "executor", "command": command(), "machine": machine()}
    say("starting PostgreSQL")
    database = Database()
    templates = {name: template(database, name) for name in options.executors}
    cases: list[dict[str, Any]] = []
    for waiting in (False, True):
        for stored in options.stored:
            for name in options.executors:
                case = run(database, templates[name], name, stored=stored, waiting=waiting)
                beside = f"{stored:,} {'waiting' if waiting else 'finished'}"
                quiet, changes = (f"{case[f'{what}_ms']:.1f} ms" for what in ("quiet", "changes"))
                say(f"{NAMES[name]} beside {beside}: quiet {quiet}, with 1,000 changes {changes}")
                cases.append({"executor": NAMES[name], "beside": beside, **case})
    with psycopg.connect(database.url("postgres")) as connection:
        figures["postgresql"] = postgresql(connection)
    figures |= {"seconds": round(time.monotonic() - began, 1), "cases": cases, "aim_ms": AIM_MS}
    show(figures)
    write_json(options.json, figures)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--stored", type=comma_list(int), default=SIZES, help="stored jobs (default: 10,1000,100000)")
    parser.add_argument("--executors", type=comma_list(str), default=list(NAMES), help=f"(default: {','.join(NAMES)})")
    options = parser.parse_args()
    if unknown := set(options.executors) - set(NAMES):
        parser.error(f"--executors: {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    return options


def template(database: Database, name: str) -> str:
    """A database with the tables of Airflow and of this executor; returns its name."""
    say(f"making the tables of Airflow and of {NAMES[name]}")
    known = environment(database, name, database_name=name)
    if name == "edgecontrol":
        steps = [["-m", "airflow", "db", "migrate"], [str(CHECKOUT / "manage.py"), "migrate", "--verbosity=0"]]
    else:
        steps = [["-m", "airflow", "db", "migrate"], ["-c", _MIGRATE_EDGE3]]
    for step in steps:
        done = subprocess.run(
            [python_of(name), *step], env=known, cwd=CHECKOUT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(step)} failed: {done.stderr[-2000:]}")
    return name


def python_of(name: str) -> str:
    return edge3_python() if name == "edge3" else sys.executable


def environment(database: Database, name: str, *, database_name: str) -> dict[str, str]:
    """Of Airflow's scheduler with this executor, and of nothing that this terminal says."""
    url = database.url(database_name)
    engine = url.replace("postgresql:", "postgresql+psycopg:", 1)
    home = database.directory / f"airflow-{name}"
    home.mkdir(exist_ok=True)
    known = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "EDGECONTROL_"))}
    known |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": engine,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": engine,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret that signs nothing but the tokens of a benchmark, and only those",
        "PROBE_DATABASE": url,
    }
    if name == "edge3":
        return known | {"AIRFLOW__CORE__EXECUTOR": "airflow.providers.edge3.executors.EdgeExecutor"}
    return known | {
        "AIRFLOW__CORE__EXECUTOR": "airflow_bridge.executor.EdgeControlExecutor",
        "AIRFLOW__EDGECONTROL__DATABASE_URL": url,
        "EDGECONTROL_DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "edgecontrol.settings",
    }


def run(database: Database, source: str, name: str, *, stored: int, waiting: bool) -> dict[str, Any]:
    """The figures of one case. Raises RuntimeError with the end of what it said when it fails."""
    case = f"{name}_{stored}_{'waiting' if waiting else 'finished'}"
    names = {"case": sql.Identifier(case), "source": sql.Identifier(source)}
    with psycopg.connect(database.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {case} TEMPLATE {source}").format(**names))
        done = subprocess.run(
            [python_of(name), str(PROBE), name, f"--stored={stored}", *(["--waiting"] if waiting else [])],
            env=environment(database, name, database_name=case),
            cwd=database.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        connection.execute(sql.SQL("DROP DATABASE {case} WITH (FORCE)").format(**names))
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(figures: dict[str, Any]) -> None:
    columns = {
        "executor": "executor",
        "beside": "beside",
        "quiet": "quiet_ms",
        "max": "quiet_max_ms",
        "CPU": "quiet_cpu_ms",
        "SQL": "quiet_statements",
        "10 new": "queued_ms",
        "CPU ": "queued_cpu_ms",
        "SQL ": "queued_statements",
        "1,000 changes": "changes_ms",
        "CPU  ": "changes_cpu_ms",
        "SQL  ": "changes_statements",
        "next": "after_ms",
        "MiB": "memory_mib",
        "peak": "peak_mib",
    }
    print(
        "one turn of the scheduler's loop in milliseconds: with nothing to do (median, and the dearest of ten, a second"
    )
    print("apart), with ten new tasks, with a thousand changes, and the one that follows; CPU: milliseconds of this")
    print("process alone; SQL: statements; memory of the whole process\n")
    print(table_of(figures["cases"], columns))
    for case in figures["cases"]:
        if "adoption_max_ms" in case:
            taken = f"taken over within {case['adoption_seconds']:.0f} s, dearest turn {case['adoption_max_ms']:.0f} ms"
            print(f"\n{case['executor']} beside {case['beside']}: {taken}")
    print(f"\naim for a thousand changes: {figures['aim_ms']:.0f} ms; whole run: {figures['seconds']:.0f} s\n")
    versions = {name.replace("server_version", "postgresql"): value for name, value in figures["postgresql"].items()}
    print(facts({"command": figures["command"], **figures["machine"], **versions}))


if __name__ == "__main__":
    sys.exit(main())
