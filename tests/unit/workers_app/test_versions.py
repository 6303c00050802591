from __future__ import annotations

import pytest

from workers_app.versions import is_outdated


@pytest.mark.parametrize(
    ("agent", "server"),
    [("0.1.0", "0.2.0"), ("0.9.9", "0.10.0"), ("0.99", "1.0"), ("1.2.3rc1", "1.3.0"), ("v0.1.0", "0.2.0")],
)
def test_an_agent_of_an_earlier_minor_version_is_outdated(agent: str, server: str) -> None:
    assert is_outdated(agent, server)


@pytest.mark.parametrize(
    ("agent", "server"),
    [
        ("0.1.0", "0.1.0"),
        ("0.1.0", "0.1.9"),
        ("0.1", "0.1.9"),
        ("0.1.0.dev3+local", "0.1.0"),
        ("0.10.0", "0.9.0"),
        ("1.0.0", "0.9.0"),
    ],
)
def test_a_patch_behind_or_anything_ahead_is_not_outdated(agent: str, server: str) -> None:
    assert not is_outdated(agent, server)


@pytest.mark.parametrize("unreadable", ["", " ", "unknown", "1", ".5", "x.y", "\u0660.\u0661", "9" * 5000 + ".1"])
def test_nobody_is_called_outdated_for_a_version_that_cannot_be_read(unreadable: str) -> None:
    assert not is_outdated(unreadable, "99.0.0")
    assert not is_outdated("0.0.1", unreadable)
