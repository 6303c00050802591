"""The control plane's table of lists and operations, as the commands need it.

`python -m deploy.operator_table` writes its file. It is read at every call of Airflow's command line, and so with
nothing but the standard library.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("operations.json")
#: Filters that say how rows are shown or name one of them; they choose none of many.
_NO_CHOICE = ("name", "ordering")


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    name: str
    help: str
    several: bool
    yes_or_no: bool
    choices: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    name: str
    kind: str
    help: str
    #: It has to be on the command line, even if it is empty.
    must_be_said: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    name: str
    label: str
    help: str
    #: It ends or deletes something.
    grave: bool
    parameters: list[Parameter]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Something that the control plane has many of: worker hosts, jobs, queues ..."""

    #: In the API's addresses.
    path: str
    one: str
    many: str
    #: The field that requests and answers name them by.
    named_by: str
    names: str
    #: What the API says of a name that nobody has.
    unknown: str
    #: The list has an end that is worth waiting for; those that only grow have none.
    countable: bool
    #: As many rows as one request gets.
    page: int
    #: Filters that count where none are named one by one.
    meant: dict[str, str]
    filters: list[Filter]
    operations: list[Operation]

    @property
    def choices(self) -> list[Filter]:
        """The filters by which many are chosen for an operation."""
        return [each for each in self.filters if each.name not in _NO_CHOICE]


@cache
def kinds() -> tuple[Kind, ...]:
    """All there are, in the API's order."""
    return tuple(_kind(each) for each in json.loads(FILE.read_text(encoding="utf-8")))


def kind(path: str) -> Kind:
    return next(each for each in kinds() if each.path == path)


def _kind(read: dict[str, Any]) -> Kind:
    filters = [Filter(**each) for each in read.pop("filters")]
    operations = [
        Operation(**{**each, "parameters": [Parameter(**given) for given in each["parameters"]]})
        for each in read.pop("operations")
    ]
    return Kind(**read, filters=filters, operations=operations)
