from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.integration.people import OPS
from workers_app import auth
from workers_app.models import Worker, WorkerToken

Make = Callable[..., Any]
LIST = "/admin/workers_app/worker/"


def text(answer: Any) -> str:
    assert answer.status_code == 200, answer.content[:500]
    return str(answer.content.decode())


def act(client: Client, action: str, *workers: Worker, **said: str) -> str:
    """Choose an action for these workers and return the page that follows."""
    form = {"action": action, "_selected_action": [worker.pk for worker in workers], "comment": ""} | said
    return text(client.post(LIST, form, follow=True))


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


def test_the_list_shows_the_fleet(ops: Client, make_worker: Make) -> None:
    make_worker("Halle <B>", queues=["press"], concurrency=8, concurrency_override=3, agent_version="1.2.3")
    page = text(ops.get(LIST))
    for part in ("Halle &lt;B&gt;", "press", "1.2.3", "idle", ">3<"):
        assert part in page


def test_the_list_costs_the_same_whatever_the_size_of_the_fleet(ops: Client, make_worker: Make) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            text(ops.get(LIST))
        return len(queries)

    make_worker()
    few = cost()
    for _ in range(40):
        make_worker()
    assert cost() == few <= 12


@pytest.mark.parametrize("name", ["site-7", "Straße 7 / Halle B", "🦊", "x" * 253])
def test_the_page_of_a_worker_renders_whatever_its_name(ops: Client, make_worker: Make, name: str) -> None:
    worker = make_worker(name, sysinfo={"os": "Linux"}, queues=None)
    page = text(ops.get(f"{LIST}{worker.pk}/change/"))
    assert name in page
    assert "Linux" in page


def test_no_page_shows_a_credential(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    secret = auth.issue(worker=worker, by=OPS).split("_")[2]
    digest = bytes(WorkerToken.objects.get().digest).hex()
    for address in (LIST, f"{LIST}{worker.pk}/change/", f"{LIST}{worker.pk}/history/"):
        page = text(ops.get(address))
        assert secret not in page
        assert digest not in page
        assert str(worker.session) not in page


def test_a_worker_cannot_be_changed_added_or_deleted_by_hand(ops: Client, make_worker: Make) -> None:
    worker = make_worker("mine")
    ops.post(f"{LIST}{worker.pk}/change/", {"name": "other", "requested": "shutdown", "state": "offline"})
    assert (fresh(worker).name, fresh(worker).requested, fresh(worker).state) == ("mine", "active", "idle")
    assert ops.get(f"{LIST}add/").status_code == 403
    assert ops.post(f"{LIST}{worker.pk}/delete/", {"post": "yes"}).status_code == 403
    ops.post(LIST, {"action": "delete_selected", "_selected_action": [worker.pk], "post": "yes"})
    assert Worker.objects.filter(pk=worker.pk).exists()


def test_maintenance_is_requested_with_a_comment(ops: Client, make_worker: Make) -> None:
    workers = [make_worker(), make_worker()]
    page = act(ops, "request_maintenance", *workers, comment=" new disk ")
    assert "Maintenance requested of 2 workers." in page
    row = fresh(workers[0])
    assert (row.requested, row.requested_by, row.requested_comment) == ("maintenance", "ops", "new disk")
    assert (row.state, row.revision) == ("maintenance request", workers[0].revision + 1)


@pytest.mark.parametrize("comment", ["", "   "])
def test_maintenance_without_a_comment_is_not_requested(ops: Client, make_worker: Make, comment: str) -> None:
    worker = make_worker()
    assert "needs a comment" in act(ops, "request_maintenance", worker, comment=comment)
    assert fresh(worker).requested == "active"


def test_leaving_maintenance_concerns_only_those_that_are_in_it(ops: Client, make_worker: Make) -> None:
    resting, leaving = make_worker(requested="maintenance", reported="maintenance"), make_worker(requested="shutdown")
    assert "Active requested of 1 workers." in act(ops, "exit_maintenance", resting, leaving)
    assert (fresh(resting).requested, fresh(leaving).requested) == ("active", "shutdown")
    assert fresh(resting).state == "maintenance exit"


def test_shutting_down(ops: Client, make_worker: Make) -> None:
    worker = make_worker()
    assert "Shutdown requested of 1 workers." in act(ops, "shut_down", worker)
    assert fresh(worker).state == "shutdown request"


def test_revoking_tokens_locks_the_machine_out(ops: Client, make_worker: Make) -> None:
    worker, other = make_worker(), make_worker()
    token, kept = auth.issue(worker=worker, by=OPS), auth.issue(worker=other, by=OPS)
    assert "1 tokens revoked." in act(ops, "revoke_tokens", worker)
    with pytest.raises(auth.BadToken):
        auth.recognise(token)
    auth.recognise(kept)


def test_removing_keeps_those_that_are_there_and_says_why(ops: Client, make_worker: Make, make_job: Make) -> None:
    gone, there, holding = make_worker(state="unknown"), make_worker("here"), make_worker("busy", state="unknown")
    make_job(worker=holding)
    page = act(ops, "remove", gone, there, holding)
    assert "1 workers removed." in page
    assert "Here is idle" in page
    assert "Busy still holds jobs" in page
    assert set(Worker.objects.values_list("pk", flat=True)) == {there.pk, holding.pk}


@pytest.mark.parametrize("action", ["request_maintenance", "exit_maintenance", "shut_down", "revoke_tokens", "remove"])
def test_somebody_who_may_only_look_cannot_act(staff: Callable[..., Client], make_worker: Make, action: str) -> None:
    worker = make_worker(state="offline", requested="maintenance")
    auth.issue(worker=worker, by=OPS)
    looker = staff("view_worker")
    assert worker.name in text(looker.get(LIST))
    looker.post(LIST, {"action": action, "_selected_action": [worker.pk], "comment": "mine"})
    assert (fresh(worker).requested, fresh(worker).requested_by) == ("maintenance", "")
    assert WorkerToken.objects.filter(revoked_at=None).count() == 1


def test_staff_without_permission_sees_nothing(staff: Callable[..., Client], make_worker: Make) -> None:
    worker, nobody = make_worker(), staff()
    assert nobody.get(LIST).status_code == 403
    assert nobody.get(f"{LIST}{worker.pk}/change/").status_code == 403
    assert "/admin/workers_app/" not in text(nobody.get("/admin/"))


def test_without_a_login_there_is_only_the_login_page(http: None) -> None:
    assert Client().get(LIST)["Location"].startswith("/admin/login/")
