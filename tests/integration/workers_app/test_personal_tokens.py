"""Personal tokens: who is recognised by one, how long, and that no secret is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from tests.integration.people import OPS
from workers_app import personal_tokens
from workers_app.models import Change, PersonalToken
from workers_app.personal_tokens import BadPersonalToken

Make = Callable[..., Any]

GARBAGE = [
    "",
    "ecp",
    "ecp__",
    "ecp_key_",
    "ecp__secret",
    "ec_key_secret",
    "ECP_key_secret",
    "ecp_%_%",
    "ecp_' OR 1=1 --_x",
    "ecp_" + "a" * 10_000 + "_b",
    "ecp_\u00ff_\u00fd",
]


@pytest.fixture
def maria(db: None) -> User:
    return User.objects.create_user("maria", is_staff=True)


def test_a_token_finds_its_owner(maria: User) -> None:
    otto = User.objects.create_user("otto", is_staff=True)
    tokens = {personal_tokens.issue(user=user, name="script", by=OPS)[1]: user for user in (maria, otto, maria)}
    assert len(tokens) == 3
    for text, user in tokens.items():
        assert re.fullmatch(r"ecp_[0-9a-f]{12}_[0-9a-f]{64}", text)
        assert personal_tokens.recognise(text).user == user
        assert personal_tokens.recognise(f" {text} ").user == user


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_refused_without_an_error(maria: User, text: str) -> None:
    personal_tokens.issue(user=maria, name="script", by=OPS)
    with pytest.raises(BadPersonalToken):
        personal_tokens.recognise(text)


def test_every_refusal_has_the_same_words(maria: User) -> None:
    text = personal_tokens.issue(user=maria, name="script", by=OPS)[1]
    prefix, key, secret = text.split("_")
    refusals = set()
    for wrong in (text[:-1], text + "0", f"{prefix}_{key}_{'0' * 64}", f"{prefix}_{'0' * 12}_{secret}"):
        with pytest.raises(BadPersonalToken) as refused:
            personal_tokens.recognise(wrong)
        refusals.add(refused.value.detail)
    assert len(refusals) == 1


def test_a_token_ends_by_the_databases_clock(maria: User, long_ago: Make) -> None:
    token, text = personal_tokens.issue(user=maria, name="script", by=OPS, valid_for=timedelta(days=1))
    assert token.expires_at is not None
    assert token.expires_at - token.created_at == timedelta(days=1)
    personal_tokens.recognise(text)
    long_ago(token, expires_at=0.001)
    with pytest.raises(BadPersonalToken):
        personal_tokens.recognise(text)


def test_a_token_without_an_end_stays_until_it_is_revoked(maria: User) -> None:
    token, text = personal_tokens.issue(user=maria, name="script", by=OPS)
    assert token.expires_at is None
    assert personal_tokens.revoke([token.pk], by=OPS).done == [f"script ({token.key})"]
    with pytest.raises(BadPersonalToken):
        personal_tokens.recognise(text)
    assert personal_tokens.revoke([token.pk], by=OPS).skipped == [(f"script ({token.key})", "it is revoked already")]


@pytest.mark.parametrize("box", ["is_active", "is_staff"])
def test_a_token_of_somebody_who_may_no_longer_log_in_opens_nothing(maria: User, box: str) -> None:
    text = personal_tokens.issue(user=maria, name="script", by=OPS)[1]
    User.objects.filter(pk=maria.pk).update(**{box: False})
    with pytest.raises(BadPersonalToken):
        personal_tokens.recognise(text)
    maria.delete()
    assert not PersonalToken.objects.exists()


def test_its_use_is_noted_now_and_then(maria: User, long_ago: Make) -> None:
    token, text = personal_tokens.issue(user=maria, name="script", by=OPS)
    assert token.last_used_at is None
    personal_tokens.recognise(text)
    token.refresh_from_db()
    first = token.last_used_at
    assert first is not None
    long_ago(token, last_used_at=200)
    before = token.last_used_at
    personal_tokens.recognise(text)
    token.refresh_from_db()
    assert token.last_used_at == before
    long_ago(token, last_used_at=400)
    personal_tokens.recognise(text)
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert before is not None
    assert token.last_used_at > before


def test_the_secret_is_stored_nowhere_and_the_record_knows_who_got_it(maria: User) -> None:
    token, text = personal_tokens.issue(user=maria, name="script", by=OPS)
    secret = text.split("_")[2]
    with connection.cursor() as cursor:
        cursor.execute("SELECT personal_token::text FROM personal_token UNION ALL SELECT change::text FROM change")
        stored = "".join(row[0] for row in cursor.fetchall())
    assert token.key in stored
    assert secret not in stored
    personal_tokens.revoke([token.pk], by=OPS)
    actions = Change.objects.filter(subject_kind="personal token", subject_id=token.pk).order_by("pk")
    assert list(actions.values_list("action", "subject", "actor")) == [
        ("issue_token", "script", "ops"),
        ("revoke_token", "script", "ops"),
    ]
    assert actions[0].after == {"owner": "maria"}
