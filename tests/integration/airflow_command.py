"""`airflow edgecontrol ...` as a shell sees it: Airflow's own parser, and the real control plane without the wire."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import httpx
import pytest
from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from tests.integration.commandline import Ran, Terminal

URL = "http://testserver"


def airflow(*arguments: str, types: str | None = None, transport: httpx.BaseTransport | None = None) -> Ran:
    """Run it inside the test's transaction; `types` is what somebody types at its terminal, if there is one."""
    from airflow.cli.cli_parser import get_parser

    from edgecontrol.wsgi import application

    stream = io.StringIO if types is None else Terminal
    stdin, out, err = stream(types or ""), stream(), stream()
    answers = transport or httpx.WSGITransport(app=application, remote_addr="127.0.0.1")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err), _connection_kept():
        patch.setattr("httpx._client.HTTPTransport", lambda **_: answers)
        patch.setattr("sys.stdin", stdin)
        code: Any
        try:
            given = get_parser().parse_args(["edgecontrol", *arguments])
            given.func(given)
            code = "it did not exit"
        except SystemExit as ending:
            code = ending.code
    return Ran(code, out.getvalue(), err.getvalue())


@contextmanager
def _connection_kept() -> Iterator[None]:
    """As Django's own test client does: a request must not end the test's transaction."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)
