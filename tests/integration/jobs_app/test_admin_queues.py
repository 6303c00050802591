"""The list and the pages of queues."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape, unescape
from typing import Any
from urllib.parse import quote as percent

import pytest
from django.contrib.admin.utils import quote
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobs_app import admin_queues, figures, operations, queues
from jobs_app.models import Job, Queue
from tests.integration.people import OPS
from workers_app.models import Change

Make = Callable[..., Any]
Staff = Callable[..., Client]
LIST = "/admin/jobs_app/queue/"
STRANGE = [
    "a/b",
    "a//b/",
    'it\'s a "queue"',
    "<b>bold</b>",
    "Straße 7 % ?x=1&y#z",
    "🦊 _2F",
    "{{ x }}",
    "change",
    "a\\b",
]


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def address(name: str, part: str = "change") -> str:
    return reverse("admin:jobs_app_queue_change", args=[quote(name)]).removesuffix("change/") + f"{part}/"


def page(client: Client, name: str, part: str = "change") -> str:
    return text(client.get(address(name, part)))


def names(html: str) -> list[str]:
    """The queues of the list, in its order."""
    return [unescape(name) for name in re.findall(r'<span class="ec-host">([^<]*)', html)]


def row(html: str, name: str) -> str:
    (found,) = (part for part in html.split("<tbody")[1:] if f'"ec-host">{escape(name)}<' in part)
    return found.partition("</tbody>")[0]


def cell(html: str, name: str, column: str) -> str:
    """What a column says of a queue, without its tags."""
    found = re.search(rf'<td[^>]*class="[^"]*field-{column}\b[^>]*>(.*?)</td>', row(html, name), re.S)
    assert found
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", found[1])).split())


def cost(client: Client, url: str) -> int:
    with CaptureQueriesContext(connection) as queries:
        text(client.get(url))
    return len(queries)


def pause(name: str, comment: str = "cleaning") -> None:
    queues.pause([name], by=OPS, comment=comment)


# -- the list --------------------------------------------------------------------------------


def test_a_row_says_what_an_operator_asks(ops: Client, make_worker: Make, make_job: Make, long_ago: Make) -> None:
    worker = make_worker(queues=["press"])
    make_worker(queues=None, requested="maintenance", state="maintenance request")
    make_worker(queues=["press"], state="unknown")
    make_job(worker=worker, queue="press", slots=3)
    make_job(worker=worker, queue="press", state="claimed")
    make_job(worker=worker, queue="press", state="claimed")
    long_ago(make_job(queue="press"), queued_at=7300)
    make_job(queue="press")
    for state in ("success", "success", "failed", "revoked"):
        make_job(queue="press", state=state)
    long_ago(make_job(queue="press", state="success"), finished_at=4000)
    queues.set_limit(["press"], by=OPS, concurrency=5)
    pause("press", "the <line> is being cleaned")
    html = text(ops.get(LIST))
    says = {column: cell(html, "press", column) for column in ("waiting", "oldest", "claimed", "running", "slots")}
    assert says == {"waiting": "2", "oldest": "2 h 1 min", "claimed": "2", "running": "1", "slots": "5 of 5"}
    assert cell(html, "press", "served") == "2 1 takes jobs"
    assert cell(html, "press", "last_hour") == "3 1 failed or lost"
    condition = cell(html, "press", "condition")
    assert re.fullmatch(r"paused the <line> is being cleaned ops \d+ s ago", condition)
    assert "The limit is reached." in row(html, "press")


def test_a_row_marks_nothing_that_is_as_it_should_be(ops: Client, make_worker: Make) -> None:
    make_worker(queues=["press"])
    Queue.objects.remember(["press"])
    html = text(ops.get(LIST))
    columns = ("condition", "waiting", "oldest", "claimed", "running", "slots", "served", "last_hour")
    assert [cell(html, "press", column) for column in columns] == ["open", "0", "-", "0", "0", "0", "1", "0"]


def test_a_queue_in_which_jobs_wait_for_nobody_is_marked(ops: Client, make_worker: Make, make_job: Make) -> None:
    make_worker(queues=["press"])
    make_worker(queues=["gpu"], state="unknown")
    make_job(queue="press")
    make_job(queue="gpu")
    # A worker of the team serves it no more than one that is not there.
    make_job(queue="press-north", team_name="north")
    make_worker(queues=["press-north"])
    Queue.objects.remember(["empty"])
    html = text(ops.get(LIST))
    marked = {name: "nobody serves it" in cell(html, name, "condition") for name in names(html)}
    assert marked == {"empty": False, "gpu": True, "press": False, "press-north": True}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["a", "b", "c", "d"]),
        ("?paused=1", ["b", "d"]),
        ("?waiting=1", ["a", "b"]),
        ("?unserved=1", ["b"]),
        ("?paused=1&waiting=1", ["b"]),
        ("?paused=1&unserved=1&q=a", []),
        ("?q=D", ["d"]),
        ("?paused=2&waiting=no&unserved=", ["a", "b", "c", "d"]),
        ("?paused=%00", ["a", "b", "c", "d"]),
        ("?o=-1", ["d", "c", "b", "a"]),
        ("?o=-3", ["b", "a", "c", "d"]),
    ],
)
def test_filters_search_and_order(ops: Client, make_worker: Make, make_job: Make, query: str, found: list[str]) -> None:
    make_worker(queues=["a"])
    make_job(queue="a")
    make_job(queue="b")
    make_job(queue="b")
    make_job(queue="c", state="success")
    Queue.objects.remember(["d"])
    for name in ("b", "d"):
        pause(name)
    html = text(ops.get(LIST + query))
    assert names(html) == found
    assert ("Nothing fits" in html) is not found


def test_the_list_costs_the_same_with_hundreds_of_queues(
    ops: Client, make_worker: Make, make_job: Make, django_assert_max_num_queries: Any
) -> None:
    make_job(queue="press")
    few = cost(ops, LIST)
    for number in range(300):
        Queue.objects.remember([f"queue-{number}"])
    for number in range(0, 300, 10):
        make_job(queue=f"queue-{number}")
        make_job(queue=f"queue-{number}", worker=make_worker(queues=[f"queue-{number}"]))
        make_job(queue=f"queue-{number}", state="success")
        pause(f"queue-{number}")
    assert cost(ops, LIST) == few
    with django_assert_max_num_queries(18):
        text(ops.get(f"{LIST}?o=-3"))
    with django_assert_max_num_queries(22):
        text(ops.get(f"{LIST}?waiting=1&unserved=1&paused=1"))


def test_an_empty_list_says_how_queues_come_to_be(ops: Client, staff: Staff) -> None:
    html = text(ops.get(LIST))
    assert "No queues yet" in html
    assert "a job or a worker host first names it" in html
    assert reverse("admin:connect_machine") in html.partition("No queues yet")[2]
    assert reverse("admin:connect_machine") not in text(staff("view_queue").get(LIST)).partition("No queues yet")[2]


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRANGE)
def test_a_queue_of_any_name_is_listed_opened_and_operated(ops: Client, make_job: Make, name: str) -> None:
    job = make_job(queue=name)
    listed = text(ops.get(LIST))
    assert names(listed) == [name]
    href = re.search(r'<th[^>]*>.*?<a[^>]*href="([^"]*)"', row(listed, name), re.S)
    assert href
    html = text(ops.get(unescape(href[1])))
    for part in (html, page(ops, name, "live")):
        assert f"/admin/jobs_app/job/{job.pk}/change/" in part
        assert (
            f'href="/admin/jobs_app/job/?queue={percent(name, safe="").replace("%20", "+")}&amp;state=queued"' in part
        )
    assert f">{escape(name)}<" in listed
    assert "<b>bold" not in listed + html
    ops.post(address(name, "pause_queue"), {"comment": "why not"})
    assert Queue.objects.get(name=name).paused
    assert "why not" in page(ops, name)
    assert "Pause" in page(ops, name).partition("Changes</h2>")[2]


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_queue_whose_name_fits_no_address_is_operated_from_the_list(ops: Client, make_job: Make, name: str) -> None:
    make_job(queue=name)
    html = text(ops.get(LIST))
    assert "data-operation" not in html
    chosen = {"_chosen": json.dumps([name]), "comment": "stop"}
    ops.post(reverse("admin:jobs_app_queue_pause_queue_chosen"), chosen)
    assert Queue.objects.get(name=name).paused


def test_names_that_cannot_exist_are_nobodys(ops: Client) -> None:
    assert ops.get(f"{LIST}%00/change/").status_code == 302
    assert ops.get(f"{LIST}%00/live/").status_code == 404
    assert ops.get(f"{LIST}%00/pause_queue/").status_code == 302
    bulk = reverse("admin:jobs_app_queue_pause_queue_chosen")
    for chosen in ('["\\u0000"]', '["\\ud800"]', '[["x"]]', "7", "{", "null"):
        assert ops.post(bulk, {"_chosen": chosen, "comment": "x"}).status_code == 302
    picked = {"action": "pause_queue", "_selected_action": "\0"}
    assert ops.post(LIST, picked).status_code == 400


# -- the page ---------------------------------------------------------------------------------------


def test_the_page_says_what_is_and_renews_it(ops: Client, make_worker: Make, make_job: Make) -> None:
    serving = make_worker("press-7", queues=["press"], concurrency=2)
    make_worker("gone-1", queues=["press"], state="offline", reported="offline")
    make_worker("oven-1", queues=["oven"])
    make_job(worker=serving, queue="press", slots=2)
    make_job(worker=serving, queue="oven", slots=1)
    job = make_job(queue="press", dag_id="line", task_id="count")
    for part in ("change", "live"):
        html = page(ops, "press", part)
        assert "open" in html
        assert "press-7" in html
        assert not re.search("gone-1|oven-1", html)
        assert f'href="/admin/jobs_app/job/{job.pk}/change/">line.count try 0' in html
        assert "all 2 slots of press-7, the only worker of queue &#x27;press&#x27;, are taken" in html
        assert 'href="/admin/workers_app/worker/?queue=press"' in html
        assert re.search(r"idle</span>.*?</td>\s*<td>1</td>", html, re.S)
    assert f'data-live="{address("press", "live")}" data-live-seconds="3"' in page(ops, "press")
    pause("press", "a <b>break</b>")
    after = page(ops, "press", "live")
    assert "paused" in after
    assert "a &lt;b&gt;break&lt;/b&gt;" in after
    assert "queue &#x27;press&#x27; is paused: a &lt;b&gt;" in after


def test_the_first_waiting_jobs_are_those_that_are_handed_out_next(ops: Client, make_job: Make, long_ago: Make) -> None:
    expected = []
    for number in range(20):
        job = make_job(queue="press", slots=1 + number % 3, priority=1 + number // 10, team_name="ab"[number % 2])
        long_ago(job, queued_at=100 + number)
        expected.append(job)
    make_job(queue="other", priority=9)
    expected.sort(key=lambda job: (-job.priority, job.queued_at))
    html = page(ops, "press", "live")
    shown = re.findall(r"/admin/jobs_app/job/([0-9a-f-]{36})/change/", html)
    assert shown == [str(job.pk) for job in expected[: admin_queues.WAITING_SHOWN]]


def test_the_page_says_that_nobody_serves_it(ops: Client, make_job: Make) -> None:
    make_job(queue="gpu")
    html = page(ops, "gpu", "live")
    assert "no live worker host of their team serves this queue" in html
    assert "No live worker host serves this queue." in html
    assert "no worker is live" in html


def test_the_page_costs_the_same_whatever_waits_and_whoever_serves(
    ops: Client, make_worker: Make, make_job: Make
) -> None:
    make_job(queue="press")
    make_worker(queues=["press"])
    pause("press")
    few = cost(ops, address("press", "live"))
    for number in range(40):
        make_job(queue="press", slots=1 + number % 3)
        make_job(queue=f"queue-{number}", worker=make_worker(queues=None), state="running")
    assert cost(ops, address("press", "live")) == few <= 22
    html = page(ops, "press", "live")
    assert html.count('<td class="ec-why">') == admin_queues.WAITING_SHOWN
    assert html.count("/admin/workers_app/worker/") == admin_queues.WORKERS_SHOWN + 2
    assert "25 of 41 are shown." in html


def test_the_changes_of_a_queue_are_its_own(ops: Client, make_job: Make) -> None:
    make_job(queue="press")
    make_job(queue="oven")
    assert "Nothing has changed yet." in page(ops, "press")
    pause("press", "new rollers")
    pause("oven", "new bricks")
    changes = page(ops, "press").partition("Changes</h2>")[2]
    assert "new rollers" in changes
    assert "new bricks" not in changes


# -- operations -----------------------------------------------------------------------------------------


def test_a_menu_offers_what_makes_sense(ops: Client, make_job: Make) -> None:
    make_job(queue="press")
    make_job(queue="oven")
    pause("oven")

    def offered(html: str) -> set[str]:
        return set(re.findall(r'data-operation="(\w+)"', html))

    listed = text(ops.get(LIST))
    assert offered(row(listed, "press")) == {"pause_queue", "set_queue_concurrency"}
    assert offered(row(listed, "oven")) == {"resume_queue", "set_queue_concurrency"}
    assert offered(page(ops, "press")) == {"pause_queue", "set_queue_concurrency"}
    # Beside the reason of the pause, for another reason.
    assert offered(page(ops, "oven", "live")) == {"resume_queue", "set_queue_concurrency", "pause_queue"}


def test_operations_from_the_page_and_in_bulk(ops: Client, make_job: Make) -> None:
    for name in ("a/b", "c"):
        make_job(queue=name)
    refused = ops.post(address("a/b", "pause_queue"), {"comment": " "})
    assert "is needed" in text(refused)
    assert not Queue.objects.filter(paused=True).exists()
    confirmation = text(ops.post(LIST, {"action": "pause_queue", "_selected_action": ["a/b", "c"]}))
    chosen = unescape(re.findall(r'name="_chosen" value="([^"]*)"', confirmation)[0])
    bulk = reverse("admin:jobs_app_queue_pause_queue_chosen")
    said = text(ops.post(bulk, {"_chosen": chosen, "comment": "night"}, follow=True))
    assert set(Queue.objects.filter(paused=True, pause_comment="night", paused_by="ops")) == set(Queue.objects.all())
    assert "Pause" in said
    assert 'value="night"' in page(ops, "c", "pause_queue") or "night</textarea>" in page(ops, "c", "pause_queue")
    ops.post(address("a/b", "resume_queue"), {"comment": ""})
    assert list(Queue.objects.filter(paused=True)) == [Queue.objects.get(name="c")]
    ops.post(address("c", "set_queue_concurrency"), {"concurrency": "7"})
    assert Queue.objects.get(name="c").concurrency_limit == 7
    assert 'value="7"' in page(ops, "c", "set_queue_concurrency")
    ops.post(address("c", "set_queue_concurrency"), {"concurrency": ""})
    assert Queue.objects.get(name="c").concurrency_limit is None
    assert Change.objects.filter(subject_kind="queue", actor="ops").count() == 5


def test_who_may_see_and_who_may_act(staff: Staff, make_worker: Make, make_job: Make) -> None:
    worker = make_worker("press-7", queues=["press"])
    job = make_job(queue="press", dag_id="line")
    make_job(queue="press", worker=worker)
    pause("press", "new rollers")
    assert staff("view_job", "view_worker", "operate_queue").get(LIST).status_code == 403
    assert staff("view_job", "view_worker", "operate_queue").get(address("press", "live")).status_code == 403
    viewer = staff("view_queue")
    for html in (text(viewer.get(LIST)), page(viewer, "press"), page(viewer, "press", "live")):
        assert "new rollers" in html
        assert not re.search(
            f"data-operation|{job.pk}|press-7|/admin/jobs_app/job/|/admin/workers_app/worker/\\?", html
        )
    assert "Changes</h2>" not in page(viewer, "press")
    for part in (*(operation.name for operation in operations.QUEUES), "delete"):
        assert viewer.post(address("press", part), {"post": "yes", "comment": "x"}).status_code == 403
    assert viewer.get(f"{LIST}add/").status_code == 403
    assert Queue.objects.get().paused
    assert "press-7" in page(staff("view_queue", "view_worker"), "press")
    assert str(job.pk) in page(staff("view_queue", "view_job"), "press")
    operator = staff("view_queue", "operate_queue")
    assert 'popovertarget="operations-' in page(operator, "press")
    operator.post(address("press", "resume_queue"), {"comment": ""})
    assert not Queue.objects.get().paused


# -- what a page reads -------------------------------------------------------------------------------------


def test_with_more_ended_jobs_than_are_counted_an_hour_is_estimated(
    ops: Client, make_job: Make, long_ago: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MOST_ENDED", 4)
    for ago, state in ((10, "success"), (200, "failed"), (300, "success"), (600, "success"), (900, "success")):
        long_ago(make_job(queue="press", state=state), finished_at=ago)
    assert figures.ended_in_the_last_hour()["press"] == (24, 6, True)
    assert figures.ended_in_the_last_hour()["other"] == (0, 0, True)
    assert cell(text(ops.get(LIST)), "press", "last_hour") == "about 24 6 failed or lost"


def test_only_what_has_ended_lately_is_read(make_job: Make) -> None:
    make_job(state="success")
    statement = figures._ENDED.replace("%(most)s", "10").replace("%(seconds)s", "3600")
    statement = statement.replace("%(final)s", "'{failed,lost,refused,revoked,success}'")
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {statement}")
        assert "job_finished" in str(cursor.fetchall())


def test_queues_with_waiting_jobs_are_found_by_name(make_job: Make) -> None:
    for name in ("b", "a", "b", ""):
        make_job(queue=name)
    make_job(queue="c", state="success")
    assert figures.with_waiting_jobs() == ["", "a", "b"]
    assert figures.first_waiting("c", most=5) == []
    assert figures.first_waiting("a", most=5) == [Job.objects.get(queue="a", state="queued").pk]
