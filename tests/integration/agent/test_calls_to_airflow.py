"""The Task SDK's own client goes out by the agent's settings: a proxy, an own CA, certificates that are swapped."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from agent.transport import PROXY_VARIABLES, task_variables
from tests.integration.agent.certificates import Authority, serving
from tests.integration.agent.conftest import ROOT
from tests.integration.agent.forward_proxy import ForwardProxy

HOST = "airflow.test"
#: A task's process as the runner makes it: one call at each line that is read, and what came of it.
CALLS = """
import sys
from agent.runner import Delivery, airflow_client

delivery = Delivery(patience_seconds=0, network_errors=(), on_start=lambda: None, tell=lambda level, text: None)
client = airflow_client(server=sys.argv[1], token="token", delivery=delivery)
for line in sys.stdin:
    try:
        print(client.request("GET", "health").text, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Airflow:
    """Answers with the name in the certificate that it was shown; each answer ends its connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"https://{HOST}:{self._server.server_address[1]}/execution/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        airflow = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                self.request = airflow.context.wrap_socket(self.request, True, do_handshake_on_connect=False)
                super().setup()

            def do_GET(self) -> None:
                shown = self.connection.getpeercert() or {}  # type: ignore[attr-defined]
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(shown["subject"][0][0][1]).encode())

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def test_calls_to_airflow_go_through_the_proxy_by_certificates_that_may_change(tmp_path: Path) -> None:
    first, second = Authority(tmp_path, name="First CA"), Authority(tmp_path, name="Second CA")
    trusted, mine = tmp_path / "ca.pem", tmp_path / "me.pem"
    trusted.write_bytes(first.file.read_bytes())
    mine.write_bytes(first.issue("press-7", hosts=()).read_bytes())
    airflow = Airflow(serving(first.issue("airflow", hosts=(HOST,)), requires=first.file))
    proxy = ForwardProxy(names={HOST: "127.0.0.1"})
    environ = {name: value for name, value in os.environ.items() if name.upper() not in PROXY_VARIABLES}
    settings = SimpleNamespace(ca_bundle=trusted, client_certificate=mine, client_key=None)
    given = task_variables(settings, {"HTTPS_PROXY": proxy.url})
    with subprocess.Popen(
        [sys.executable, "-c", CALLS, airflow.url],
        cwd=ROOT,
        env={**environ, **given},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as task:
        assert task.stdin is not None
        assert task.stdout is not None

        def call() -> str:
            print(file=task.stdin, flush=True)
            return task.stdout.readline().strip()

        assert call() == '"press-7"'
        airflow.context = serving(second.issue("airflow", hosts=(HOST,)), requires=second.file)
        assert call() == "ConnectError"
        trusted.write_bytes(second.file.read_bytes())
        mine.write_bytes(second.issue("renewed", hosts=()).read_bytes())
        assert call() == '"renewed"'
        task.stdin.close()
        assert task.wait(timeout=20) == 0
    assert len(proxy.asked) == 3
    proxy.close()
    airflow.close()
