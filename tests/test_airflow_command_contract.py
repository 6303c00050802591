"""The commands of Airflow's command line spell everything as the control plane's tables and its API's schema do."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_config import ActionCommand
from airflow.cli.cli_parser import get_parser
from drf_spectacular.generators import SchemaGenerator

from airflow_bridge.cli import display, fleet_api
from airflow_bridge.cli.definition import get_commands
from airflow_bridge.cli.endings import MEANINGS
from airflow_bridge.cli.table import Kind, kinds
from deploy import operator_table
from jobs_app import operations as jobs_operations
from tests.test_documents import DOCUMENTS, ROOT, blocks
from workers_app import operation_views, operations
from workers_app.management import endings

TABLES = {
    "workers": operations.WORKERS,
    "enrolment-tokens": operations.ENROLMENTS,
    "jobs": jobs_operations.JOBS,
    "queues": jobs_operations.QUEUES,
}
#: What makes a row, and hands out a credential.
MAKING = {"create-worker": "workers", "create-enrolment-token": "enrolment-tokens"}
#: Which flag of these becomes which field.
FIELDS = {"minutes": "valid_for_seconds", "days": "token_days"}


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))


def of_schema(schema: Any, reference: Any) -> Any:
    return schema["components"]["schemas"][reference["$ref"].rpartition("/")[2]]["properties"]


@pytest.fixture(scope="module")
def commands() -> dict[str, ActionCommand]:
    (group,) = get_commands()
    assert group.name == "edgecontrol"
    return {each.name: each for each in group.subcommands}


def flags(command: ActionCommand) -> set[str]:
    return {argument.flags[-1].removeprefix("--").replace("-", "_") for argument in command.args}


def test_the_table_in_the_bridge_is_the_control_planes() -> None:
    written = operator_table.FILE.read_text()
    assert written == operator_table.text(), "write it anew: python -m deploy.operator_table"


def test_every_operation_is_a_command_with_its_parameters(commands: dict[str, ActionCommand]) -> None:
    for path, table in TABLES.items():
        for operation in table:
            command = commands[operation.name.replace("_", "-")]
            assert {parameter.name for parameter in operation.parameters} <= flags(command)
            assert f"list-{path}" in commands
            for argument in command.args:
                name = argument.flags[-1].removeprefix("--")
                wanted = next((each for each in operation.parameters if each.name == name), None)
                if wanted and wanted.required:
                    assert argument.kwargs["required"]


def test_no_command_stands_for_nothing(commands: dict[str, ActionCommand]) -> None:
    every = {operation.name.replace("_", "-") for table in TABLES.values() for operation in table}
    lists = {f"list-{kind.path}" for kind in kinds()}
    assert set(commands) == {*every, *lists, *MAKING, "whoami", "import-edge3"}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.path)
def test_every_filter_of_a_list_is_a_flag_of_its_command(
    commands: dict[str, ActionCommand], schema: Any, kind: Kind
) -> None:
    parameters = schema["paths"][f"{fleet_api.FLEET}{kind.path}/"]["get"]["parameters"]
    names = {each["name"] for each in parameters} - {"cursor", "offset"}
    assert flags(commands[f"list-{kind.path}"]) == {*names, "output", "url", "token_file"}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.path)
def test_every_column_is_read_from_fields_that_the_api_answers(schema: Any, kind: Kind) -> None:
    listing = schema["paths"][f"{fleet_api.FLEET}{kind.path}/"]["get"]["responses"]["200"]
    page = of_schema(schema, listing["content"]["application/json"]["schema"])
    fields = of_schema(schema, page["results"]["items"])
    read = set()

    class Row(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            read.add(name)
            parts = dict.fromkeys(("slots", "workers", "sysinfo", "before", "after"), Row())
            return {**parts, "dag_id": "d", "map_index": 1}.get(name)

        def get(self, name: str, default: Any = None) -> Any:
            return default

    for column in display.COLUMNS[kind.path].values():
        column(Row())
    assert read - {"used", "effective", "there", "taking"} <= set(fields)


@pytest.mark.parametrize("name", MAKING)
def test_what_makes_a_row_says_only_what_the_api_takes(
    commands: dict[str, ActionCommand], schema: Any, name: str
) -> None:
    body = schema["paths"][f"{fleet_api.FLEET}{MAKING[name]}/"]["post"]["requestBody"]["content"]["application/json"]
    said = {FIELDS.get(flag, flag) for flag in flags(commands[name])} - {"url", "token_file", "file"}
    assert said <= set(of_schema(schema, body["schema"]))


def test_one_request_names_as_many_as_the_api_takes() -> None:
    assert fleet_api.MOST_NAMES == operation_views.MOST_NAMES


def test_exit_codes_mean_what_they_mean_for_manage_py() -> None:
    theirs = {code.value: text for code, text in endings.MEANINGS.items()}
    for code, text in MEANINGS.items():
        assert re.split("[,;]", text)[0] == re.split("[,;]", theirs[code.value])[0]


def test_every_exit_code_is_documented_with_its_meaning() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "docs/airflow-cli.md").read_text(), re.M)
    assert {int(code): meaning for code, meaning in rows} == {code.value: text for code, text in MEANINGS.items()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_line_in_the_documents_can_be_typed(path: Path) -> None:
    for line in blocks(path):
        for rest in re.findall(r"\bairflow (edgecontrol [^`\n]+)", line):
            get_parser().parse_args(shlex.split(rest, comments=True))


def test_no_help_would_be_read_as_a_colour_or_a_variable(commands: dict[str, ActionCommand]) -> None:
    for command in commands.values():
        for text in [command.help, *(argument.kwargs.get("help", "") for argument in command.args)]:
            assert not re.search(r"(?<!\\)\[[a-z#/@]|(?<!%)%(?![%(])", text.replace("%%", "")), text
