"""How lists and outcomes are shown: a table or plain text for people, JSON or YAML with everything for programs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow.cli.simple_table import AirflowConsole, SimpleTable
from rich.markup import escape
from tabulate import tabulate

from airflow_bridge.cli.endings import shown
from airflow_bridge.cli.fleet_api import Answer

Row = Mapping[str, Any]
#: As Airflow's own commands say it.
NOTHING = "No data found"
#: For programs: all of it, with numbers as numbers.
_WHOLE = ("json", "yaml")


def show(rows: Sequence[Row], output: str, columns: Mapping[str, Callable[[Row], Any]]) -> None:
    """Print rows of the API in the format that `--output` names; `columns` are those that people see."""
    if output in _WHOLE:
        show_whole(rows, output)
        return
    lines = [{name: _cell(read(row)) for name, read in columns.items()} for row in rows]
    if output == "table":
        AirflowConsole().print(_table(lines) if lines else NOTHING)
    elif lines:
        # Airflow's own reads names such as 1e5 as numbers, and shows 100000.
        print(  # noqa: T201
            tabulate([line.values() for line in lines], headers=list(columns), tablefmt="plain", disable_numparse=True)
        )
    else:
        print(NOTHING)  # noqa: T201


def _table(lines: Sequence[Mapping[str, str]]) -> SimpleTable:
    """Without columns in which nothing stands; the first one is there to be copied, and so never broken."""
    table = SimpleTable(show_header=True)
    first, *others = lines[0]
    table.add_column(first, no_wrap=True)
    filled = [name for name in others if any(line[name] for line in lines)]
    for name in filled:
        table.add_column(name)
    for line in lines:
        table.add_row(*(escape(line[name]) for name in (first, *filled)))
    return table


def show_whole(data: Any, output: str) -> None:
    """Print it as JSON or YAML, as it came."""
    console = AirflowConsole()
    printers: dict[str, Callable[[Any], None]] = {"json": console.print_as_json, "yaml": console.print_as_yaml}
    printers[output](data)


def show_outcome(answer: Answer, output: str) -> None:
    """Print to whom an operation was done; for programs as the API answers it."""
    if output in _WHOLE:
        told = [{"name": name, "why": why} for name, why in answer.skipped]
        show_whole({"done": answer.done, "skipped": told}, output)
        return
    rows = [{"name": name, "result": "done"} for name in answer.done]
    rows += [{"name": name, "result": f"skipped: {why}"} for name, why in answer.skipped]
    show(rows, output, {"name": field("name"), "result": field("result")})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return shown(str(value)).replace("\n", " ")


def field(name: str) -> Callable[[Row], Any]:
    """A column that is one field of the row."""
    return lambda row: row[name]


def _moment(name: str) -> Callable[[Row], str]:
    """In UTC, as the API writes it, to the second."""
    return lambda row: re.sub(r"\.\d+", "", row[name] or "")


def _job(row: Row) -> str:
    if not row["dag_id"]:
        return str(row["kind"])
    index = f"[{row['map_index']}]" if row["map_index"] >= 0 else ""
    return f"{row['dag_id']}.{row['task_id']}{index} try {row['try_number']}"


def _queues(row: Row) -> str:
    names = row["queues"]
    return "(every queue)" if names is None else ", ".join(names) or "(none)"


def _wish(row: Row) -> str:
    """Maintenance or shutdown as it was asked for: until when, by whom and why."""
    if row["requested"] == "active":
        return ""
    until = f" until {row['until']}" if row["until"] else ""
    by = f" by {row['by']}" if row["by"] else ""
    return f"{row['requested']}{until}{by}" + (f": {row['comment']}" if row["comment"] else "")


def _takes_no_work(row: Row) -> str:
    told = row["sysinfo"].get("not_working")
    return told if isinstance(told, str) and row["state"] in ("idle", "running") else ""


def _name_in(name: str) -> Callable[[Row], str]:
    return lambda row: row[name]["name"] if row[name] else ""


def _changed(row: Row) -> str:
    names = {**row["before"], **row["after"]}
    return ", ".join(f"{name}: {row['before'].get(name)} -> {row['after'].get(name)}" for name in names)


QUEUES = _queues
#: What people see of each list, in the order of the columns. A test compares the fields with those of the API.
COLUMNS: Mapping[str, Mapping[str, Callable[[Row], Any]]] = {
    "workers": {
        "name": field("name"),
        "state": field("state"),
        "jobs": field("jobs"),
        "slots": lambda row: f"{row['slots']['used']}/{row['slots']['effective']}",
        "queues": QUEUES,
        "team": field("team"),
        "last_heartbeat": _moment("last_heartbeat"),
        "agent_version": field("agent_version"),
        "wish": _wish,
        "takes_no_work": _takes_no_work,
    },
    "jobs": {
        "id": field("id"),
        "state": field("state"),
        "job": _job,
        "queue": field("queue"),
        "worker": _name_in("worker"),
        "queued_at": _moment("queued_at"),
        "why": lambda row: row["waits_because"] or row["reason"],
    },
    "queues": {
        "name": field("name"),
        "paused": field("paused"),
        "waiting": field("waiting"),
        "held": field("held"),
        "held_slots": field("held_slots"),
        "concurrency_limit": field("concurrency_limit"),
        "workers": lambda row: f"{row['workers']['there']} there, {row['workers']['taking']} taking",
        "comment": field("pause_comment"),
    },
    "enrolment-tokens": {
        "key": field("key"),
        "name": field("name"),
        "usable": field("usable"),
        "queues": QUEUES,
        "team": field("team"),
        "replace": field("replace"),
        "created_by": field("created_by"),
        "expires_at": _moment("expires_at"),
        "worker": _name_in("worker"),
    },
    "changes": {
        "at": _moment("at"),
        "actor": field("actor"),
        "action": field("action"),
        "kind": field("kind"),
        "subject": field("subject"),
        "changed": _changed,
        "comment": field("comment"),
    },
}
CALLER: Mapping[str, Callable[[Row], Any]] = {
    "user": field("user"),
    "groups": lambda row: ", ".join(row["groups"]),
    "token": lambda row: row["token"] and row["token"]["name"],
    "expires_at": lambda row: row["token"] and row["token"]["expires_at"],
    "control_plane": field("control_plane"),
    "version": field("version"),
    "permissions": lambda row: ", ".join(row["permissions"]),
}
