"""What `maintenance` says of the agent that it has asked."""

from __future__ import annotations

from typing import Any

import pytest

from agent.commands.maintenance import sentence

KNOWN: dict[str, Any] = {
    "pid": 7,
    "requested": "active",
    "requested_by": "",
    "requested_by_name": "",
    "wish_untold": False,
    "not_working": "",
    "jobs": [],
}


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "active: it takes jobs"),
        ({"not_working": "the disk is full"}, "active: it takes no jobs yet: the disk is full"),
        (
            {"not_working": "no answer", "wish_untold": True},
            "active; the control plane has not heard it yet (no answer), and will as soon as it answers",
        ),
        ({"requested": "maintenance"}, "maintenance: no job runs"),
        (
            {"requested": "maintenance", "jobs": [{"state": "running"}]},
            "maintenance: no new jobs, 1 job still to end",
        ),
        ({"pid": None}, "no agent runs; active is wanted from its next start on"),
    ],
)
def test_it_says_what_holds_now(known: dict[str, Any], said: str) -> None:
    assert sentence({**KNOWN, **known}) == said
