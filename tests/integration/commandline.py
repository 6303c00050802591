"""Management commands as a shell sees them: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from django.core.management import get_commands, load_command_class


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class SupportsReadline(Protocol):
    def isatty(self) -> bool: ...
    def readline(self) -> str: ...


def manage(
    name: str,
    *arguments: str,
    types: str | SupportsReadline | None = None,
    during_wait: Callable[[], None] | None = None,
) -> Ran:
    """Run the command inside the test's transaction; `types` is what somebody types at its terminal, if there is one.

    While --wait pauses, a second goes by on its clock for each `during_wait`, and none in truth.
    """
    stream = io.StringIO if types is None else Terminal
    stdin, out, err = stream(types) if isinstance(types, str | None) else types, stream(), stream()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        # It would close the test's own transaction.
        patch.setattr("django.core.management.base.connections", SimpleNamespace(close_all=lambda: None))
        patch.setattr("sys.stdin", stdin)
        command = load_command_class(get_commands()[name], name)
        seconds = [0.0]

        def pause(span: float) -> None:
            assert during_wait, "it waits, and nothing happens"
            assert seconds[0] < 1000, "it waits for ever"
            seconds[0] += span
            during_wait()

        command.pause, command.clock = pause, lambda: seconds[0]
        try:
            command.run_from_argv(["manage.py", name, *arguments])
            code = 0
        except SystemExit as ending:
            code = int(ending.code or 0)
    return Ran(code, out.getvalue(), err.getvalue())
