"""`airflow edgecontrol import-edge3`: makes a worker host for each worker of Airflow's own Edge provider.

What a machine was there, it is here from its first moment, or it is not made at all; one that is here already is left
as it is. Nothing of edge3 is changed, so that it can be done again, and both can run side by side.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_bridge.cli import display, edge3_tables, table
from airflow_bridge.cli.commands import with_api
from airflow_bridge.cli.display import Row
from airflow_bridge.cli.edge3_tables import Edge3, Edge3Worker
from airflow_bridge.cli.endings import Code, Failed, note
from airflow_bridge.cli.fleet_api import FleetApi, Refused
from airflow_bridge.cli.secret_file import SecretFile

#: As much of a comment as the control plane keeps.
LONGEST_COMMENT = 1000
NO_COMMENT = "in maintenance in edge3"
#: Like that of `manage.py create_worker_token`.
_UNFIT_FOR_A_FILE = re.compile(r"[^\w.-]+")
_LONGEST_FILE = 200
_REPORT = ("worker", "queues", "team", "concurrency", "maintenance", "edge3_state", "edge3_jobs", "result")


@dataclass(frozen=True)
class Taken:
    """What came of one worker."""

    worker: Edge3Worker
    result: str
    refused: bool = False


def import_edge3(args: argparse.Namespace) -> None:
    """`airflow edgecontrol import-edge3 [--dry-run] [--tokens FOLDER]`."""

    def command(api: FleetApi) -> Code:
        edge3 = edge3_tables.read()
        wanted = [worker for worker in edge3.workers if _is_wanted(worker, args)]
        if not wanted:
            raise Failed("edge3 has no worker" + (" like that" if edge3.workers else ""))
        here = {row["name"]: row for row in api.rows(table.kind("workers"), {})}
        tokens = _folder(args.tokens, make=not args.dry_run) if args.tokens else None
        taken: list[Taken] = []
        try:
            taken.extend(_take_over(api, wanted, here=here, tokens=tokens, dry_run=args.dry_run))
        except Failed:
            # Those before were made, and that has to be known.
            if taken:
                _show(taken, args.output)
            raise
        _show(taken, args.output)
        _say_what_next(edge3, taken, args)
        return Code.SKIPPED if any(each.refused for each in taken) else Code.DONE

    with_api(args, command)


def _is_wanted(worker: Edge3Worker, args: argparse.Namespace) -> bool:
    if args.pattern is not None and not fnmatch.fnmatchcase(worker.name, args.pattern):
        return False
    return args.queue is None or worker.queues is None or args.queue in worker.queues


def _folder(name: str, *, make: bool) -> Path:
    folder = Path(name).expanduser()
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"cannot make {folder}: {error.strerror}") from None
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise Failed(f"{folder} is no folder that you can write into")
    return folder


def _take_over(
    api: FleetApi, workers: Iterable[Edge3Worker], *, here: Mapping[str, Row], tokens: Path | None, dry_run: bool
) -> Iterator[Taken]:
    for worker in workers:
        if known := here.get(worker.name):
            called = "" if known["last_heartbeat"] else "; its machine has not called yet"
            yield Taken(worker, f"exists, left as it is{called}")
        elif dry_run:
            yield Taken(worker, "would be made" + (f", with its token in {_file(tokens, worker)}" if tokens else ""))
        else:
            try:
                yield Taken(worker, _make(api, worker, tokens))
            except Refused as refused:
                if refused.ends_all:
                    raise
                yield Taken(worker, f"refused: {refused}", refused=True)


def _make(api: FleetApi, worker: Edge3Worker, tokens: Path | None) -> str:
    """Make it, and say what is left to be done. Raises Failed."""
    with SecretFile(_file(tokens, worker)) if tokens else nullcontext() as file:
        made = api.post("workers/", _body(worker, with_token=tokens is not None))
        if file is None:
            return "made; to be enrolled"
        file.keep(f"{made['worker_token']}\n# worker token of {worker.name}; keep it secret, one machine only\n")
        return f"made; its token is in {file.path}"


def _body(worker: Edge3Worker, *, with_token: bool) -> Mapping[str, Any]:
    resting = worker.maintenance
    return {
        "name": worker.name,
        "queues": worker.queues,
        "team": worker.team,
        "concurrency": worker.concurrency,
        "maintenance": None if resting is None else (resting.strip() or NO_COMMENT)[:LONGEST_COMMENT],
        "with_token": with_token,
    }


def _file(folder: Path, worker: Edge3Worker) -> Path:
    stem = _UNFIT_FOR_A_FILE.sub("_", worker.name).encode()[:_LONGEST_FILE].decode(errors="ignore")
    return folder / f"{stem}.token"


# -- what people see --------------------------------------------------------------------


def _show(taken: Iterable[Taken], output: str) -> None:
    rows = [
        {
            "worker": each.worker.name,
            "queues": each.worker.queues,
            "team": each.worker.team,
            "concurrency": each.worker.concurrency,
            "maintenance": each.worker.maintenance,
            "edge3_state": each.worker.state,
            "edge3_jobs": each.worker.jobs,
            "result": each.result,
        }
        for each in taken
    ]
    columns = {name: display.QUEUES if name == "queues" else display.field(name) for name in _REPORT}
    display.show(rows, output, columns)


def _say_what_next(edge3: Edge3, taken: Iterable[Taken], args: argparse.Namespace) -> None:
    """What the table does not: which credentials are missing, and what edge3 has not finished yet."""
    names = [each.worker.name for each in taken if each.result == "made; to be enrolled"]
    if names:
        note("No machine has a credential yet. For each, once its turn has come, make a token for it to enrol with:")
        note(f"  airflow edgecontrol create-enrolment-token {names[0]} --replace")
    if edge3.waiting:
        queues = ", ".join(f"{count} in {queue}" for queue, count in sorted(edge3.waiting.items()))
        note(f"edge3 still has jobs that wait: {queues}. Its workers finish them; leave one running until then.")
    if any(each.worker.jobs for each in taken):
        note("Some of these workers still hold jobs of edge3 (edge3_jobs): let each finish before you stop it.")
    if args.dry_run:
        note("Nothing was changed.")
