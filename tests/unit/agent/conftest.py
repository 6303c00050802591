"""A spool on a scratch disk, and a control plane that is a list of answers."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.client import ApiError, Contact
from agent.held import Held
from agent.jobs import Job
from agent.spool import Spool

SETTINGS = {"execution_api_url": "http://airflow/", "patience_seconds": 240, "hostname": "edge-1", "boot_id": "boot-1"}


class Plane:
    """Answers each call with the next of `answers` for it (a result or an error), or as if all were well."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, list[Any]] = {}
        self.log = b""
        self.contact = Contact(url="http://plane")

    def _answer(self, name: str, said: Any, usual: Any) -> Any:
        self.calls.append((name, said))
        queue = self.answers.get(name) or [usual]
        answer = queue.pop(0)
        if isinstance(answer, ApiError):
            self.contact.failed(answer)
            raise answer
        self.contact.ok()
        return answer

    def said(self, name: str) -> list[Any]:
        return [said for called, said in self.calls if called == name]

    def append_log(self, job_id: str, attempt: int, *, offset: int, data: bytes) -> int:
        size = self._answer("log", (offset, len(data)), None)
        if size is None:
            self.log = self.log[:offset] + data
            return len(self.log)
        return int(size)

    def report(self, job_id: str, body: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = self._answer("report", body, {"state": body["state"]})
        return result

    def confirm(self, jobs: list[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = self._answer("confirm", jobs, {"confirmed": jobs, "refused": []})
        return result

    def heartbeat(self, body: dict[str, Any], *, read_seconds: float) -> dict[str, Any]:
        result: dict[str, Any] = self._answer("heartbeat", body, {"requested": "active", "revision": 1, "gone": []})
        return result


def refusal(status: int | None, code: str = "", **body: Any) -> ApiError:
    return ApiError(f"answers {status} {code}", status=status, code=code, body=body)


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(spool=Spool(state_dir=tmp_path), concurrency=4)


@pytest.fixture
def add_job(held: Held) -> Callable[..., Job]:
    """Hold a job that was offered; keywords override the offer."""

    def add(**more: Any) -> Job:
        offer = {
            "id": str(uuid.uuid4()),
            "attempt": 1,
            "kind": "ExecuteTask",
            "queue": "default",
            "slots": 1,
            "log_path": "dag/attempt=1.log",
            "workload": {"token": "secret"},
        } | more
        job = held.spool.add(offer, settings=SETTINGS)
        held.add(job)
        return job

    return add


def write_log(job: Job, data: bytes) -> None:
    job.log_file.parent.mkdir(parents=True, exist_ok=True)
    with job.log_file.open("ab") as file:
        file.write(data)
