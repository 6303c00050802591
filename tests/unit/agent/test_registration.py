"""Which refusals end an agent that registers."""

from __future__ import annotations

import pytest

from agent.client import NOT_OURS, ApiError
from agent.errors import BadConfig, NotLetThrough, Unreachable, WrongUrl
from agent.obstacles import Obstacle
from agent.registration import why_not

URL = "https://edge.example.com"


def end(error: ApiError, *, known: bool) -> type | None:
    found = why_not(error, url=URL, name=None, known=known)
    return None if found is None else type(found)


@pytest.mark.parametrize("status", [400, 403, 404, 407])
def test_a_gateways_page_ends_no_agent_that_has_been_connected(status: int) -> None:
    error = ApiError("page", status=status, code=NOT_OURS)
    assert end(error, known=True) is None
    assert end(error, known=False) is WrongUrl


def test_what_stands_in_the_way_ends_only_a_first_start() -> None:
    error = ApiError("refused", obstacle=Obstacle("a proxy wants a password", "give it", NotLetThrough))
    assert end(error, known=True) is None
    assert end(error, known=False) is NotLetThrough


def test_silence_ends_only_a_first_start() -> None:
    error = ApiError("refused", obstacle=Obstacle("Connection refused", "check", common=True))
    assert end(error, known=True) is None
    assert end(error, known=False) is Unreachable


def test_a_registration_that_the_control_plane_does_not_accept_is_a_wrong_setting() -> None:
    error = ApiError("no", status=400, code="invalid_request", body={"detail": "concurrency"})
    assert end(error, known=True) is BadConfig
