"""Simulated agents: each a thread with one kept-alive connection that registers, parks its claim, confirms and reports.

They speak the real protocol and run nothing. The work around the measured moment is small on purpose, and
what is not on the measured path (confirm, report, the next claim) comes after the clock was read.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

SLOTS = 4
_WAIT_SECONDS = 50
_PREFIX = "/api/v1/edge/"

#: Called in the agent's thread with the id of each job and the perf_counter_ns at which the answer was in hand.
Arrival = Callable[[str, int], None]


class Agent:
    """One worker of the fleet."""

    def __init__(self, *, port: int, token: str, queues: list[str], arrival: Arrival) -> None:
        self._queues, self._arrival = queues, arrival
        self.session = uuid.uuid4()
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Edge-Session": str(self.session),
            "Content-Type": "application/json",
        }
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT_SECONDS + 20)
        self._revision = 0

    def register(self) -> None:
        introduction = {
            "session": str(self.session),
            "boot_id": "bench",
            "name": None,
            "queues": self._queues,
            "concurrency": SLOTS,
            "agent_version": "0.1.0",
            "airflow_version": "3.3.2",
            "protocol": 1,
            "sysinfo": {},
            "held": [],
        }
        self._revision = self._post("workers/register", introduction)["revision"]

    def work(self, stop: threading.Event) -> None:
        """Claim until told to stop; an answer without jobs is normal."""
        while not stop.is_set():
            self.step()

    def step(self) -> None:
        """One claim, and the life of what it brought."""
        answer = self._post(
            "jobs/claim",
            {
                "claim_id": str(uuid.uuid4()),
                "free_slots": SLOTS,
                "wait": _WAIT_SECONDS,
                "revision": self._revision,
            },
        )
        arrived = time.perf_counter_ns()
        jobs = [{"id": job["id"], "attempt": job["attempt"]} for job in answer["jobs"]]
        for job in jobs:
            self._arrival(job["id"], arrived)
        if answer["heartbeat_due"]:
            self._heartbeat()
        if jobs:
            self._post("jobs/confirm", {"jobs": jobs})
        for job in jobs:
            ending = {"attempt": job["attempt"], "state": "success", "exit_code": 0, "airflow_outcome": "success"}
            self._post(f"jobs/{job['id']}/report", ending)

    def close(self) -> None:
        self._connection.close()

    def _heartbeat(self) -> None:
        said = {
            "reported": "idle",
            "jobs_active": 0,
            "concurrency": SLOTS,
            "queues": self._queues,
            "sysinfo": None,
            "held": [],
        }
        self._revision = self._post("workers/heartbeat", said)["revision"]

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        self._connection.request("POST", _PREFIX + path, json.dumps(body).encode(), self._headers)
        response = self._connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} was answered {response.status}: {content[:300]!r}")
        return json.loads(content)


class Fleet:
    """Some agents at work."""

    def __init__(self, *, port: int, tokens: Sequence[str], queues: list[str], arrival: Arrival) -> None:
        self._agents = [Agent(port=port, token=token, queues=queues, arrival=arrival) for token in tokens]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[agent], daemon=True) for agent in self._agents]
        #: What went wrong in an agent's thread; it has ended then.
        self.failures: list[Exception] = []

    def start(self, connection: psycopg.Connection[Any]) -> None:
        """Register all and return once every one has sent its first claim and had the time to park."""
        for agent in self._agents:
            agent.register()
        for thread in self._threads:
            thread.start()
        claiming = "SELECT count(*) FROM edgecontrol.worker WHERE session = ANY (%s) AND claim_id IS NOT NULL"
        sessions = [agent.session for agent in self._agents]
        deadline = time.monotonic() + 30
        while connection.execute(claiming, [sessions]).fetchone() != (len(sessions),):
            if self.failures or time.monotonic() > deadline:
                raise RuntimeError(f"the agents did not come up: {self.failures or 'too slow'}")
            time.sleep(0.1)
        time.sleep(0.5)

    def stop(self, connection: psycopg.Connection[Any]) -> None:
        """End every parked poll by telling its worker that there is news, as an operator's wish would."""
        self._stop.set()
        connection.execute(
            """
            WITH told AS (UPDATE edgecontrol.worker SET revision = revision + 1 RETURNING id)
            SELECT count(pg_notify('edgecontrol_worker', json_build_object('worker', id)::text)) FROM told
            """
        )
        for thread in self._threads:
            thread.join(30)
        for agent in self._agents:
            agent.close()

    def _run(self, agent: Agent) -> None:
        try:
            agent.work(self._stop)
        except Exception as error:
            self.failures.append(error)
