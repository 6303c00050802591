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


def test_staff_without_permission_sees_nothing(staff: Callable[..., Client], make_worker: Make) -> None:
    worker, nobody = make_worker(), staff()
    assert nobody.get(LIST).status_code == 403
    assert nobody.get(f"{LIST}{worker.pk}/change/").status_code == 403
    assert "/admin/workers_app/" not in text(nobody.get("/admin/"))


def test_without_a_login_there_is_only_the_login_page(http: None) -> None:
    assert Client().get(LIST)["Location"].startswith("/admin/login/")
