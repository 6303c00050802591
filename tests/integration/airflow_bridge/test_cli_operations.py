"""Every operation of the control plane's tables can be done from Airflow's command line, as through the API.

The cases are those by which the admin, the API and `manage.py` are compared, so a new operation is compared here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.integration.airflow_command import URL, airflow
from tests.integration.test_three_faces import CASES, EVERY, Faces, Subjects, api, entry, faces, of, row
from workers_app import personal_tokens
from workers_app.models import Change, PersonalToken
from workers_app.operations import Operation

__all__ = ["api", "faces"]


@pytest.fixture
def token_file(api: APIClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A further token of the API's own caller."""
    from tests.integration.people import OPS

    _, text = personal_tokens.issue(user=PersonalToken.objects.get().user, name="laptop", by=OPS)
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(text)
    monkeypatch.setenv("EDGECONTROL_TOKEN_FILE", str(file))
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL", URL)
    return file


@pytest.mark.usefixtures("token_file")
@pytest.mark.parametrize(("kind", "operation"), **of(EVERY))
def test_the_command_does_what_the_api_does(
    faces: Callable[..., Faces], kind: type[Subjects], operation: Operation
) -> None:
    case, here = CASES[operation.name], faces(kind, operation)

    def command(chosen: list[Any], name: str, given: Mapping[str, str]) -> str:
        flags = [part for parameter, text in given.items() for part in (f"--{parameter.replace('_', '-')}", text)]
        names = [here.subjects.name(subject) for subject in chosen]
        ran = airflow(operation.name.replace("_", "-"), *names, *flags, "-o", "json")
        assert ran.code == 0, ran
        assert (sorted(ran.json["done"]), ran.json["skipped"]) == (sorted(names), [])
        return ran.out

    results = []
    for letter, act in (("a", here.api_many), ("b", command)):
        chosen = [here.subjects.make(f"{letter}-{number}", **case.subject) for number in (1, 2)]
        older = list(Change.objects.values_list("pk", flat=True))
        act(chosen, f"{letter}-", case.given)
        changes = {each.subject_id: each for each in Change.objects.exclude(pk__in=older)}
        assert {(each.actor_kind, each.actor, each.origin) for each in changes.values()} == {
            ("person", "ops", "127.0.0.1")
        }
        results.append([(row(kind.model, each.pk), entry(changes[str(each.pk)])) for each in chosen])
    assert results[0] == results[1]
