"""Those answers of Airflow's Execution API that a task of the real Task SDK needs; it says yes to everything."""

from __future__ import annotations

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOMENT = "2026-01-01T00:00:00+00:00"


class ExecutionApi:
    """Says yes to every start, heartbeat and final state, and remembers them. Close it."""

    def __init__(self) -> None:
        #: Method and path of every request; the final state of each task instance.
        self.requests: list[tuple[str, str]] = []
        self.states: dict[str, str] = {}
        #: Connections to test, and what was said of them, by the id of the test.
        self.connections: dict[str, dict[str, Any]] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/execution/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def workload(self, *, dag_file: str, dag_id: str, task_id: str, number: int = 0) -> dict[str, Any]:
        """What Airflow would queue for a new instance of this task."""
        ti = {
            "id": str(uuid.uuid4()),
            "dag_version_id": str(uuid.uuid4()),
            "task_id": task_id,
            "dag_id": dag_id,
            "run_id": "manual__1",
            "try_number": 1,
            "map_index": -1,
            "pool_slots": 1,
            "queue": "default",
            "priority_weight": 1,
            "context_carrier": {},
        }
        return {
            "type": "ExecuteTask",
            "token": "task-token",
            "ti": ti,
            "dag_rel_path": dag_file,
            "bundle_info": {"name": "dags-folder", "version": None},
            "log_path": f"task-{number}.log",
        }

    def callback(self, path: str, **kwargs: Any) -> dict[str, Any]:
        """What Airflow would queue for the callback of a missed deadline."""
        callback = {"id": str(uuid.uuid4()), "fetch_method": "import_path", "data": {"path": path, "kwargs": kwargs}}
        return {
            "type": "ExecuteCallback",
            "token": "callback-token",
            "callback": callback,
            "dag_rel_path": "short.py",
            "bundle_info": {"name": "dags-folder", "version": None},
            "log_path": f"executor_callbacks/short/manual__1/{callback['id']}",
        }

    def connection_test(self, **connection: Any) -> dict[str, Any]:
        """What Airflow would queue for the test of this connection."""
        test_id = str(uuid.uuid4())
        self.connections[test_id] = {"conn_id": "tested", **connection}
        return {
            "type": "TestConnection",
            "token": "test-token",
            "connection_test_id": test_id,
            "connection_id": "tested",
            "timeout": 20,
            "queue": "default",
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        self.requests.append((method, path))
        if path.endswith("/run"):
            return 200, _context()
        if path.endswith("/connection"):
            return 200, self.connections[path.split("/")[-2]]
        if "/connection-tests/" in path:
            self.results[path.split("/")[-1]] = json.loads(body)
            return 204, None
        if path.endswith("/state"):
            self.states[path.split("/")[-2]] = json.loads(body)["state"]
            return 204, None
        if path.endswith("/heartbeat"):
            return 204, None
        return (201, "OK") if method in ("PUT", "POST") else (404, {"detail": {"reason": "not_found", "message": ""}})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, content = api.answer(self.command, self.path, body)
                data = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status != 204:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_PATCH = do_POST = do_DELETE = do_HEAD = handle_one

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def _context() -> dict[str, Any]:
    run = {
        "dag_id": "dag",
        "run_id": "manual__1",
        "logical_date": _MOMENT,
        "data_interval_start": _MOMENT,
        "data_interval_end": _MOMENT,
        "run_after": _MOMENT,
        "start_date": _MOMENT,
        "end_date": None,
        "run_type": "manual",
        "state": "running",
        "conf": {},
        "consumed_asset_events": [],
        "partition_key": None,
    }
    return {"dag_run": run, "max_tries": 0, "task_reschedule_count": 0}
