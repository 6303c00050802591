"""All three programs as real processes and real SQL; of Airflow, only the supervisor's call and its API are stand-ins.

The bridge's store writes the jobs, `manage.py serve` hands them out, `python -m agent run` takes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.acceptance.site import Site
from tests.integration.agent.conftest import Agent
from tests.integration.agent.control_plane import ControlPlane


def test_jobs_go_through_all_three_programs_and_their_logs_arrive_byte_exact(
    site: Site, airflow: ControlPlane, start_agent: Callable[..., Agent]
) -> None:
    early = site.enqueue({"seconds": 0.2, "bytes": 200_000}, {"state": "up_for_retry"})
    agent = start_agent(site.token("press-7"), "--queues", "floor", "--concurrency", "3")
    site.until(lambda: site.states()[early[0]] == "success")
    late = site.enqueue(*[{"seconds": 0.1}] * 10, {"state": "deferred"})
    site.until(lambda: not {"queued", "claimed", "running"} & set(site.states().values()))

    states = site.states()
    assert [states[job] for job in early] == ["success", "failed"]
    assert {states[job] for job in late} == {"success"}
    assert len(airflow.starts) == len(set(airflow.starts)) == 13

    site.until(lambda: not agent.held())
    jobs = site.rows("SELECT job.*, worker.name FROM edgecontrol.job JOIN edgecontrol.worker ON worker.id = worker_id")
    assert len(jobs) == 13
    for job in jobs:
        chunks = site.rows(
            'SELECT data FROM edgecontrol.log_chunk WHERE job_id = %s AND attempt = %s ORDER BY "offset"',
            job.id,
            job.attempt,
        )
        log = b"".join(chunk.data for chunk in chunks)
        assert hashlib.sha256(log).hexdigest() == job.log_sha256
        assert len(log) == job.log_size == job.log_final_size
        assert (job.name, job.token, job.attempt) == ("press-7", None, 1)
    outcomes = {job.airflow_outcome for job in jobs}
    assert outcomes == {"success", "up_for_retry", "deferred"}

    agent.signal(signal.SIGINT)
    assert agent.wait() == 0
    assert [row.state for row in site.rows("SELECT state FROM edgecontrol.worker")] == ["offline"]


def test_senders_that_stall_in_the_middle_take_nobodys_place(site: Site) -> None:
    """As machines do that are cut off while they ship a log: their connections stay open, and nothing more comes."""
    host, port = site.url.removeprefix("http://").split(":")
    head = f"POST /api/v1/edge/logs/{uuid.uuid4()}/1?offset=0 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 60000\r\n\r\n"
    with contextlib.ExitStack() as stalled:
        for _ in range(20):
            sender = stalled.enter_context(socket.create_connection((host, int(port))))
            sender.sendall(head.encode() + b"x" * 1000)
        assert site.healthy()


def test_a_job_of_several_slots_starts_soon_after_enough_of_them_are_free(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    agent = start_agent(site.token("press-7"), "--concurrency", "3")
    site.enqueue({"seconds": 2}, {"seconds": 2})
    site.until(lambda: len(agent.starts()) == 2)
    (large,) = site.enqueue({"seconds": 0.1}, slots=3)
    site.until(lambda: site.states()[large] == "success", seconds=12)


def test_a_revoked_job_stops_on_its_machine_and_a_newer_agent_fences_the_older(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    token = site.token("press-7")
    agent = start_agent(token)
    (job,) = site.enqueue({"seconds": 120})
    site.until(agent.starts)
    task = agent.starts()[0]["pid"]
    site.store.revoke([job], reason="no longer wanted")
    site.until(lambda: not agent.held())
    with pytest.raises(ProcessLookupError):
        os.kill(task, 0)
    assert site.states()[job] == "revoked"

    twin = start_agent(token, "--state-dir", str(agent.folder / "twin"))
    assert agent.wait() == 8
    assert "newer agent" in agent.stderr
    assert twin.process.poll() is None


def test_a_machine_without_room_rests_by_itself_and_an_operator_has_the_last_word(
    site: Site, start_agent: Callable[..., Agent]
) -> None:
    start_agent(site.token("press-7"), "--min-free-disk", "1000000TB")

    def worker() -> Any:
        (row,) = site.rows("SELECT state, requested, requested_comment FROM edgecontrol.worker")
        return row

    site.until(lambda: worker().state == "maintenance mode")
    assert "less than 1000000.0 TB" in worker().requested_comment
    (change,) = site.rows("SELECT * FROM edgecontrol.change WHERE action = 'request_maintenance'")
    assert (change.actor_kind, change.comment) == ("automatic", worker().requested_comment)
    (job,) = site.enqueue({"seconds": 0.1})
    site.manage("exit_maintenance", "press-7")
    site.until(lambda: site.states()[job] == "success")
    assert worker().requested == "active"
