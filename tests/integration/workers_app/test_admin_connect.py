"""Connect a machine: from the form to the first heartbeat."""

from __future__ import annotations

import hashlib
import html
import re
import secrets
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse

from tests.integration.people import OPS
from workers_app import enrolment, registry
from workers_app.models import Change, EnrolmentToken, Worker

Make = Callable[..., Any]
Staff = Callable[..., Client]
TOKENS = "/admin/workers_app/enrolmenttoken/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return html.unescape(str(answer.content.decode()))


def connect(client: Client, **said: str) -> Any:
    return client.post(reverse("admin:connect_machine"), {"name": "press-7", "queues": "", "team_name": ""} | said)


def shown_token(page: str) -> str:
    found = re.search(r"ece_[0-9a-f]{12}_[0-9a-f]{64}", page)
    return found[0] if found else ""


def enrol(token: str) -> Worker:
    digest = hashlib.sha256(secrets.token_hex(32).encode()).hexdigest()
    return enrolment.enrol(token=token, key=secrets.token_hex(6), digest=digest)


def status(client: Client, token: EnrolmentToken) -> dict[str, str]:
    return dict(client.get(reverse("admin:machine_connecting_status", args=[token.pk])).json())


def test_the_form_leads_to_the_exact_commands(ops: Client) -> None:
    answer = connect(ops, queues="press, laser", team_name="north")
    token = EnrolmentToken.objects.get()
    assert (token.name, token.allowed_queues, token.team_name) == ("press-7", ["press", "laser"], "north")
    assert (token.created_by, token.replace) == ("ops", False)
    page = text(ops.get(answer["Location"]))
    for command in enrolment.commands("http://testserver", file=None):
        assert f"<code>{command}</code>" in page
    assert "15 min" in page
    assert enrol(shown_token(page)).name == "press-7"


def test_where_the_agent_is_offered_as_one_file_the_commands_fetch_and_check_it(ops: Client, agent_file: Path) -> None:
    sha256 = hashlib.sha256(agent_file.read_bytes()).hexdigest()
    form = text(ops.get(reverse("admin:connect_machine")))
    assert 'href="/agent/edge-agent.pyz"' in form
    assert f"<code>{sha256}</code>" in form
    page = text(ops.get(connect(ops)["Location"]))
    for command in (
        "curl -fLO http://testserver/agent/edge-agent.pyz",
        f"echo '{sha256}  edge-agent.pyz' | sha256sum --check",
        "python3 edge-agent.pyz enrol --url http://testserver",
        "python3 edge-agent.pyz run",
        enrolment.commands("http://testserver", file=None)[0],
    ):
        assert f"<code>{command}</code>" in page, command


def test_where_it_is_not_the_form_says_how_to_offer_it(ops: Client) -> None:
    form = text(ops.get(reverse("admin:connect_machine")))
    assert "make agent" in form
    assert "/agent/" not in form


def test_the_token_is_shown_once_and_made_once(ops: Client) -> None:
    address = connect(ops)["Location"]
    first = ops.get(address)
    assert shown_token(text(first))
    assert "no-store" in first["Cache-Control"]
    for again in (ops.get(address), ops.get(reverse("admin:connect_machine")), ops.get(TOKENS)):
        assert not shown_token(text(again))
    assert "cannot be shown again" in text(ops.get(address))
    assert EnrolmentToken.objects.count() == 1
    assert not any(shown_token(str(entry.after)) for entry in Change.objects.all())


def test_somebody_else_is_not_shown_the_token(ops: Client, staff: Staff) -> None:
    address = connect(ops)["Location"]
    assert not shown_token(text(staff("add_enrolmenttoken").get(address)))
    assert shown_token(text(ops.get(address)))


def test_the_token_never_stands_in_a_command(ops: Client) -> None:
    page = text(ops.get(connect(ops)["Location"]))
    token = shown_token(page)
    assert all(code in (token, "") or token not in code for code in re.findall(r"<code[^>]*>([^<]*)", page))


