"""How fast one worker gets through short tasks of real Airflow: EdgeControl beside edge3, one after the other.

`python benchmarks/throughput.py` brings up each Airflow (see `airflow_pair.py`), runs 200 mapped tasks that do nothing
on one worker of eight slots, then some of 60 s for the count of requests alone, and ends everything again.
Both are warm: each worker has run a few tasks before.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from airflow_pair import Site, compare, options_parser, processor_seconds, site
from report import facts, percentile, say, table_of, write_json

#: As measured on other machines and days.
EDGE3 = {"wall_s": 136.0, "tasks_per_s": 1.45, "cpu_s_per_task": 0.60, "slot_p50_s": 3.5, "slot_p95_s": 9.2}
AIM = {"times_edge3": 5.0}
#: After a run, until the last worker's word has arrived and its processes are counted.
SETTLE_SECONDS = 6.0


def main() -> int:
    options = parse()

    def measured(edge3: bool) -> dict[str, Any]:
        with site(edge3=edge3, concurrency=options.concurrency) as one:
            return measure(one, options)

    figures = compare("throughput", options, measured, edge3_elsewhere=EDGE3, aim=AIM)
    show(figures)
    write_json(options.json, figures)
    return 0


def parse() -> argparse.Namespace:
    parser = options_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=200, help="tasks that do nothing (default: 200)")
    parser.add_argument("--concurrency", type=int, default=8, help="slots of the worker (default: 8)")
    parser.add_argument("--long", type=int, default=4, help="tasks of 60 s, for the requests alone (default: 4)")
    return parser.parse_args()


def measure(one: Site, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one line."""
    one.start_warm_worker(settle_seconds=SETTLE_SECONDS)
    say(f"{one.name}: {options.tasks} tasks")
    processes = one.worker_processes()
    began = processor_seconds(processes)
    run_id = one.run(tasks=options.tasks)
    time.sleep(SETTLE_SECONDS)
    used = processor_seconds(processes) - began
    wall, slots = one.wall_seconds(run_id), one.slot_seconds(run_id)
    figures = {
        "program": one.name,
        "wall_s": wall,
        "tasks_per_s": options.tasks / wall,
        "cpu_s_per_task": used / (options.tasks + 1),  # the task that says how many there are is one more
        "slot_p50_s": percentile(slots, 0.5),
        "slot_p95_s": percentile(slots, 0.95),
        "requests_per_task": one.execution_requests(run_id) / options.tasks,
    }
    if options.long:
        say(f"{one.name}: {options.long} tasks of 60 s")
        run_id = one.run(tasks=options.long, seconds=60.0)
        figures["requests_per_60_s_task"] = one.execution_requests(run_id) / options.long
    return figures


def show(figures: dict[str, Any]) -> None:
    columns = {
        "program": "program",
        "wall s": "wall_s",
        "tasks/s": "tasks_per_s",
        "CPU-s/task": "cpu_s_per_task",
        "slot p50 s": "slot_p50_s",
        "slot p95 s": "slot_p95_s",
        "requests/task": "requests_per_task",
        "requests/60 s task": "requests_per_60_s_task",
    }
    lines = [*figures["cases"], {"program": "edge3, measured elsewhere", **figures["edge3_elsewhere"]}]
    print(
        "from the queueing of the first task to the end of the last; processor time of the worker with all its tasks;"
    )
    print("slot: from hand-out to the worker until its last word; requests: to Airflow's Execution API\n")
    print(table_of(lines, columns, shown=shown))
    if len(figures["cases"]) == 2:
        ours, theirs = figures["cases"]
        print(f"\nEdgeControl is {theirs['wall_s'] / ours['wall_s']:.1f} times as fast (aim: {AIM['times_edge3']:.0f})")
    print()
    print(facts({"command": figures["command"], **figures["machine"]}))


def shown(value: object) -> object:
    """Seconds of a task need two digits."""
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else value


if __name__ == "__main__":
    sys.exit(main())
