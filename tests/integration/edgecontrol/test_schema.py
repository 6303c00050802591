"""The API's documentation: nothing is offered that it does not explain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator

from jobs_app import operations as jobs_operations
from workers_app import operations
from workers_app.operations import Operation

FLEET = "/api/v1/fleet/"
TABLES: dict[str, tuple[Operation, ...]] = {
    "workers": operations.WORKERS,
    "jobs": jobs_operations.JOBS,
    "queues": jobs_operations.QUEUES,
    "enrolment-tokens": operations.ENROLMENTS,
}


@pytest.fixture(scope="module")
def schema() -> Any:
    return json.loads(json.dumps(SchemaGenerator().get_schema(public=True)))


def endpoints(schema: Any, prefix: str = "/api/v1/") -> Iterator[tuple[str, str, Any]]:
    for path, methods in schema["paths"].items():
        if path.startswith(prefix):
            for method, endpoint in methods.items():
                yield path, method, endpoint


def test_every_endpoint_of_operators_names_the_permission_that_it_needs(schema: Any) -> None:
    named = {}
    for path, method, endpoint in endpoints(schema, FLEET):
        if path == f"{FLEET}me":
            assert "Needs no permission." in endpoint["description"]
            continue
        named[path, method] = endpoint["description"].rpartition("Needs the permission `")[2].removesuffix("`.")
    assert all(permission.split(".")[0] in ("workers_app", "jobs_app") for permission in named.values()), named
    assert named[f"{FLEET}workers/", "get"] == "workers_app.view_worker"
    assert named[f"{FLEET}jobs/{{id}}/log/{{attempt}}/", "get"] == "jobs_app.view_job"
    assert named[f"{FLEET}enrolment-tokens/", "post"] == "workers_app.add_enrolmenttoken"
    assert named[f"{FLEET}workers/", "post"] == "workers_app.add_worker"


@pytest.mark.parametrize(
    ("kind", "operation"),
    [(kind, each) for kind, table in TABLES.items() for each in table],
    ids=lambda each: getattr(each, "name", each),
)
def test_every_operation_is_explained_for_one_and_for_many_with_a_request_and_an_answer(
    schema: Any, kind: str, operation: Operation
) -> None:
    for path, many in ((f"{FLEET}{kind}/{{id}}/{operation.name}/", False), (f"{FLEET}{kind}/{operation.name}/", True)):
        endpoint = schema["paths"][path]["post"]
        assert operation.help in endpoint["description"]
        assert operation.permission in endpoint["description"]
        assert endpoint["tags"] == [kind]
        names = {parameter.name for parameter in operation.parameters} | ({"names"} if many else set())
        if names:
            body = endpoint["requestBody"]["content"]["application/json"]
            fields = schema["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
            assert set(fields["properties"]) == names
            assert set(fields.get("required", ())) == {
                *(parameter.name for parameter in operation.parameters if parameter.required),
                *(["names"] if many else []),
            }
            (example,) = body["examples"].values()
            assert set(example["value"]) == names
            for parameter in operation.parameters:
                assert fields["properties"][parameter.name]["description"] == parameter.help
                parameter.read(example["value"][parameter.name])
        (answer,) = endpoint["responses"]["200"]["content"]["application/json"]["examples"].values()
        assert set(answer["value"]) == {"done", "skipped"}


def test_every_parameter_of_a_list_is_described(schema: Any) -> None:
    lists = [path for path, method, _ in endpoints(schema, FLEET) if method == "get" and path.count("/") == 5]
    assert len(lists) == 5
    for path in lists:
        parameters = schema["paths"][path]["get"]["parameters"]
        assert {"limit", "search", "ordering"} <= {parameter["name"] for parameter in parameters}
        assert all(parameter.get("description") or parameter["schema"].get("description") for parameter in parameters)
        (limit,) = (parameter for parameter in parameters if parameter["name"] == "limit")
        assert str(limit["schema"]["maximum"]) in limit["description"]


def test_every_endpoint_tells_the_form_of_its_refusals(schema: Any) -> None:
    form = schema["components"]["schemas"]["Refusal"]
    assert set(form["required"]) == {"code", "detail"}
    for path, method, endpoint in endpoints(schema):
        codes = {"400", "401", "403", "503"} | ({"409"} if method == "post" else set())
        assert codes <= set(endpoint["responses"]), path
        for code in codes:
            content = endpoint["responses"][code]["content"]["application/json"]
            assert content["schema"]["$ref"].endswith("/Refusal")


def test_agents_and_people_have_credentials_of_their_own(schema: Any) -> None:
    assert set(schema["components"]["securitySchemes"]) == {"workerToken", "personalToken", "cookieAuth"}
    for path, _, endpoint in endpoints(schema):
        names = {name for choice in endpoint.get("security", []) for name in choice}
        if path.startswith(FLEET):
            assert names == {"personalToken", "cookieAuth"}, path
        elif path.startswith("/api/v1/edge/"):
            assert names <= {"workerToken"}, path


def test_every_part_of_the_api_is_introduced(schema: Any) -> None:
    introduced = {tag["name"] for tag in schema["tags"] if tag["description"]}
    used = {tag for *_, endpoint in endpoints(schema) for tag in endpoint["tags"]}
    assert used == introduced == {*TABLES, "changes", "me", "agent"}


def test_every_endpoint_has_a_name_of_its_own(schema: Any) -> None:
    names = [endpoint["operationId"] for *_, endpoint in endpoints(schema)]
    assert len(names) == len(set(names))
    assert not [name for name in names if name[-1].isdigit()]


def test_no_secret_of_a_job_or_of_a_token_is_offered(schema: Any) -> None:
    shown = schema["components"]["schemas"]
    assert not {"workload", "token"} & set(shown["Job"]["properties"])
    assert not {"digest", "enrolment_token"} & set(shown["EnrolmentToken"]["properties"])
    assert "enrolment_token" in shown["MadeEnrolmentToken"]["properties"]
    assert "worker_token" not in shown["Worker"]["properties"]
