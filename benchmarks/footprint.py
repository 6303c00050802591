"""What a worker costs its machine: memory, idle processor time, requests when idle, time to come up; beside edge3.

`python benchmarks/footprint.py` brings up each Airflow with one worker (see `airflow_pair.py`), lets it run a few
tasks, leaves it idle, then has it run some that only wait. Memory is read from the kernel: PSS counts a page that
several processes share in parts, so the PSS of all of them is what they take. Reading that of tasks needs root.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from airflow_pair import Site, compare, options_parser, processor_seconds, site
from report import facts, say, table_of, write_json

#: As measured on other machines and days.
EDGE3 = {
    "program": "edge3, measured elsewhere",
    "agent_rss_mb": 147.0,
    "task_pss_mb": 67.0,
    "idle_percent": 0.28,
    "registered_s": 4.0,
    "requests_per_hour": 840.0,
}
AIM = {
    "program": "aim",
    "agent_rss_mb": 40.0,
    "task_pss_mb": 40.0,
    "idle_percent": 0.1,
    "registered_s": 0.5,
    "requests_per_hour": 100.0,
}
#: After tasks have ended or begun, until memory is read.
SETTLE_SECONDS = 10.0


class Counter:
    """A detour in front of a server that counts the requests which pass."""

    def __init__(self) -> None:
        self.requests = 0
        self._lock = threading.Lock()

    def before(self, target: str) -> str:
        """Listen; returns the URL that leads to the target, which need not be up yet."""
        at = urlsplit(target)
        server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, args=(server, (at.hostname, at.port)), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    def _serve(self, server: socket.socket, target: tuple[str | None, int | None]) -> None:
        while True:
            client, _ = server.accept()
            try:
                upstream = socket.create_connection(target)
            except OSError:
                client.close()
                continue
            for source, sink, counted in ((client, upstream, True), (upstream, client, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, counted), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counted:
                    with self._lock:
                        self.requests += data.count(b" HTTP/1.1\r\n")
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def main() -> int:
    options = parse()

    def measured(edge3: bool) -> dict[str, Any]:
        counter = Counter()
        with site(edge3=edge3, concurrency=options.tasks, way=counter.before) as one:
            return measure(one, counter, options)

    figures = compare("footprint", options, measured, edge3_elsewhere=EDGE3, aim=AIM)
    show(figures)
    write_json(options.json, figures)
    return 0


def parse() -> argparse.Namespace:
    parser = options_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=8, help="tasks that run at once (default: 8)")
    parser.add_argument("--idle", type=float, default=300.0, help="seconds without work (default: 300)")
    return parser.parse_args()


def measure(one: Site, counter: Counter, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one line."""
    one.start_warm_worker(settle_seconds=SETTLE_SECONDS)
    idle = one.worker_processes()
    memory = [megabytes(process) for process in idle]
    say(f"{one.name}: idle for {options.idle:.0f} s")
    began, used, asked = time.monotonic(), processor_seconds(idle), counter.requests
    time.sleep(options.idle)
    share = (processor_seconds(idle) - used) / (time.monotonic() - began)
    requests = (counter.requests - asked) / (time.monotonic() - began)
    say(f"{one.name}: {options.tasks} tasks at once")
    run_id = one.trigger(tasks=options.tasks, seconds=600.0)
    one.until(lambda: one.running(run_id) == options.tasks, seconds=120.0)
    time.sleep(SETTLE_SECONDS)
    before = sum(pss for _, pss in memory)
    busy = sum(megabytes(process)[1] for process in one.worker_processes())
    return {
        "program": one.name,
        "agent_rss_mb": memory[0][0],
        "agent_pss_mb": memory[0][1],
        # edge3 forks its tasks from the worker itself.
        "runner_rss_mb": sum(rss for rss, _ in memory[1:]) or None,
        "runner_pss_mb": sum(pss for _, pss in memory[1:]) or None,
        "task_pss_mb": (busy - before) / options.tasks,
        "idle_percent": 100 * share,
        "registered_s": one.registered_seconds,
        "requests_per_hour": 3600 * requests,
    }


def megabytes(process: psutil.Process) -> tuple[float, float]:
    """RSS and PSS; nothing of a process that has ended. Raises PermissionError where that may not be read."""
    try:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    sizes = {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["Rss"], sizes["Pss"]


def show(figures: dict[str, Any]) -> None:
    columns = {
        "program": "program",
        "agent RSS": "agent_rss_mb",
        "PSS": "agent_pss_mb",
        "runner RSS": "runner_rss_mb",
        "PSS ": "runner_pss_mb",
        "PSS per task": "task_pss_mb",
        "idle CPU %": "idle_percent",
        "registered s": "registered_s",
        "requests/idle hour": "requests_per_hour",
    }
    lines = [*figures["cases"], figures["aim"], figures["edge3_elsewhere"]]
    print(
        "memory in MB, of an idle worker but for the tasks; PSS per task: what each running task adds to all of them;"
    )
    print("idle CPU: 100 = one core busy; registered: from the start of the worker until the centre knows it\n")
    print(table_of(lines, columns, shown=shown))
    print()
    print(facts({"command": figures["command"], **figures["machine"]}))


def shown(value: object) -> object:
    """Two digits for what is small."""
    return f"{value:.2f}" if isinstance(value, float) and value < 10 else value


if __name__ == "__main__":
    sys.exit(main())
