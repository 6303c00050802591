"""What the agent says of its control plane in its own log."""

from __future__ import annotations

import logging

import pytest

from agent.client import ApiError, Contact


def test_what_fails_again_and_again_between_successes_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    contact = Contact(url="http://plane")
    with caplog.at_level(logging.INFO):
        for _ in range(50):
            contact.failed(ApiError("answers 503", status=503))
            contact.ok()
    assert len(caplog.records) == 2
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
