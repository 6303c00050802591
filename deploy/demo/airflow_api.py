"""The few calls to Airflow's REST API that the demo needs."""

from __future__ import annotations

from typing import Any

import requests

#: States after which a task instance changes no more.
FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


class AirflowApi:
    """Airflow's public REST API as one user."""

    def __init__(self, url: str, *, user: str, password: str, seconds: float = 30) -> None:
        self.url = url
        #: How long an answer may take.
        self.seconds = seconds
        self.user = user
        self.password = password
        self.session = requests.Session()
        self.session.trust_env = False  # neither proxies nor ~/.netrc concern the loopback interface

    def is_up(self) -> bool:
        answer = self._ask("api/v2/version")
        return answer is not None and answer.ok

    def warm_up(self) -> bool:
        """Have the Execution API built; the first request takes seconds, more than a task would wait."""
        answer = self._ask("execution/health")
        return answer is not None and answer.ok

    def _ask(self, path: str) -> requests.Response | None:
        try:
            return self.session.get(f"{self.url}/{path}", timeout=1)
        except requests.RequestException:
            return None

    def login(self) -> None:
        answer = self.session.post(
            f"{self.url}/auth/token", json={"username": self.user, "password": self.password}, timeout=self.seconds
        )
        answer.raise_for_status()
        self.session.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def call(self, method: str, path: str, *, missing_ok: bool = False, **kwargs: Any) -> Any:
        """Send a request below /api/v2/; return the JSON of the answer, None for a 404 that is expected."""
        answer = self.session.request(method, f"{self.url}/api/v2/{path}", timeout=self.seconds, **kwargs)
        if missing_ok and answer.status_code == 404:
            return None
        if not answer.ok:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code} {answer.text}", response=answer)
        return answer.json() if answer.content else None

    def put(self, collection: str, key: str, body: dict[str, Any]) -> None:
        """Create a Variable or Connection, or bring the existing one to this content."""
        if self.call("PATCH", f"{collection}/{key}", missing_ok=True, json=body) is None:
            self.call("POST", collection, json=body)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return list(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances?limit=100")["task_instances"])

    def log(self, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int) -> list[Any]:
        """Return all lines of one try's log, as Airflow's UI would show them now."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self.call("GET", path, params={"map_index": map_index, "full_content": "true"})
        return list(answer["content"])

    def unfinished_runs(self, dag_id: str) -> list[str]:
        """Return the runs that a demo which was stopped in the middle left behind."""
        answer = self.call("GET", f"dags/{dag_id}/dagRuns", params={"state": ["queued", "running"]})
        return [run["dag_run_id"] for run in answer["dag_runs"]]
