"""Users and groups as people who look after them meet them: what a group may do, and no way beyond one's own rights."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from edgecontrol.groups import ADMINISTRATOR, GROUPS, OPERATOR, VIEWER
from edgecontrol.people_admin import MAY
from tests.integration.people import OPS
from workers_app import personal_tokens

USERS, GROUPS_PAGE = "/admin/auth/user/", "/admin/auth/group/"
PASSWORD = "correct-horse-battery"


@pytest.fixture
def administrator(http: None) -> Client:
    """The browser of an administrator who is no superuser."""
    user = User.objects.create_user("ada", is_staff=True)
    user.groups.add(Group.objects.get(name=ADMINISTRATOR))
    client = Client()
    client.force_login(user)
    return client


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return unescape(answer.content.decode())


def group(name: str) -> str:
    return str(Group.objects.get(name=name).pk)


def form(user: User, **changes: Any) -> dict[str, Any]:
    """What the browser sends when somebody saves a user's page."""
    sent: dict[str, Any] = {
        "username": user.username,
        "first_name": "",
        "last_name": "",
        "email": "",
        "groups": [str(pk) for pk in user.groups.values_list("pk", flat=True)],
        **{name: "on" for name in ("is_active", "is_staff", "is_superuser") if getattr(user, name)},
    }
    return {name: value for name, value in (sent | changes).items() if value is not None}


def test_each_group_has_its_sentence() -> None:
    assert set(MAY) == set(GROUPS)


def test_the_page_of_a_user_says_what_each_group_may_do(administrator: Client) -> None:
    user = User.objects.create_user("vera")
    page = text(administrator.get(f"{USERS}{user.pk}/change/"))
    for name, may in MAY.items():
        assert f"<strong>{name}</strong> {may}" in page


def test_a_new_user_is_made_with_a_group_and_may_log_in(administrator: Client) -> None:
    page = text(administrator.get(f"{USERS}add/"))
    assert re.search(r'name="is_staff"[^>]*checked', page)
    sent = {
        "username": "otto",
        "password1": PASSWORD,
        "password2": PASSWORD,
        "groups": [group(OPERATOR)],
        "is_active": "on",
        "is_staff": "on",
    }
    assert administrator.post(f"{USERS}add/", sent).status_code == 302
    otto = Client()
    assert otto.login(username="otto", password=PASSWORD)
    assert otto.get("/admin/workers_app/worker/").status_code == 200
    assert User.objects.get(username="otto").has_perm("workers_app.operate_worker")


def test_a_weak_password_is_refused_at_its_field(administrator: Client) -> None:
    page = text(administrator.post(f"{USERS}add/", {"username": "otto", "password1": "12345", "password2": "12345"}))
    assert "too short" in page
    assert not User.objects.filter(username="otto").exists()


def test_a_group_is_changed_on_the_page_of_its_user(administrator: Client) -> None:
    user = User.objects.create_user("vera", is_staff=True)
    user.groups.add(Group.objects.get(name=VIEWER))
    administrator.post(f"{USERS}{user.pk}/change/", form(user, groups=[group(OPERATOR)]))
    assert [each.name for each in user.groups.all()] == [OPERATOR]


def test_rights_of_single_people_survive_a_save(administrator: Client) -> None:
    # They are not on the page; somebody may have given them by other means.
    user = User.objects.create_user("vera", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="revoke_job"))
    administrator.post(f"{USERS}{user.pk}/change/", form(user, first_name="Vera"))
    user = User.objects.get(pk=user.pk)
    assert user.first_name == "Vera"
    assert user.has_perm("jobs_app.revoke_job")


def test_a_locked_account_opens_nothing(administrator: Client) -> None:
    user = User.objects.create_user("vera", password=PASSWORD, is_staff=True)
    administrator.post(f"{USERS}{user.pk}/change/", form(user, is_active=None))
    assert not Client().login(username="vera", password=PASSWORD)


def test_who_may_no_longer_log_in_loses_the_session_at_the_api_too(administrator: Client) -> None:
    user = User.objects.create_user("vera", is_staff=True)
    user.groups.add(Group.objects.get(name=OPERATOR))
    browser = Client()
    browser.force_login(user)
    assert browser.get("/api/v1/fleet/workers").status_code == 200
    administrator.post(f"{USERS}{user.pk}/change/", form(user, is_staff=None))
    assert browser.get("/api/v1/fleet/workers").status_code == 403


