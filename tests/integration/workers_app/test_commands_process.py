"""Commands as real processes: signals, terminals, pipes, and databases that are not there."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from workers_app.management.endings import Code
from workers_app.models import Worker

Make = Callable[..., Any]
ROOT = Path(__file__).parents[3]
PATIENCE = 50


class Start:
    """Starts `manage.py` with these arguments, the scratch database, and whatever stands in `settings`."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("EDGECONTROL_", "COLUMNS"))
        } | {"EDGECONTROL_DATABASE_URL": database_url, "EDGECONTROL_DATA_DIR": str(folder / "data")}
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        settings = options.pop("settings", {})
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), *arguments],
            cwd=self.folder,
            env=self.environment | settings,
            **options,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        process = self(*arguments, **options)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out.decode(), err.decode()

    def at_terminal(self, *arguments: str, types: str = "", columns: int = 80, **settings: str) -> tuple[int, str]:
        """What stands on the terminal in the end."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = self(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, settings={"TERM": "xterm"} | settings)
        os.close(theirs)
        os.write(ours, types.encode())
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux: nobody is at the other side any more
                break
            if not piece:
                break
            shown += piece
        os.close(ours)
        return process.wait(timeout=PATIENCE), shown.decode()


@pytest.fixture
def start(tmp_path: Path, postgres_url: str) -> Iterator[Start]:
    start = Start(tmp_path, postgres_url)
    yield start
    for process in start.started:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=PATIENCE)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


@pytest.fixture
def empty_database(postgres_url: str) -> Iterator[str]:
    name = f"empty_{os.getpid()}"
    with psycopg.connect(make_conninfo(postgres_url, dbname="postgres"), autocommit=True) as server:
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield make_conninfo(postgres_url, dbname=name)
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("arguments", [["list_workers"], ["list_jobs"], ["shutdown_worker", "press-1"]])
def test_a_database_that_is_away_is_one_line(start: Start, arguments: list[str]) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:9/edgecontrol"
    code, out, err = start.run(*arguments, settings={"EDGECONTROL_DATABASE_URL": url})
    assert (code, out) == (Code.REFUSED, "")
    assert err.startswith("Refused: the database is away or failed: connection failed")
    assert err.count("\n") == 1
    assert "secret" not in err


def test_a_database_that_is_away_is_one_line_from_djangos_commands_too(start: Start) -> None:
    url = "postgresql://nobody:secret@127.0.0.1:9/edgecontrol"
    arguments = ["createsuperuser", "--noinput", "--username", "anna", "--email", "anna@example.com"]
    code, _, err = start.run(*arguments, settings={"EDGECONTROL_DATABASE_URL": url})
    assert code == 1
    assert err.splitlines()[-1].startswith("edgecontrol: the database is away or failed: ")
    assert "Traceback" not in err
    assert "secret" not in err


def test_a_database_without_tables_is_one_line_that_says_what_to_do(start: Start, empty_database: str) -> None:
    code, _, err = start.run("list_workers", settings={"EDGECONTROL_DATABASE_URL": empty_database})
    assert code == Code.REFUSED
    assert "serve" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("transactional_db")
class TestOnTheScratchDatabase:
    def test_ctrl_c_ends_the_wait_and_the_request_stands(self, start: Start, make_worker: Make) -> None:
        make_worker("press-1")
        process = start("request_maintenance", "press-1", "--comment", "disk", "--wait")
        assert process.stderr is not None
        assert process.stderr.readline() == b"press-1: maintenance request\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == Code.INTERRUPTED
        assert process.stderr.read() == b"Interrupted: what was asked for stands\n"
        assert Worker.objects.get().requested == "maintenance"

    def test_a_terminal_gets_colours_in_its_own_width_and_a_pipe_neither(self, start: Start, make_worker: Make) -> None:
        make_worker("n" * 200)
        code, shown = start.at_terminal("list_workers", columns=66)
        assert code == Code.DONE
        assert "\x1b[32;1midle" in shown
        assert "n" * 200 not in shown
        code, out, err = start.run("list_workers")
        assert (code, err) == (Code.DONE, "")
        assert "\x1b[" not in out
        assert "n" * 200 in out

    @pytest.mark.parametrize(("value", "coloured"), [("1", False), ("", True)])
    def test_no_color_is_obeyed_when_it_is_not_empty(
        self, start: Start, make_worker: Make, value: str, coloured: bool
    ) -> None:
        make_worker("press-1")
        _, shown = start.at_terminal("list_workers", NO_COLOR=value)
        assert "press-1" in shown
        assert ("\x1b[" in shown) is coloured

    @pytest.mark.parametrize(("answer", "wish"), [("y", "shutdown"), ("n", "active")])
    def test_it_asks_at_the_terminal_and_obeys(self, start: Start, make_worker: Make, answer: str, wish: str) -> None:
        make_worker("press-1")
        code, shown = start.at_terminal("shutdown_worker", "--all", types=f"{answer}\n")
        assert "press-1  idle" in shown
        assert "Go on with 1 worker host? [y/N]" in shown
        assert code == (Code.DONE if wish == "shutdown" else Code.REFUSED)
        assert Worker.objects.get().requested == wish

    def test_a_reader_that_has_seen_enough_causes_no_complaint(self, start: Start, make_worker: Make) -> None:
        for _ in range(200):
            make_worker(queues=["q" * 200] * 3)
        process = start("list_workers")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        process.wait(timeout=PATIENCE)
        assert process.stderr.read() == b""

    def test_a_terminal_that_knows_only_ascii_is_no_reason_to_fail(self, start: Start, make_worker: Make) -> None:
        make_worker("Halle 7 🦊")
        code, out, err = start.run("list_workers", settings={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
        assert (code, err) == (Code.DONE, "")
        assert "Halle 7 \\U0001f98a" in out
