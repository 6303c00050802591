"""What operators want of workers, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.integration.people import OPS
from workers_app import wishes
from workers_app.models import Worker
from workers_app.outcomes import Outcome

Make = Callable[..., Any]


def fresh(worker: Worker) -> Worker:
    return Worker.objects.get(pk=worker.pk)


class TestWishes:
    def test_a_wish_is_noted_with_who_when_and_why_and_announced(
        self, make_worker: Make, second_connection: psycopg.Connection[Any]
    ) -> None:
        second_connection.autocommit = True
        second_connection.execute("LISTEN edgecontrol_worker")
        worker, other = make_worker(reported="running", state="running"), make_worker()
        assert wishes.request_maintenance([worker.pk], by=OPS, comment="disk").done == [worker.name]
        row = fresh(worker)
        assert (row.requested, row.requested_by, row.requested_comment) == ("maintenance", "ops", "disk")
        assert (row.state, row.revision) == ("maintenance request", worker.revision + 1)
        assert row.requested_at is not None
        assert fresh(other).requested == "active"
        (notice,) = second_connection.notifies(timeout=5, stop_after=1)
        assert notice.payload == f'{{"worker": {worker.pk}}}'

    def test_the_last_wish_wins(self, make_worker: Make) -> None:
        worker = make_worker()
        wishes.shut_down([worker.pk], by=OPS)
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        wishes.exit_maintenance([worker.pk], by=OPS)
        assert (fresh(worker).requested, fresh(worker).state) == ("active", "idle")

    def test_a_wish_does_not_bring_a_silent_worker_back_to_life(self, make_worker: Make) -> None:
        worker = make_worker(state="unknown", reported="running")
        wishes.request_maintenance([worker.pk], by=OPS, comment="disk")
        assert fresh(worker).state == "offline maintenance"
        wishes.exit_maintenance([worker.pk], by=OPS)
        assert fresh(worker).state == "unknown"

    def test_unknown_workers_are_not_counted(self, db: None) -> None:
        assert wishes.shut_down([-1], by=OPS) == Outcome()


class TestRemove:
    @pytest.mark.parametrize("state", ["offline", "unknown", "offline maintenance"])
    def test_a_worker_that_is_gone_can_be_removed_and_its_history_stays(
        self, make_worker: Make, make_job: Make, state: str
    ) -> None:
        worker = make_worker(state=state)
        job = make_job(worker=worker, state="success")
        assert wishes.remove([worker.pk], by=OPS).done == [worker.name]
        assert not Worker.objects.filter(pk=worker.pk).exists()
        job.refresh_from_db()
        assert (job.state, job.worker_id) == ("success", None)

    @pytest.mark.parametrize("state", ["starting", "idle", "running", "maintenance mode", "terminating"])
    def test_a_worker_that_is_there_cannot(self, make_worker: Make, state: str) -> None:
        worker = make_worker(state=state)
        ((name, why),) = wishes.remove([worker.pk], by=OPS).skipped
        assert name == worker.name
        assert state in why
        assert Worker.objects.filter(pk=worker.pk).exists()

    @pytest.mark.parametrize("held", ["claimed", "running"])
    def test_a_worker_that_holds_jobs_cannot(self, make_worker: Make, make_job: Make, held: str) -> None:
        worker = make_worker(state="unknown")
        job = make_job(worker=worker, state=held)
        assert "holds jobs" in wishes.remove([worker.pk], by=OPS).skipped[0][1]
        job.refresh_from_db()
        assert job.worker_id == worker.pk
