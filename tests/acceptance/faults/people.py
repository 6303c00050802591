"""What people are shown of a job: by the admin, by the operator API, and by the log view of Airflow."""

from __future__ import annotations

import html
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import UUID

import requests

from airflow_bridge.task_logs import EdgeControlLogs
from tests.acceptance.faults.airflow_stand_in import Task
from tests.acceptance.faults.fault_site import FaultSite
from tests.acceptance.site import ROOT

PASSWORD = "tests only, tests only"


class Somebody:
    """Somebody who may see everything, logged in at the admin."""

    def __init__(self, site: FaultSite) -> None:
        self.site = site
        environ = {**site.environ, "DJANGO_SUPERUSER_PASSWORD": PASSWORD}
        command = [
            sys.executable,
            "manage.py",
            "createsuperuser",
            "--noinput",
            "--username",
            "eve",
            "--email",
            "eve@example.com",
        ]
        subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True)
        self.session = requests.Session()
        page = f"{site.url}/admin/login/"
        self.session.get(page, timeout=30)
        fields = {"username": "eve", "password": PASSWORD, "csrfmiddlewaretoken": self.session.cookies["csrftoken"]}
        self._get(self.session.post(page, fields, timeout=30, headers={"Referer": page}))

    def sees(self, task: Task) -> dict[str, str]:
        """What is shown of the task's newest job, by place."""
        job = task.tries[-1].job_id
        answer = self._get(self.session.get(f"{self.site.url}/admin/jobs_app/job/{job}/change/", timeout=30))
        log = self._get(self.session.get(f"{self.site.url}/admin/jobs_app/job/{job}/log/1/tail/", timeout=30))
        shown: dict[str, Any] = self._get(
            self.session.get(f"{self.site.url}/api/v1/fleet/jobs/{job}/", timeout=30)
        ).json()
        return {
            "job page": html.unescape(answer.text),
            "log page": log.headers["Log-Note"],
            "API": shown["log_missing"],
            "Airflow": self.airflow_shows(task),
        }

    def airflow_shows(self, task: Task) -> str:
        """Airflow's log view of the task's newest try: where the lines come from, and the lines."""
        name = task.name
        path = f"dag_id=d/run_id=r/task_id={name}/attempt={task.tries[-1].number}.log"
        with mock.patch.dict(os.environ, {"AIRFLOW__EDGECONTROL__DATABASE_URL": self.site.database_url}):
            logs = EdgeControlLogs()
            sources, streams = logs.stream(path, SimpleNamespace(dag_id="d"))
            lines = [line for stream in streams for line in stream]
            logs._store.close()
        return "\n".join([*sources, *lines[-3:]])

    @staticmethod
    def _get(answer: requests.Response) -> requests.Response:
        assert answer.ok, answer.text[:500]
        return answer


def job_id(task: Task) -> UUID:
    job = task.tries[-1].job_id
    assert job is not None
    return job
