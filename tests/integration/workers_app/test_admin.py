"""The list of worker hosts."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from jobs_app import states as job_states
from tests.integration.people import OPS
from workers_app import admin, auth
from workers_app.models import Worker, WorkerToken

Make = Callable[..., Any]
Staff = Callable[..., Client]
LIST = "/admin/workers_app/worker/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def names(page: str) -> list[str]:
    """The workers of the list, in its order."""
    return re.findall(r'<span class="ec-host">([^<]*)', page)


def row(page: str, name: str) -> str:
    (found,) = (part for part in page.split("<tbody")[1:] if f'"ec-host">{name}<' in part)
    return found.partition("</tbody>")[0]


def test_a_row_says_what_an_operator_asks(ops: Client, make_worker: Make, make_job: Make) -> None:
    worker = make_worker(
        "press-7",
        heard_seconds_ago=12,
        state="maintenance pending",
        requested="maintenance",
        requested_by="anna",
        requested_comment="new disk",
        requested_at=timezone.now() - timedelta(hours=2),
        requested_until=timezone.now() + timedelta(hours=3),
        queues=["press"],
        queues_override=["laser"],
        concurrency=8,
        concurrency_override=6,
        team_name="north",
        agent_version="0.0.1",
        airflow_version="3.3.2",
        sysinfo={"load_per_cpu": 0.5, "memory_used_percent": 69, "disk_used_percent": 97},
    )
    make_job(worker=worker, slots=3)
    make_job(worker=worker, state="claimed")
    make_job(worker=worker, state="success", slots=5)
    said = row(text(ops.get(LIST)), "press-7")
    for part in ("maintenance pending", "new disk", "anna", "2 h ago", "in 3 h", "laser", "north", "0.0.1", "3.3.2"):
        assert part in said
    assert re.search(r"1[2-9] s ago", said)
    assert "Takes no more jobs because of maintenance, and still holds some." in said
    assert "An operator chose these queues." in said
    assert "An operator chose 6; the agent says 8." in said
    assert "4 of 6" in said
    assert f'href="/admin/jobs_app/job/?worker={worker.pk}" class="ec-link">2<' in said
    assert "outdated" in said
    assert all(part in said for part in ("Load per CPU: 0.5", "Memory: 69%", "Disk: 97%"))


def test_jobs_are_linked_for_those_who_may_see_them(staff: Staff, make_worker: Make, make_job: Make) -> None:
    make_job(worker=make_worker())
    assert "/admin/jobs_app/job/?worker=" in text(staff("view_worker", "view_job").get(LIST))
    assert "/admin/jobs_app/job/?worker=" not in text(staff("view_worker").get(LIST))


def test_a_machine_that_never_called_is_not_said_to_have_left(ops: Client, make_worker: Make) -> None:
    worker = make_worker(state="offline", reported="offline")
    assert "said goodbye" in text(ops.get(LIST))
    Worker.objects.update(last_heartbeat=None)
    for address in (LIST, f"{LIST}{worker.pk}/change/"):
        page = text(ops.get(address))
        assert "No agent has called for it yet" in page
        assert "said goodbye" not in page


def test_a_row_marks_nothing_that_is_as_it_should_be(ops: Client, make_worker: Make) -> None:
    make_worker("press-7", agent_version="99.0", queues=None)
    said = row(text(ops.get(LIST)), "press-7")
    assert "every queue" in said
    assert "0 of 8" in said
    assert not re.search("outdated|An operator|new disk", said)


def test_the_list_costs_the_same_whatever_the_size_of_the_fleet(
    ops: Client, make_worker: Make, make_job: Make, django_assert_max_num_queries: Any
) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            text(ops.get(LIST))
        return len(queries)

    make_job(worker=make_worker())
    few = cost()
    for number in range(40):
        make_job(worker=make_worker(agent_version=f"0.0.{number}", queues=["press", f"queue-{number}"]))
    assert cost() == few
    with django_assert_max_num_queries(20):
        text(ops.get(LIST))


def test_what_is_held_is_what_the_other_app_calls_so() -> None:
    assert set(admin.HELD) == set(job_states.HELD)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("state=idle", ["a", "c"]),
        ("state=idle&state=unknown", ["a", "b", "c"]),
        ("queue=press", ["a", "c", "d"]),
        ("queue=laser", ["b", "c", "d"]),
        ("team=north", ["b"]),
        ("version=0.0.1", ["c"]),
        ("outdated=1", ["c"]),
        ("silent=1", ["b"]),
        ("q=a", ["a"]),
        ("silent=1&state=idle", []),
        ("state=nonsense", []),
        ("queue=%00", []),
        ("team=%00", []),
        ("version=%00", []),
        ("state=%00", []),
        ("silent=2&outdated=no", ["a", "b", "c", "d"]),
    ],
)
def test_filters_and_search_narrow_the_list(ops: Client, make_worker: Make, query: str, found: list[str]) -> None:
    make_worker("a", queues=["press"])
    make_worker("b", queues=["press"], queues_override=["laser"], state="unknown", team_name="north")
    make_worker("c", queues=None, agent_version="0.0.1")
    make_worker("d", queues=["press", "laser"], allowed_queues=None, state="offline", reported="offline")
    assert sorted(names(text(ops.get(f"{LIST}?{query}")))) == found


def test_the_filters_offer_what_there_is(ops: Client, make_worker: Make) -> None:
    make_worker(queues=["press"], queues_override=["laser"], allowed_queues=["oven"], team_name="north")
    page = text(ops.get(LIST))
    for value in ("press", "laser", "oven", "north", "maintenance exit"):
        assert f'value="{value}"' in page


def test_the_list_comes_back_as_its_reader_left_it(ops: Client, staff: Staff, make_worker: Make) -> None:
    make_worker("a")
    make_worker("b", state="unknown")
    ops.get(f"{LIST}?state=idle&o=-2&p=1")
    assert ops.get(LIST, headers={"Referer": "http://testserver/admin/"})["Location"] == f"{LIST}?state=idle&o=-2"
    page = text(ops.get(LIST, follow=True))
    assert names(page) == ["a"]
    assert "<span>state:</span> idle" in page
    # Somebody else's list is their own.
    assert names(text(staff("view_worker").get(LIST))) == ["a", "b"]


def test_clearing_the_list_is_remembered_too(ops: Client, make_worker: Make) -> None:
    make_worker("a")
    make_worker("b", state="unknown")
    for clear in (
        lambda: ops.get(f"{LIST}?_clear=1", follow=True),
        lambda: ops.get(LIST, headers={"Referer": f"http://testserver{LIST}?state=idle"}),
    ):
        ops.get(f"{LIST}?state=idle")
        assert names(text(clear())) == ["a", "b"]
        assert names(text(ops.get(LIST))) == ["a", "b"]


def test_a_wrong_address_is_not_remembered(ops: Client, make_worker: Make) -> None:
    make_worker("a")
    assert names(text(ops.get(f"{LIST}?nonsense=1", follow=True))) == ["a"]
    assert names(text(ops.get(LIST, follow=True))) == ["a"]
    ops.get(f"{LIST}?q={'x' * 3000}")
    assert names(text(ops.get(LIST, follow=True))) == ["a"]


@pytest.mark.parametrize("column", range(1, 9))
def test_the_list_can_be_put_in_the_order_of_its_columns(ops: Client, make_worker: Make, column: int) -> None:
    make_worker("a")
    make_worker("b", concurrency_override=2)
    assert sorted(names(text(ops.get(f"{LIST}?o={column}")))) == ["a", "b"]


def test_an_order_by_slots_counts_what_operators_chose(ops: Client, make_worker: Make) -> None:
    make_worker("a", concurrency=8, concurrency_override=1)
    make_worker("b", concurrency=4)
    page = text(ops.get(LIST))
    link = re.search(r'href="\?o=(\d+)[\d.-]*"[^>]*>\s*Slots', page)
    assert link
    assert names(text(ops.get(f"{LIST}?o={link[1]}"))) == ["a", "b"]
    assert names(text(ops.get(f"{LIST}?o=-{link[1]}"))) == ["b", "a"]


def test_an_empty_list_says_what_to_do_next(ops: Client, staff: Staff) -> None:
    page = text(ops.get(LIST))
    assert "No worker hosts yet" in page
    assert "/connect/" in page
    looker = text(staff("view_worker").get(LIST))
    assert "No worker hosts yet" in looker
    assert "/connect/" not in looker
    assert "No worker hosts yet" not in text(ops.get(f"{LIST}?q=nobody"))


def test_whatever_a_machine_tells_is_shown_as_text(ops: Client, make_worker: Make) -> None:
    bad = "<script>alert(1)</script>"
    make_worker(
        bad,
        queues=[bad],
        team_name=bad,
        agent_version=bad,
        airflow_version=bad,
        requested="maintenance",
        requested_by=bad,
        requested_comment=bad,
        sysinfo={"load_per_cpu": bad, bad: bad},
    )
    page = text(ops.get(f"{LIST}?team={bad}"))
    assert bad not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 7


@pytest.mark.parametrize("sysinfo", [[], "x", 7, {"memory_used_percent": {}}])
def test_a_list_survives_whatever_a_machine_tells(ops: Client, make_worker: Make, sysinfo: Any) -> None:
    make_worker("a", sysinfo=sysinfo)
    assert names(text(ops.get(LIST))) == ["a"]


def test_no_page_shows_a_credential(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    secret = auth.issue(worker=worker, by=OPS).split("_")[2]
    digest = bytes(WorkerToken.objects.get().digest).hex()
    for address in (LIST, f"{LIST}{worker.pk}/change/", f"{LIST}{worker.pk}/history/", f"{LIST}{worker.pk}/live/"):
        page = text(ops.get(address, follow=True))
        assert secret not in page
        assert digest not in page
        assert str(worker.session) not in page


def test_a_worker_cannot_be_changed_added_or_deleted_by_hand(ops: Client, make_worker: Make) -> None:
    worker = make_worker("mine")
    ops.post(f"{LIST}{worker.pk}/change/", {"name": "other", "requested": "shutdown", "state": "offline"})
    row = Worker.objects.get(pk=worker.pk)
    assert (row.name, row.requested, row.state) == ("mine", "active", "idle")
    assert ops.get(f"{LIST}add/").status_code == 403
    assert ops.post(f"{LIST}{worker.pk}/delete/", {"post": "yes"}).status_code == 403
    ops.post(LIST, {"action": "delete_selected", "_selected_action": [worker.pk], "post": "yes"})
    assert Worker.objects.filter(pk=worker.pk).exists()


def test_staff_without_permission_sees_nothing(staff: Staff, make_worker: Make) -> None:
    worker, nobody = make_worker(), staff()
    for address in (LIST, f"{LIST}{worker.pk}/change/", f"{LIST}{worker.pk}/live/", f"{LIST}{worker.pk}/samples/"):
        assert nobody.get(address).status_code == 403
    assert LIST not in text(nobody.get("/admin/"))


def test_without_a_login_there_is_only_the_login_page(http: None) -> None:
    assert Client().get(LIST)["Location"].startswith("/admin/login/")
