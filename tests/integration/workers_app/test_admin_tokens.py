"""Personal tokens: everybody's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from tests.integration.people import OPS
from workers_app import personal_tokens
from workers_app.models import Change, PersonalToken

Staff = Callable[..., Client]
LIST = "/admin/workers_app/personaltoken/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def make(client: Client, **said: str) -> Any:
    return client.post(f"{LIST}add/", {"name": "nightly", "days": "90"} | said)


def shown_token(page: str) -> str:
    found = re.search(r"ecp_[0-9a-f]{12}_[0-9a-f]{64}", page)
    return found[0] if found else ""


def of_somebody_else() -> PersonalToken:
    return personal_tokens.issue(user=User.objects.create_user("somebody-else"), name="theirs", by=OPS)[0]


def test_whoever_may_log_in_makes_their_own_token(staff: Staff) -> None:
    nobody = staff()
    assert "You have no personal tokens" in text(nobody.get(LIST))
    address = make(nobody)["Location"]
    token = PersonalToken.objects.get()
    assert abs(token.expires_at - timezone.now() - timedelta(days=90)) < timedelta(minutes=1)
    assert token.user.username.startswith("staff-")
    page = nobody.get(address)
    assert "no-store" in page["Cache-Control"]
    assert personal_tokens.recognise(shown_token(text(page))).pk == token.pk
    assert "nightly" in text(nobody.get(LIST))


def test_the_token_is_shown_once(staff: Staff) -> None:
    nobody = staff()
    address = make(nobody)["Location"]
    assert shown_token(text(nobody.get(address)))
    for again in (address, LIST, f"{LIST}{PersonalToken.objects.get().pk}/change/"):
        assert not shown_token(text(nobody.get(again)))
    assert PersonalToken.objects.count() == 1
    assert not any(shown_token(str(entry.after)) for entry in Change.objects.all())


def test_a_token_may_be_good_until_it_is_revoked(staff: Staff) -> None:
    make(staff(), days="")
    assert PersonalToken.objects.get().expires_at is None


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"name": " "}, "required"),
        ({"name": "x" * 101}, "at most 100"),
        ({"days": "0"}, "greater than or equal to 1"),
        ({"days": "1000000"}, "less than or equal to 3650"),
        ({"days": "soon"}, "whole number"),
    ],
)
def test_what_will_not_do_is_said_at_its_field(staff: Staff, said: dict[str, str], error: str) -> None:
    assert error in text(make(staff(), **said))
    assert not PersonalToken.objects.exists()


def test_people_see_and_revoke_only_their_own(staff: Staff) -> None:
    nobody, token = staff(), of_somebody_else()
    make(nobody, name="mine")
    mine = PersonalToken.objects.get(name="mine")
    page = text(nobody.get(LIST))
    assert "mine" in page
    assert "theirs" not in page
    revoke = f"{LIST}{token.pk}/revoke_personal_token/"
    assert "does not exist any more" in text(nobody.post(revoke, follow=True))
    chosen = {"_chosen": f'["{token.pk}", "{mine.pk}"]'}
    assert "Revoke: 1 done." in text(nobody.post(f"{LIST}revoke_personal_token/", chosen, follow=True))
    assert nobody.get(f"{LIST}made/{token.pk}/").status_code == 404
    assert nobody.get(f"{LIST}{token.pk}/change/").status_code == 302
    assert PersonalToken.objects.get(pk=token.pk).revoked_at is None
    assert PersonalToken.objects.get(pk=mine.pk).revoked_at is not None


def test_administrators_see_and_revoke_everybodys(staff: Staff) -> None:
    token, administrator = of_somebody_else(), staff("view_personaltoken", "change_personaltoken")
    assert "theirs" in text(administrator.get(LIST))
    assert "theirs" not in text(staff("view_personaltoken").get(LIST))
    page = text(administrator.post(f"{LIST}{token.pk}/revoke_personal_token/", follow=True))
    assert "Revoke: 1 done." in page
    assert f"{LIST}{token.pk}/revoke_personal_token/" not in page
    assert PersonalToken.objects.get().revoked_at is not None


def test_nobody_makes_a_token_for_somebody_else(ops: Client) -> None:
    other = User.objects.create_user("other")
    make(ops, user=str(other.pk))
    assert PersonalToken.objects.get().user.username == "ops"


def test_a_personal_token_cannot_be_changed_or_deleted_by_hand(ops: Client) -> None:
    token = of_somebody_else()
    ops.post(f"{LIST}{token.pk}/change/", {"name": "other"})
    assert PersonalToken.objects.get().name == "theirs"
    assert ops.post(f"{LIST}{token.pk}/delete/", {"post": "yes"}).status_code == 403
    assert bytes(token.digest).hex() not in text(ops.get(f"{LIST}{token.pk}/change/"))


def test_without_a_login_there_is_only_the_login_page(http: None) -> None:
    for address in (LIST, f"{LIST}add/", f"{LIST}made/1/"):
        assert Client().get(address)["Location"].startswith("/admin/login/")
