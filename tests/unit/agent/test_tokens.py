from __future__ import annotations

import hashlib

import pytest

from agent import tokens
from agent.errors import BadToken


def test_a_minted_token_is_one_that_the_agent_takes_and_no_two_are_alike() -> None:
    minted = tokens.mint()
    assert tokens.worker_token({"token": minted.token}) == minted.token
    assert minted != tokens.mint()


def test_the_control_plane_hears_the_key_and_a_digest_of_the_secrets_text() -> None:
    minted = tokens.mint()
    prefix, key, secret = minted.token.split("_")
    assert (prefix, key, len(key), len(secret)) == ("ec", minted.key, 12, 64)
    assert minted.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert tokens.of_token(minted.token) == minted


@pytest.mark.parametrize(
    "value", ["", "hello", "ec_key_secret", "ece_0123", f"ece_{'0' * 12}_{'0' * 63}", f"ece_{'0' * 12}_{'Z' * 64}"]
)
def test_what_is_no_whole_enrolment_token_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(BadToken) as caught:
        tokens.checked_enrolment_token(value, origin="standard input")
    assert "standard input" in str(caught.value)
    assert not value or value not in str(caught.value)