def test_who_is_deleted_takes_their_tokens_along(administrator: Client) -> None:
    user = User.objects.create_user("vera", is_staff=True)
    _, token = personal_tokens.issue(user=user, name="nightly script", by=OPS)
    page = text(administrator.get(f"{USERS}{user.pk}/delete/"))
    assert "nightly script" in page
    administrator.post(f"{USERS}{user.pk}/delete/", {"post": "yes"})
    assert not User.objects.filter(pk=user.pk).exists()
    with pytest.raises(personal_tokens.BadPersonalToken):
        personal_tokens.recognise(token)


class TestSuperusers:
    """An administrator looks after people, and does not become more by it."""

    def test_an_administrator_makes_no_superuser(self, administrator: Client) -> None:
        user = User.objects.create_user("vera", is_staff=True)
        administrator.post(f"{USERS}{user.pk}/change/", form(user, is_superuser="on", first_name="Vera"))
        user.refresh_from_db()
        assert user.first_name == "Vera"
        assert not user.is_superuser
        sent = {"username": "otto", "password1": PASSWORD, "password2": PASSWORD, "is_superuser": "on"}
        administrator.post(f"{USERS}add/", sent)
        assert not User.objects.get(username="otto").is_superuser

    @pytest.mark.parametrize("page", ["change", "password", "delete"])
    def test_an_administrator_does_not_touch_a_superuser(self, administrator: Client, page: str) -> None:
        root = User.objects.create_superuser("root", password=PASSWORD)
        sent = {"change": form(root, is_active=None), "delete": {"post": "yes"}}.get(
            page, {"password1": "another-good-one", "password2": "another-good-one", "usable_password": "true"}
        )
        assert administrator.post(f"{USERS}{root.pk}/{page}/", sent).status_code == 403
        assert Client().login(username="root", password=PASSWORD)

    def test_an_administrator_does_not_delete_a_superuser_among_others(self, administrator: Client) -> None:
        root, vera = User.objects.create_superuser("root"), User.objects.create_user("vera")
        sent = {"action": "delete_selected", "_selected_action": [root.pk, vera.pk], "post": "yes"}
        administrator.post(USERS, sent)
        assert User.objects.filter(pk=root.pk).exists()

    def test_a_superuser_makes_another_one(self, ops: Client) -> None:
        user = User.objects.create_user("vera", is_staff=True)
        ops.post(f"{USERS}{user.pk}/change/", form(user, is_superuser="on"))
        user.refresh_from_db()
        assert user.is_superuser


def test_the_list_shows_the_groups_of_each_user_at_the_same_cost_for_all(
    ops: Client, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    for number in range(30):
        user = User.objects.create_user(f"user-{number}")
        user.groups.add(Group.objects.get(name=OPERATOR))
    with django_assert_max_num_queries(12):
        page = text(ops.get(USERS))
    assert len(re.findall(r"field-groups_of[^>]*>\s*operator\s*<", page)) == 30
    assert "superuser" in page


def test_a_group_offers_the_rights_that_have_an_effect_and_no_others(administrator: Client) -> None:
    page = text(administrator.get(f"{GROUPS_PAGE}{group(VIEWER)}/change/"))
    assert "Can remove workers that are gone" in page
    assert "Can delete worker host" not in page
    assert "log entry" not in page
    assert "session" not in page


def test_a_group_is_made_of_chosen_rights(administrator: Client) -> None:
    may = Permission.objects.get(codename="operate_queue")
    assert administrator.post(f"{GROUPS_PAGE}add/", {"name": "shift", "permissions": [may.pk]}).status_code == 302
    assert list(Group.objects.get(name="shift").permissions.all()) == [may]
    assert "shift" in text(administrator.get(GROUPS_PAGE))


def test_the_list_of_groups_counts_their_members(administrator: Client) -> None:
    page = text(administrator.get(GROUPS_PAGE))
    assert MAY[VIEWER] in page
    assert re.findall(r"field-members[^>]*>\s*(\d+)\s*<", page) == ["1", "0", "0"]


@pytest.mark.parametrize("name", [VIEWER, OPERATOR])
def test_others_do_not_look_after_people(http: None, name: str) -> None:
    user = User.objects.create_user("vera", is_staff=True)
    user.groups.add(Group.objects.get(name=name))
    client = Client()
    client.force_login(user)
    for address in (USERS, f"{USERS}add/", f"{USERS}{user.pk}/change/", GROUPS_PAGE):
        assert client.get(address).status_code == 403


def test_everybody_changes_their_own_password(http: None) -> None:
    user = User.objects.create_user("vera", password=PASSWORD, is_staff=True)
    client = Client()
    client.force_login(user)
    sent = {"old_password": PASSWORD, "new_password1": "another-good-one", "new_password2": "another-good-one"}
    assert client.post("/admin/password_change/", sent).status_code == 302
    assert Client().login(username="vera", password="another-good-one")
