"""The words to systemd, when its watchdog is fed, and how a unit is written."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent import config, systemd, systemd_install
from agent.errors import BadConfig, NoService
from agent.loop import Loop
from agent.systemd import STUCK_SECONDS, Notifier, Watchdog
from agent.systemd_unit import Service, text, word


class Manager:
    """What systemd would hear."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(0.2)

    def heard(self) -> list[str]:
        lines = []
        try:
            while True:
                lines.append(self.socket.recv(4096).decode())
        except TimeoutError:
            return lines


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@edge-{uuid.uuid4()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.socket.close()


def test_it_is_told_once_that_the_agent_is_up_and_each_change_of_what_it_does(manager: Manager, address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("waits")
    notifier.ready("is registered")
    notifier.status("is registered")
    notifier.status("two\nlines")
    notifier.alive()
    notifier.stopping("has drained")
    assert manager.heard() == [
        "READY=1",
        "STATUS=waits",
        "STATUS=is registered",
        "STATUS=two lines",
        "WATCHDOG=1",
        "STOPPING=1",
        "STATUS=has drained",
    ]


@pytest.mark.parametrize("name", ["", "vsock:2:1234", "/no/such/socket", "@nobody-listens-here"])
def test_nothing_goes_wrong_where_nobody_listens(name: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("is registered")
    notifier.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "180000000"}, 180.0),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": str(os.getpid())}, 180.0),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_only_where_it_asks_this_process(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/notify", **environ}).watchdog_seconds == seconds


