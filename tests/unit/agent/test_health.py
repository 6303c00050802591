from __future__ import annotations

import time

import pytest

from agent.client import ApiError, Contact
from agent.health import stale_because


@pytest.fixture
def contact() -> Contact:
    return Contact(url="https://edge.example.com")


def test_before_it_is_registered_nothing_is_fresh(contact: Contact) -> None:
    assert stale_because(contact, registered=False, wait_seconds=0.0) == "not registered yet"
    contact.failed(ApiError("no answer from https://edge.example.com (refused)"))
    assert stale_because(contact, registered=False, wait_seconds=0.0).endswith("(refused)")


@pytest.mark.parametrize(("wait", "fresh", "stale"), [(50.0, 99.0, 101.0), (1.0, 9.0, 11.0)])
def test_contact_is_fresh_for_two_parked_polls(contact: Contact, wait: float, fresh: float, stale: float) -> None:
    contact.last_success_at = time.monotonic() - fresh
    assert stale_because(contact, registered=True, wait_seconds=wait) == ""
    contact.last_success_at = time.monotonic() - stale
    contact.trouble = "answers 502"
    said = stale_because(contact, registered=True, wait_seconds=wait)
    assert said == f"no answer of https://edge.example.com for {stale:.0f} s: answers 502"
