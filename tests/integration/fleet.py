"""People at the operator API, by the groups that they are in."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.models import Group, User
from rest_framework.test import APIClient

from tests.integration.people import OPS
from workers_app import personal_tokens

FLEET = "/api/v1/fleet/"
GROUPS = ("viewer", "operator", "administrator")


class Fleet:
    """The operator API as somebody's script calls it."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.token = personal_tokens.issue(user=user, name="script", by=OPS)[1]
        self.client = APIClient(raise_request_exception=False)
        self.client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.token}")

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(FLEET + path, query)

    def post(self, path: str, *args: Any, **body: Any) -> Any:
        """`body` is the JSON of the request; whatever else may be given as the one positional argument."""
        # Encoded here, so that a test can say what no serializer would.
        said = json.dumps(args[0] if args else body)
        return self.client.post(FLEET + path, said, content_type="application/json")

    def names(self, path: str, **query: Any) -> list[str]:
        answer = self.get(path, **query)
        assert answer.status_code == 200, answer.content
        return [row["name"] for row in answer.json()["results"]]


def member(*groups: str, name: str | None = None, **columns: Any) -> User:
    user = User.objects.create_user(name or "-".join(("somebody", *groups)), **{"is_staff": True, **columns})
    user.groups.set(Group.objects.filter(name__in=groups))
    assert user.groups.count() == len(groups)
    return user


def refused(answer: Any, status: int, code: str) -> str:
    """Check the one form of refusals; return its sentence."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"code", "detail"}
    assert body["code"] == code
    assert body["detail"]
    return str(body["detail"])


def good(answer: Any, status: int = 200) -> Any:
    assert answer.status_code == status, answer.content
    return answer.json()
