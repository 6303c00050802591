"""A list of the admin costs as many queries for a large fleet as for a small one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobs_app.models import Queue
from tests.integration.people import OPS
from workers_app import enrolment
from workers_app.audit import Entry, record

Make = Callable[..., Any]
#: The most queries of each page: session and person, filters, the rows and what they show, the sidebar's figures.
MOST = {
    "": 15,
    "workers_app/worker/": 14,
    "workers_app/worker/?state=idle&q=worker": 14,
    "workers_app/change/": 10,
    "workers_app/enrolmenttoken/": 10,
    "jobs_app/job/": 14,
    "jobs_app/job/?state=queued&state=running&queue=press": 14,
    "jobs_app/job/?q=tour": 17,
    "jobs_app/queue/": 16,
}


@pytest.fixture
def grow(make_worker: Make, make_job: Make) -> Callable[[int], None]:
    """So many more of everything."""

    def grow(count: int) -> None:
        start = Queue.objects.count()
        for number in range(start, start + count):
            worker = make_worker(queues=["press", f"queue-{number}"], team_name=f"team-{number % 3}")
            make_job(queue="press")
            make_job(worker=worker, queue=f"queue-{number}")
            make_job(worker=worker, state="failed", queue="press")
            enrolment.create(name=f"new-{number}", by=OPS)
            record([Entry(action="pause_queue", kind="queue", id=f"queue-{number}", name="x")], by=OPS)

    return grow


@pytest.mark.parametrize("page", MOST)
def test_a_page_costs_the_same_for_a_large_fleet(ops: Client, grow: Callable[[int], None], page: str) -> None:
    address = f"/admin/{page}"

    def cost() -> int:
        ops.get(address)
        with CaptureQueriesContext(connection) as queries:
            assert ops.get(address).status_code == 200
        return len(queries)

    grow(2)
    few = cost()
    grow(60)
    # One more where there is a second page now, and so something to count.
    assert cost() <= few + 1
    assert few < MOST[page]
