"""Operations as the admin shows them, on worker hosts; what each of them does is tested where it is decided."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.integration.people import OPS
from workers_app import enrolment, operations
from workers_app.models import Change, Worker

Make = Callable[..., Any]
Staff = Callable[..., Client]
LIST = "/admin/workers_app/worker/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


def address(worker: Worker, operation: str) -> str:
    return f"{LIST}{worker.pk}/{operation}/"


def choose(client: Client, operation: str, *workers: Worker, query: str = "", **more: Any) -> Any:
    """Choose an action for rows of the list."""
    form = {"action": operation, "_selected_action": [worker.pk for worker in workers]} | more
    return client.post(f"{LIST}{query}", form, follow=True)


def confirm(client: Client, operation: str, *workers: Worker, **said: Any) -> Any:
    """Send the form that `choose` shows for these."""
    form = {"_chosen": json.dumps([str(worker.pk) for worker in workers]), "_next": LIST} | said
    return client.post(f"{LIST}{operation}/", form, follow=True)


@pytest.mark.parametrize("operation", operations.WORKERS, ids=lambda operation: operation.name)
def test_each_operation_stands_in_the_row_on_the_page_and_among_the_actions(
    ops: Client, make_worker: Make, operation: operations.Operation
) -> None:
    # One can leave only what one is in.
    worker = make_worker(requested="shutdown" if operation is operations.CANCEL_SHUTDOWN else "maintenance")
    link = f'href="{address(worker, operation.name)}"'
    rows = text(ops.get(LIST))
    assert link in rows
    assert f'<option value="{operation.name}">{operation.label}</option>' in rows
    assert link in text(ops.get(f"{LIST}{worker.pk}/change/"))


@pytest.mark.parametrize("operation", operations.WORKERS, ids=lambda operation: operation.name)
def test_an_operation_is_hidden_from_and_refused_to_those_without_its_permission(
    staff: Staff, make_worker: Make, operation: operations.Operation
) -> None:
    worker = make_worker(state="offline", requested="maintenance")
    others = {other.permission for other in operations.WORKERS} - {operation.permission}
    nearly = staff("view_worker", *(permission.partition(".")[2] for permission in others))
    for page in (LIST, f"{LIST}{worker.pk}/change/"):
        assert not re.search(rf'"{operation.name}"|/{operation.name}/', text(nearly.get(page)))
    said = {"comment": "mine", "queues": "mine", "concurrency": "1"}
    assert nearly.get(address(worker, operation.name)).status_code == 403
    assert nearly.post(address(worker, operation.name), said).status_code == 403
    assert confirm(nearly, operation.name, worker, **said).status_code == 403
    assert 'name="_chosen"' not in text(choose(nearly, operation.name, worker))
    assert not Change.objects.exists()


def test_who_may_operate_but_not_look_cannot_operate_blindly(staff: Staff, make_worker: Make) -> None:
    worker = make_worker()
    assert staff("operate_worker").post(address(worker, "shutdown_worker")).status_code == 403
    assert fresh(worker).requested == "active"


def test_a_dialog_does_it_and_leads_back_with_a_message(ops: Client, make_worker: Make) -> None:
    worker = make_worker("press-7")
    page = f"{LIST}{worker.pk}/change/"
    dialog = text(ops.get(address(worker, "request_maintenance"), headers={"X-Dialog": "1", "Referer": page}))
    assert "<html" not in dialog
    assert f'name="_next" value="{page}"' in dialog
    form = {"comment": "new disk", "until": "2h", "_next": page}
    answer = ops.post(address(worker, "request_maintenance"), form, headers={"X-Dialog": "1"})
    assert answer.json() == {"go": page}
    assert "Request maintenance: 1 done." in text(ops.get(page))
    row = fresh(worker)
    assert (row.requested, row.requested_by, row.requested_comment) == ("maintenance", "ops", "new disk")
    assert abs(row.requested_until - timezone.now() - timedelta(hours=2)) < timedelta(minutes=1)
    assert Change.objects.get().actor == "ops"


def test_without_scripts_the_same_form_is_a_page(ops: Client, make_worker: Make) -> None:
    worker = make_worker("press-7")
    page = text(ops.get(address(worker, "exit_maintenance")))
    assert "<html" in page
    assert "press-7" in page
    answer = ops.post(address(worker, "set_worker_queues"), {"queues": "press, laser"}, follow=True)
    assert answer.redirect_chain == [(LIST, 302)]
    assert fresh(worker).queues_override == ["press", "laser"]


@pytest.mark.parametrize(
    ("operation", "said", "error"),
    [
        ("request_maintenance", {"comment": " ", "until": "2h"}, "Comment is needed."),
        ("request_maintenance", {"comment": "kept", "until": "soon"}, "Until must be a span such as 90m"),
        ("request_maintenance", {"comment": "kept", "until": "2020-01-01"}, "Until lies in the past."),
        ("add_worker_queues", {"queues": ", "}, "Queues is needed."),
        ("set_worker_concurrency", {"concurrency": "many"}, "Concurrency must be a whole number"),
    ],
)
def test_what_cannot_be_read_is_said_at_its_field_and_nothing_is_lost(
    ops: Client, make_worker: Make, operation: str, said: dict[str, str], error: str
) -> None:
    worker = make_worker()
    for headers in ({}, {"X-Dialog": "1"}):
        page = text(ops.post(address(worker, operation), said, headers=headers))
        assert error in page
        for value in said.values():
            assert value.strip() in page
    assert error in text(confirm(ops, operation, worker, **said))
    assert not Change.objects.exists()


def test_a_refusal_by_the_operation_itself_is_shown_in_the_form(
    ops: Client, make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read well and refused a moment later, as a span that has run out meanwhile.
    worker = make_worker()
    until = datetime.now(UTC) + timedelta(minutes=1)
    readings = iter([until, operations.InvalidParameter("lies in the past")])

    def moment(value: Any) -> Any:
        reading = next(readings)
        if isinstance(reading, Exception):
            raise reading
        return reading

    monkeypatch.setitem(operations.READERS, operations.Kind.MOMENT, moment)
    page = text(ops.post(address(worker, "request_maintenance"), {"comment": "new disk", "until": "1m"}))
    assert "Until lies in the past." in page
    assert "new disk" in page


def test_a_bulk_action_shows_what_is_chosen_and_is_done_only_when_confirmed(ops: Client, make_worker: Make) -> None:
    workers = [make_worker("press-1"), make_worker("press-2")]
    make_worker("oven-1")
    page = text(choose(ops, "request_maintenance", *workers, query="?q=press"))
    assert "2 worker hosts" in page
    assert "press-1" in page
    assert "press-2" in page
    assert "oven-1" not in page
    assert f'name="_next" value="{LIST}?q=press"' in page
    assert not Change.objects.exists()
    answer = confirm(ops, "request_maintenance", *workers, comment="new disks", _next=f"{LIST}?q=press")
    assert answer.redirect_chain == [(f"{LIST}?q=press", 302)]
    assert "Request maintenance: 2 done." in text(answer)
    assert Worker.objects.filter(requested="maintenance").count() == 2


def test_what_was_skipped_is_said_with_the_reason(ops: Client, make_worker: Make) -> None:
    resting, busy = make_worker("rests", requested="maintenance"), make_worker("works")
    page = text(confirm(ops, "exit_maintenance", resting, busy))
    assert "Exit maintenance: 1 done, 1 skipped (works: it is not in maintenance)." in page


def test_a_grave_action_on_several_wants_a_tick(ops: Client, make_worker: Make) -> None:
    workers = [make_worker(), make_worker()]
    assert "Yes, all 2" in text(choose(ops, "shutdown_worker", *workers))
    assert "Tick this when you mean all 2." in text(confirm(ops, "shutdown_worker", *workers))
    assert not Change.objects.exists()
    assert "Shut down: 2 done." in text(confirm(ops, "shutdown_worker", *workers, all_of_them="on"))
    assert "Yes, all" not in text(choose(ops, "request_maintenance", *workers))


def test_all_pages_of_the_list_can_be_chosen_at_the_price_of_one_row(ops: Client, make_worker: Make) -> None:
    def cost(count: int) -> int:
        for number in range(count):
            make_worker(f"press-{count}-{number:03}")
        with CaptureQueriesContext(connection) as queries:
            page = text(choose(ops, "request_maintenance", Worker.objects.first(), select_across="1"))
        assert f"{Worker.objects.count()} worker hosts" in page
        return len(queries)

    few = cost(2)
    assert cost(120) == few
    page = text(choose(ops, "request_maintenance", Worker.objects.first(), select_across="1"))
    assert "and 72 more" in page
    chosen = page.partition('name="_chosen" value="')[2].partition('"')[0].replace("&quot;", '"')
    ops.post(f"{LIST}request_maintenance/", {"_chosen": chosen, "comment": "all"})
    assert Worker.objects.filter(requested="maintenance").count() == 122


def test_what_comes_after_the_choice_is_not_part_of_it(ops: Client, make_worker: Make) -> None:
    chosen = make_worker()
    choose(ops, "request_maintenance", chosen, select_across="1")
    late = make_worker()
    confirm(ops, "request_maintenance", chosen, comment="only those that were shown")
    assert fresh(late).requested == "active"


def test_more_than_can_be_done_at_once_is_done_in_turns(
    ops: Client, make_worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers_app.admin_operations.MOST_AT_ONCE", 2)
    for number in range(5):
        make_worker(f"press-{number}")
    page = text(choose(ops, "request_maintenance", Worker.objects.first(), select_across="1"))
    assert "the first 2 of 5" in page


def test_removing_from_its_own_page_leads_to_the_list(ops: Client, make_worker: Make) -> None:
    worker = make_worker("gone", state="offline")
    page = f"{LIST}{worker.pk}/change/"
    answer = ops.post(address(worker, "remove_worker"), {"_next": page}, headers={"X-Dialog": "1"})
    assert answer.json() == {"go": LIST}
    assert not Worker.objects.exists()


def test_what_is_gone_meanwhile_is_no_error(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    Worker.objects.all().delete()
    for answer in (
        ops.get(address(worker, "request_maintenance"), follow=True),
        confirm(ops, "request_maintenance", worker, comment="late"),
        ops.get(f"{LIST}nonsense/request_maintenance/", follow=True),
    ):
        assert "does not exist any more" in text(answer)


@pytest.mark.parametrize("chosen", ["", "nonsense", "7", '["x"]', "[null]", "{}", "[[1]]", "[1e400]"])
def test_a_broken_choice_is_no_error(ops: Client, chosen: str) -> None:
    form = {"_chosen": chosen, "comment": "x"}
    assert "does not exist any more" in text(ops.post(f"{LIST}request_maintenance/", form, follow=True))


def test_nobody_is_led_to_another_site(ops: Client, make_worker: Make) -> None:
    form = {"_next": "https://evil.example/", "comment": "x"}
    assert ops.post(address(make_worker(), "request_maintenance"), form)["Location"] == LIST
    referred = ops.get(address(make_worker(), "request_maintenance"), headers={"Referer": "https://evil.example/"})
    assert "evil" not in text(referred)


def test_looking_at_a_dialog_changes_nothing(ops: Client, make_worker: Make) -> None:
    worker = make_worker(state="offline", requested="maintenance")
    for operation in operations.WORKERS:
        ops.get(address(worker, operation.name))
        ops.get(f"{LIST}{operation.name}/")
    assert not Change.objects.exists()


def test_names_are_shown_as_text(ops: Client, make_worker: Make) -> None:
    worker = make_worker("<b>Halle & 7</b>")
    for answer in (
        ops.get(LIST),
        ops.get(f"{LIST}{worker.pk}/change/"),
        ops.get(address(worker, "shutdown_worker"), headers={"X-Dialog": "1"}),
        choose(ops, "shutdown_worker", worker),
        confirm(ops, "exit_maintenance", worker),
    ):
        page = text(answer)
        assert "<b>Halle" not in page
        assert "&lt;b&gt;Halle &amp; 7&lt;/b&gt;" in page


def test_the_history_of_a_page_is_the_record(ops: Client, staff: Staff, make_worker: Make) -> None:
    worker = make_worker()
    confirm(ops, "request_maintenance", worker, comment="a new disk")
    token, _ = enrolment.create(name="press-7", by=OPS)
    page = f"/admin/workers_app/enrolmenttoken/{token.pk}/change/"
    record = "/admin/workers_app/change/?subject_kind__exact=enrolment&amp;subject_id__exact="
    assert f"{record}{token.pk}" in text(ops.get(page))
    assert record not in text(staff("view_enrolmenttoken").get(page))
    assert "a new disk" in text(ops.get(f"{LIST}{worker.pk}/history/", follow=True))
    assert staff("view_worker").get(f"{LIST}{worker.pk}/history/")["Location"] == LIST
