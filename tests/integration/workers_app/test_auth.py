from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from tests.integration.people import OPS
from workers_app import auth
from workers_app.auth import BadToken
from workers_app.models import WorkerToken

Make = Callable[..., Any]

GARBAGE = [
    "",
    "ec",
    "ec_",
    "ec__",
    "ec_key",
    "ec_key_",
    "ec__secret",
    "_key_secret",
    "xx_key_secret",
    "EC_key_secret",
    "ec_key_secret_more",
    "ec_%_%",
    "ec_' OR 1=1 --_x",
    "ec_\u00ff\u00fe_\u00fd",
    "ec_" + "a" * 10_000 + "_b",
]


def test_a_token_finds_its_own_worker(make_worker: Make) -> None:
    first, second = make_worker(), make_worker()
    tokens = {auth.issue(worker=worker, by=OPS): worker for worker in (first, second, first)}
    assert {auth.recognise(token).pk == worker.pk for token, worker in tokens.items()} == {True}
    assert len(tokens) == 3


def test_a_token_reads_as_documented(make_worker: Make) -> None:
    assert re.fullmatch(r"ec_[0-9a-f]{12}_[0-9a-f]{64}", auth.issue(worker=make_worker(), by=OPS))


@pytest.mark.parametrize("token", GARBAGE)
def test_garbage_is_refused_without_an_error(make_worker: Make, token: str) -> None:
    auth.issue(worker=make_worker(), by=OPS)
    with pytest.raises(BadToken):
        auth.recognise(token)


def test_the_right_key_with_a_wrong_secret_is_refused_in_the_same_words(make_worker: Make) -> None:
    token = auth.issue(worker=make_worker(), by=OPS)
    other = auth.issue(worker=make_worker(), by=OPS)
    prefix, key, _ = token.split("_")
    refusals = []
    for wrong in (f"{prefix}_{key}_{other.split('_')[2]}", token[:-1], token + "0", f"{prefix}_nobody_x"):
        with pytest.raises(BadToken) as refused:
            auth.recognise(wrong)
        refusals.append(refused.value.detail)
    assert len(set(refusals)) == 1


def test_a_revoked_token_is_refused_and_the_worker_is_told(make_worker: Make) -> None:
    worker, other = make_worker(), make_worker()
    tokens, kept = [auth.issue(worker=worker, by=OPS) for _ in range(2)], auth.issue(worker=other, by=OPS)
    assert auth.revoke([worker.pk], by=OPS).done == [worker.name]
    for token in tokens:
        with pytest.raises(BadToken):
            auth.recognise(token)
    assert auth.recognise(kept) == other
    before = worker.revision
    worker.refresh_from_db()
    assert worker.revision == before + 1
    assert auth.revoke([worker.pk], by=OPS).skipped == [(worker.name, "it has no token to revoke")]


def test_a_token_made_after_a_revocation_works(make_worker: Make) -> None:
    worker = make_worker()
    auth.issue(worker=worker, by=OPS)
    auth.revoke([worker.pk], by=OPS)
    assert auth.recognise(auth.issue(worker=worker, by=OPS)) == worker


def test_an_expired_token_is_refused_by_the_databases_clock(make_worker: Make) -> None:
    token = auth.issue(worker=make_worker(), valid_for=timedelta(days=1), by=OPS)
    auth.recognise(token)
    WorkerToken.objects.update(expires_at=WorkerToken.objects.get().expires_at - timedelta(days=1, seconds=1))
    with pytest.raises(BadToken):
        auth.recognise(token)


def test_the_secret_is_stored_nowhere(make_worker: Make) -> None:
    token = auth.issue(worker=make_worker(), by=OPS)
    secret = token.split("_")[2]
    with connection.cursor() as cursor:
        cursor.execute("SELECT worker_token::text, encode(digest, 'hex') FROM worker_token")
        (row,) = cursor.fetchall()
    assert secret not in "".join(row)
    assert len(row[1]) == 64


def test_recognising_a_token_is_one_statement(make_worker: Make, django_assert_num_queries: Callable[..., Any]) -> None:
    token = auth.issue(worker=make_worker(), by=OPS)
    with django_assert_num_queries(1):
        auth.recognise(token)
