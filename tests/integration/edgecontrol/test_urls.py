"""What the URL surface shows besides the API itself: schema, docs, the way to the admin, and the tables behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.urls import get_resolver

Make = Callable[..., Any]


def test_the_schema_is_valid_and_complete_without_a_warning(db: None, tmp_path: Path) -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))
    text = (tmp_path / "schema.yml").read_text()
    for path in (
        "health",
        "workers/register",
        "workers/heartbeat",
        "jobs/claim",
        "jobs/confirm",
        "jobs/{job_id}/report",
        "logs/{job_id}/{attempt}",
    ):
        assert f"/api/v1/edge/{path}:" in text
    assert "workerToken" in text
    assert "Edge-Session" in text


def test_the_models_and_the_migrations_agree(db: None) -> None:
    call_command("makemigrations", "--check", "--dry-run", verbosity=0)


def test_the_project_has_no_complaint_about_itself(db: None) -> None:
    call_command("check", fail_level="WARNING")


def test_the_docs_page_loads_nothing_from_elsewhere(http: None) -> None:
    answer = Client().get("/api/v1/docs")
    page = answer.content.decode()
    assert answer.status_code == 200
    assert "swagger-ui" in page
    assert "/api/v1/schema" in page
    assert "https://" not in page


def test_everything_that_the_docs_page_needs_is_served(http: None) -> None:
    page = Client().get("/api/v1/docs").content.decode()
    needed = {part.split('"')[0] for part in page.split('"') if part.startswith("/static/")}
    assert needed
    assert {Client().get(path).status_code for path in needed} == {200}


@pytest.mark.parametrize("page", ["docs", "schema"])
def test_whatever_credential_is_shown_the_documentation_is_open(http: None, page: str) -> None:
    headers = {"Authorization": "Bearer ec_of-an-agent"}
    assert Client(headers=headers, raise_request_exception=False).get(f"/api/v1/{page}").status_code == 200


def test_the_schema_is_served(http: None) -> None:
    answer = Client().get("/api/v1/schema")
    assert answer.status_code == 200
    assert b"openapi: 3" in answer.content


def test_the_bare_address_leads_to_the_admin(http: None) -> None:
    assert Client().get("/")["Location"] == "/admin/"


def test_an_unknown_page_is_a_page_and_an_unknown_endpoint_is_not(http: None) -> None:
    page, endpoint = Client().get("/nothing"), Client().get("/api/v1/nothing")
    assert (page.status_code, endpoint.status_code) == (404, 404)
    assert page["Content-Type"].startswith("text/html")
    assert endpoint.json()["code"] == "not_found"


def test_an_unknown_host_is_refused(http: None) -> None:
    assert Client().get("/api/v1/edge/health", headers={"Host": "evil.example.com"}).status_code == 400


@pytest.mark.parametrize("pattern", get_resolver().url_patterns, ids=str)
def test_every_address_has_a_name(pattern: Any) -> None:
    assert getattr(pattern, "name", None) or getattr(pattern, "namespace", None) or str(pattern.pattern) == ""