class TestWatchdog:
    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        now = SimpleNamespace(at=1000.0)
        monkeypatch.setattr(systemd, "time", SimpleNamespace(monotonic=lambda: now.at))
        return now

    def watchdog(
        self,
        *loops: Any,
        notifier: Notifier | None = None,
        tried_at: dict[int, float] | None = None,
        waited_at: float = 1000.0,
    ) -> Watchdog:
        return Watchdog(
            notifier=notifier or Notifier({}),
            loops=lambda: loops,
            attention=SimpleNamespace(waited_at=waited_at),  # type: ignore[arg-type]
            client=SimpleNamespace(tried_at=tried_at or {}),  # type: ignore[arg-type]
            grace_seconds=15,
            doing=lambda: "idle",
        )

    def loop(self, *, began_at: float | None = None, alive: bool = True, ended: bool = False) -> Any:
        return SimpleNamespace(name="logs", ident=7, began_at=began_at, is_alive=lambda: alive, ended=ended)

    def test_loops_that_wait_or_have_just_begun_are_well(self, now: SimpleNamespace) -> None:
        assert self.watchdog(self.loop(), self.loop(began_at=990.0)).stuck() == ""

    def test_a_control_plane_that_is_away_for_hours_is_no_reason(self, now: SimpleNamespace) -> None:
        # One long step: each of its many requests ended without an answer, the last one a minute ago.
        loop = self.loop(began_at=now.at - 10 * STUCK_SECONDS)
        assert self.watchdog(loop, tried_at={7: now.at - 60}).stuck() == ""

    def test_a_step_that_never_ends_is_one(self, now: SimpleNamespace) -> None:
        loop = self.loop(began_at=now.at - STUCK_SECONDS - 1)
        assert "loop logs has been stuck for 901 s" in self.watchdog(loop, tried_at={8: now.at}).stuck()

    def test_so_is_a_loop_that_has_died_but_not_one_that_was_told_to_end(self, now: SimpleNamespace) -> None:
        assert self.watchdog(self.loop(alive=False)).stuck() == "the loop logs has died"
        assert self.watchdog(self.loop(alive=False, ended=True)).stuck() == ""

    def test_so_is_a_main_thread_that_hangs_but_not_one_that_waits_for_stopped_jobs(self, now: SimpleNamespace) -> None:
        assert self.watchdog(waited_at=now.at - STUCK_SECONDS - 14).stuck() == ""
        assert "main thread" in self.watchdog(waited_at=now.at - STUCK_SECONDS - 16).stuck()

    def test_it_is_said_once_and_not_fed(
        self, manager: Manager, address: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
        watchdog = self.watchdog(self.loop(alive=False), notifier=notifier, waited_at=time.monotonic())
        assert [watchdog.step(), watchdog.step()] == [1.0, 1.0]
        assert manager.heard() == ["STATUS=the loop logs has died"]
        assert len([record for record in caplog.records if "fed no more" in record.message]) == 1

    def test_a_real_loop_says_whether_it_is_in_a_step(self) -> None:
        entered, go_on = threading.Event(), threading.Event()

        def step() -> float:
            entered.set()
            go_on.wait(5)
            return 60.0

        loop = Loop(name="x", step=step, on_fatal=lambda error: None)
        loop.start()
        assert entered.wait(5)
        assert loop.began_at is not None
        go_on.set()
        deadline = time.monotonic() + 5
        while loop.began_at is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert loop.began_at is None
        assert not loop.ended
        loop.end()
        assert loop.ended


def service(**changes: Any) -> Service:
    return Service(
        **{
            "name": "edgecontrol-agent",
            "command": (
                shutil.which("true") or "/bin/true",
                "-m",
                "agent",
                "run",
                "--state-dir",
                "/var/lib/edge agent",
            ),
            "state_dir": Path("/var/lib/edge agent"),
            "folder": Path("/etc/systemd/system"),
            "run_as": "root",
            **changes,
        }
    )


def test_words_are_neither_split_nor_expanded() -> None:
    assert word("/opt/agent") == "/opt/agent"
    assert word("/opt/my agent") == '"/opt/my agent"'
    assert word("100%") == '"100%%"'
    assert word("$HOME") == '"$$HOME"'
    assert word('a"b\\c') == '"a\\"b\\\\c"'


def test_a_stop_takes_the_agent_alone_and_an_end_that_somebody_must_see_to_is_not_repeated() -> None:
    lines = text(service()).splitlines()
    for line in (
        "Type=notify",
        "KillMode=process",
        "OOMPolicy=continue",
        "Environment=EDGE_AGENT_ON_TERM=leave",
        "RestartPreventExitStatus=8 10 130",
        "NoNewPrivileges=yes",
        "User=root",
        "WantedBy=multi-user.target",
    ):
        assert line in lines


def test_one_file_has_a_place_to_unpack_itself() -> None:
    assert "CacheDirectory=" not in text(service())
    assert "CacheDirectory=edgecontrol-agent\n" in text(
        service(command=("/usr/bin/python3", "/opt/edge-agent.pyz", "run"))
    )


def test_tasks_keep_what_they_may_need() -> None:
    unit = text(service())
    settings = {line.split("=")[0] for line in unit.splitlines() if "=" in line and not line.startswith("#")}
    taken = {
        "PrivateTmp",
        "PrivateDevices",
        "ProtectClock",
        "ProtectHome",
        "MemoryDenyWriteExecute",
        "SystemCallFilter",
    }
    assert not settings & taken
    allowed = text(service(may_gain_privileges=True))
    assert "NoNewPrivileges" not in allowed
    assert "Protect" not in allowed


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize("of_user", [False, True])
def test_systemd_takes_the_units_without_a_complaint(tmp_path: Path, of_user: bool) -> None:
    each: list[dict[str, Any]] = [
        {},
        {"may_gain_privileges": True},
        {"environment_file": Path("/etc/edge agent%.env"), "working_directory": Path("/")},
    ]
    owner = {"of_user": True, "run_as": None} if of_user else {}
    units = [service(name=f"edge-{number}", folder=tmp_path, **owner, **each[number]) for number in range(3)]
    for unit in units:
        unit.path.write_text(text(unit))
    command = ["systemd-analyze", "verify", *(["--user"] if of_user else []), "--man=no"]
    answer = subprocess.run(
        [*command, *(str(unit.path) for unit in units)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    about_them = [line for line in answer.stderr.splitlines() if "edge-" in line]
    assert (answer.returncode, about_them) == (0, [])


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for systemctl where systemd runs; returns what it was told. Orders with `fail` in them fail."""
    told = tmp_path / "told"
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {told}\ncase "$*" in *fail*) echo no such luck >&2; exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(systemd_install, "RUNS", tmp_path)
    return told


def test_a_unit_is_enabled_and_started_anew_and_stopped_before_it_is_removed(tmp_path: Path, systemctl: Path) -> None:
    one = service(folder=tmp_path)
    assert systemd_install.install(one)[0] == f"wrote {one.path}"
    assert systemctl.read_text().splitlines() == [
        "daemon-reload",
        "enable edgecontrol-agent",
        "restart edgecontrol-agent",
    ]
    systemctl.unlink()
    flags = {"unit": "edgecontrol-agent.service", "user": True}
    folder = systemd_install.folder_of(flags, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    folder.mkdir(parents=True)
    one.path.rename(folder / one.path.name)
    done = systemd_install.uninstall(flags, environ={"XDG_CONFIG_HOME": str(tmp_path)})
    assert f"removed {folder / one.path.name}" in done
    assert systemctl.read_text().splitlines() == ["--user disable --now edgecontrol-agent", "--user daemon-reload"]


def test_a_service_that_does_not_start_says_why_and_where_to_look(tmp_path: Path, systemctl: Path) -> None:
    with pytest.raises(NoService, match="no such luck; see `journalctl -u fails`"):
        systemd_install.install(service(name="fails", folder=tmp_path))


def test_only_root_can_run_tasks_as_others(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(
        f'url = "https://edge"\ntoken_file = "{tmp_path}/token"\ntask_user = "nobody"\n'
    )
    (tmp_path / "token").write_text("ec_a_b")
    settings = config.load(flags={"config": str(tmp_path / "agent.toml")}, environ={}, home=tmp_path)
    systemd_install.check_task_users(settings, systemd_install.Account("root", 0, tmp_path))
    systemd_install.check_task_users(settings, systemd_install.Account("nobody", 65534, tmp_path))
    with pytest.raises(BadConfig, match="--run-as root"):
        systemd_install.check_task_users(settings, systemd_install.Account("edge", 1000, tmp_path))