def test_machines_are_told_the_public_address(ops: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    public = settings.EDGECONTROL.model_copy(update={"public_url": "https://edge.example.com"})
    monkeypatch.setattr(settings, "EDGECONTROL", public)
    assert "enrol --url https://edge.example.com<" in text(ops.get(connect(ops)["Location"]))


def test_the_page_says_how_far_the_machine_has_come(ops: Client) -> None:
    page = text(ops.get(connect(ops)["Location"]))
    token = EnrolmentToken.objects.get()
    assert f'data-status-url="{reverse("admin:machine_connecting_status", args=[token.pk])}"' in page
    assert status(ops, token) == {"status": "waiting", "name": "press-7", "url": ""}
    worker = enrol(shown_token(page))
    url = reverse("admin:workers_app_worker_change", args=[worker.pk])
    assert status(ops, token) == {"status": "enrolled", "name": "press-7", "url": url}
    registry.register(
        worker=worker, introduction=registry.Introduction(session="00000000-0000-0000-0000-000000000001", boot_id="b")
    )  # type: ignore[arg-type]
    assert status(ops, token)["status"] == "connected"
    assert url in text(ops.get(reverse("admin:machine_connecting", args=[token.pk])))


def test_only_who_may_revoke_tokens_may_replace_a_worker(staff: Make, make_worker: Make) -> None:
    make_worker("press-7")
    assert "ask somebody who may revoke tokens" in text(connect(staff("add_enrolmenttoken"), replace="on"))
    assert not EnrolmentToken.objects.exists()


def test_a_machine_that_was_set_up_anew_is_not_connected_by_its_former_life(ops: Client, make_worker: Make) -> None:
    worker = make_worker("press-7", heard_seconds_ago=5, allowed_queues=["press"])
    page = text(connect(ops))
    assert "exists already" in page
    assert "This machine was set up anew" in page
    assert not EnrolmentToken.objects.exists()
    for said in ({"queues": "oven"}, {"team_name": "north"}):
        assert "keeps its queues and its team" in text(connect(ops, replace="on", **said))
    page = text(ops.get(connect(ops, replace="on")["Location"]))
    token = EnrolmentToken.objects.get()
    assert (token.replace, token.allowed_queues) == (True, ["press"])
    assert "--force" in page
    assert enrol(shown_token(page)).pk == worker.pk
    assert status(ops, token)["status"] == "enrolled"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"name": ""}, "required"),
        ({"name": "x" * 254}, "1 to 253"),
        ({"name": "a\tb"}, "printable"),
        ({"name": "a\0b"}, "Null characters"),
        ({"queues": "a,\x07"}, "cannot be shown"),
        ({"team_name": "x" * 300}, "at most 250"),
    ],
)
def test_what_will_not_do_is_said_at_its_field(ops: Client, said: dict[str, str], error: str) -> None:
    page = text(connect(ops, **{"queues": "kept"} | said))
    assert error in page
    assert not EnrolmentToken.objects.exists()


def test_a_link_may_bring_the_name_along(ops: Client) -> None:
    page = text(ops.get(reverse("admin:connect_machine"), {"name": "press <7>", "replace": "1"}))
    assert 'value="press <7>"' in page
    assert "set up anew" in page
    assert "set up anew" not in text(ops.get(reverse("admin:connect_machine")))


def test_only_those_with_the_permission_connect_machines(ops: Client, staff: Staff) -> None:
    connect(ops)
    token = EnrolmentToken.objects.get()
    looker = staff("view_worker", "view_enrolmenttoken")
    for name, args in (
        ("connect_machine", []),
        ("machine_connecting", [token.pk]),
        ("machine_connecting_status", [token.pk]),
    ):
        assert looker.get(reverse(f"admin:{name}", args=args)).status_code == 403
    assert connect(looker).status_code == 403
    assert "/connect/" not in text(looker.get("/admin/workers_app/worker/"))
    assert EnrolmentToken.objects.count() == 1
    assert connect(staff("add_enrolmenttoken"), name="other").status_code == 302


def test_the_status_names_a_page_only_to_those_who_may_see_it(ops: Client, staff: Staff) -> None:
    enrol(shown_token(text(ops.get(connect(ops)["Location"]))))
    token = EnrolmentToken.objects.get()
    assert status(staff("add_enrolmenttoken"), token) == {"status": "enrolled", "name": "press-7", "url": ""}


def test_unused_tokens_are_listed_and_revoked(ops: Client, staff: Staff) -> None:
    token, secret = enrolment.create(name="press-7", by=OPS)
    used, used_text = enrolment.create(name="press-8", by=OPS)
    enrol(used_text)
    page = text(ops.get(reverse("admin:connect_machine")))
    assert "press-7" in page
    assert "press-8" not in page
    assert "press-8" not in text(ops.get(f"{TOKENS}?usable=1"))
    every = text(ops.get(TOKENS))
    assert "press-8" in every
    assert secret.rpartition("_")[2] not in every
    assert f"{TOKENS}{token.pk}/revoke_enrolment_token/" in every
    assert f"{TOKENS}{used.pk}/revoke_enrolment_token/" not in every
    looker = staff("view_enrolmenttoken")
    assert looker.post(f"{TOKENS}{token.pk}/revoke_enrolment_token/").status_code == 403
    assert "Revoke: 1 done." in text(ops.post(f"{TOKENS}{token.pk}/revoke_enrolment_token/", follow=True))
    assert status(ops, token)["status"] == "revoked"
    with pytest.raises(enrolment.BadEnrolmentToken):
        enrol(secret)


def test_an_expired_token_is_called_so(ops: Client, long_ago: Callable[..., None]) -> None:
    token, _ = enrolment.create(name="press-7", by=OPS, valid_for=timedelta(hours=1))
    long_ago(token, expires_at=5)
    assert status(ops, token)["status"] == "expired"
    assert "expired" in text(ops.get(TOKENS))


def test_a_token_that_is_gone_is_no_error(ops: Client) -> None:
    assert ops.get(reverse("admin:machine_connecting", args=[7])).status_code == 404
    assert ops.get(reverse("admin:machine_connecting_status", args=[7])).status_code == 404


def test_an_enrolment_token_cannot_be_changed_added_or_deleted_by_hand(ops: Client) -> None:
    token, _ = enrolment.create(name="press-7", by=OPS)
    ops.post(f"{TOKENS}{token.pk}/change/", {"name": "other"})
    assert EnrolmentToken.objects.get().name == "press-7"
    assert ops.get(f"{TOKENS}add/").status_code == 403
    assert ops.post(f"{TOKENS}{token.pk}/delete/", {"post": "yes"}).status_code == 403
    page = text(ops.get(f"{TOKENS}{token.pk}/change/"))
    assert bytes(token.digest).hex() not in page
