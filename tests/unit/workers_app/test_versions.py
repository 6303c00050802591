from __future__ import annotations

import pytest

from workers_app import versions
from workers_app.versions import Verdict, is_outdated, judge


def verdict(agent: str, server: str, protocol: int | None = None) -> Verdict:
    return judge(agent, server_version=server, protocol=protocol).verdict


@pytest.mark.parametrize(
    ("agent", "server"),
    [("0.1.0", "0.2.0"), ("0.9.9", "0.10.0"), ("0.99", "1.0"), ("1.2.3rc1", "1.3.0"), ("v0.1.0", "0.2.0")],
)
def test_an_agent_of_an_earlier_minor_version_is_outdated(agent: str, server: str) -> None:
    assert is_outdated(agent, server)
    assert verdict(agent, server) is Verdict.OUTDATED


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
    assert judge(agent, server_version=server) == versions.Judgement(Verdict.OK)


@pytest.mark.parametrize("unreadable", ["", " ", "unknown", "1", ".5", "x.y", "\u0660.\u0661", "9" * 5000 + ".1"])
def test_nobody_is_called_outdated_for_a_version_that_cannot_be_read(unreadable: str) -> None:
    assert not is_outdated(unreadable, "99.0.0")
    assert not is_outdated("0.0.1", unreadable)


@pytest.mark.parametrize(
    ("server", "oldest", "refused"),
    [("0.5.2", "0.3.0", "0.2.9"), ("2.2.0", "2.0.0", "1.99.0"), ("2.1.0", "1.0.0", "0.99.0"), ("2.0.0", "1.0", "0.9")],
)
def test_agents_of_two_minor_versions_back_are_served_and_older_ones_refused(
    server: str, oldest: str, refused: str
) -> None:
    assert verdict(oldest, server) is Verdict.OUTDATED
    assert verdict(refused, server) is Verdict.REFUSED
    assert is_outdated(refused, server)


def test_the_first_releases_refuse_nobody() -> None:
    assert verdict("0.0.1", "0.2.0") is Verdict.OUTDATED


def test_a_protocol_that_is_not_understood_is_refused_whatever_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "PROTOCOL", 3)
    monkeypatch.setattr(versions, "OLDEST_PROTOCOL", 2)
    said = [verdict("0.1.0", "0.1.0", protocol) for protocol in (1, 2, 3, 4, None)]
    assert said == [Verdict.REFUSED, Verdict.OUTDATED, Verdict.OK, Verdict.OK, Verdict.OK]


def test_a_verdict_says_what_to_do() -> None:
    assert judge("0.1.0", server_version="0.2.0").text == (
        "agent 0.1.0 is older than control plane 0.2.0: it works, and should be upgraded"
    )
    assert judge("0.1.0", server_version="0.5.0").text == (
        "agent 0.1.0 is too old: control plane 0.5.0 works with agents from 0.3 on. "
        "Install a newer agent and start it again"
    )
