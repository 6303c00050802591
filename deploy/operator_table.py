"""What `airflow edgecontrol` offers, as the control plane has it: `python -m deploy.operator_table` writes it anew.

The bridge runs without Django, so the tables of operations and the schema of the operator API come to it as one file. A
test compares the two, so nothing of it is ever written by hand.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "airflow_bridge" / "cli" / "operations.json"
_FLEET = "/api/v1/fleet/"
#: How a list is put together, not what is in it.
_OF_PAGES = {"limit", "offset", "cursor"}


def table() -> list[dict[str, Any]]:
    """Each kind of thing that has a list: its filters, and the operations on it. Needs Django's settings."""
    from drf_spectacular.generators import SchemaGenerator

    from edgecontrol.urls import fleet

    schema = json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))
    return [_kind(path, view, schema["paths"][f"{_FLEET}{path}/"]["get"]) for path, view, _ in fleet.registry]


def text() -> str:
    """As it stands in the file."""
    return json.dumps(table(), indent=1, ensure_ascii=False) + "\n"


def _kind(path: str, view: Any, listing: Any) -> dict[str, Any]:
    parameters = {each["name"]: each for each in listing["parameters"]}
    return {
        "path": path,
        "one": str(view.model._meta.verbose_name),
        "many": str(view.model._meta.verbose_name_plural),
        "named_by": getattr(view, "named_by", ""),
        "names": getattr(view, "names_help", ""),
        "unknown": getattr(view, "nobody", ""),
        "countable": "offset" in parameters,
        "page": parameters["limit"]["schema"]["maximum"],
        "meant": _meant(path),
        "filters": [_filter(each) for name, each in parameters.items() if name not in _OF_PAGES],
        "operations": [_operation(each) for each in getattr(view, "operations", ())],
    }


def _meant(path: str) -> dict[str, str]:
    """Which of those that are not named one by one an operation is for; nothing can be done to the others."""
    from jobs_app.management.job_command import OPEN

    return {"jobs": {"state": ",".join(OPEN)}, "enrolment-tokens": {"usable": "true"}}.get(path, {})


def _filter(parameter: Any) -> dict[str, Any]:
    schema = parameter["schema"]
    told = parameter.get("description") or schema.get("description", "")
    return {
        "name": parameter["name"],
        "help": " ".join(told.split()),
        "several": schema["type"] == "array",
        "yes_or_no": schema["type"] == "boolean",
        "choices": schema.get("items", schema).get("enum", []),
    }


def _operation(operation: Any) -> dict[str, Any]:
    from workers_app.management.operation_command import EMPTY_MEANS_SOMETHING

    return {
        "name": operation.name,
        "label": operation.label,
        "help": operation.help,
        "grave": operation.grave,
        "parameters": [
            {
                "name": each.name,
                "kind": each.kind.value,
                "help": each.help,
                "must_be_said": each.required or each.kind in EMPTY_MEANS_SOMETHING,
            }
            for each in operation.parameters
        ],
    }


def main() -> None:
    sys.path.insert(0, str(FILE.parents[2]))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "edgecontrol.settings")
    # The settings ask for a database; nothing here does.
    os.environ.setdefault("EDGECONTROL_DATABASE_URL", "postgresql://127.0.0.1/unused")
    import django

    django.setup()
    FILE.write_text(text())


if __name__ == "__main__":
    main()
