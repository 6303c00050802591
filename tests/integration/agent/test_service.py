"""The agent as systemd's service: what it says to its manager, and how its unit is put in place and taken away."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.agent.conftest import AGENT, ROOT, Agent, inherited_environment
from tests.integration.agent.control_plane import ControlPlane

Start = Callable[..., Agent]
UNIT = ".config/systemd/user/edgecontrol-agent.service"


class Manager:
    """What systemd would hear from its service."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._heard: list[str] = []

    def heard(self) -> list[str]:
        self._socket.setblocking(False)
        try:
            while True:
                self._heard.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self._heard

    def wait_for(self, line: str, *, times: int = 1) -> None:
        deadline = time.monotonic() + 60
        while self.heard().count(line) < times:
            assert time.monotonic() < deadline, self._heard
            time.sleep(0.02)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


@pytest.fixture
def start_service(start_agent: Start, manager: Manager) -> Start:
    """Start an agent as the unit does."""

    def start(**environ: str) -> Agent:
        asked = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "600000"}
        return start_agent(EDGE_AGENT_ON_TERM="leave", **asked, **environ)

    return start


def test_it_says_that_it_is_up_lives_and_goes(plane: ControlPlane, start_service: Start, manager: Manager) -> None:
    agent = start_service()
    manager.wait_for("READY=1")
    assert plane.registrations
    job = plane.add({"seconds": 60})
    plane.wait_for(agent.starts)
    manager.wait_for("STATUS=edge-1: running, holds 1 job")
    manager.wait_for("WATCHDOG=1", times=manager.heard().count("WATCHDOG=1") + 2)
    for process in agent.runners():
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & process.environ().keys()
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0
    assert manager.heard()[-2:] == ["STOPPING=1", "STATUS=leaves its jobs to the task runner"]
    assert (manager.heard().count("READY=1"), job.report) == (1, None)


def test_a_start_that_cannot_succeed_is_never_said_to_have(
    plane: ControlPlane, start_service: Start, manager: Manager
) -> None:
    plane.token = "ec_other_token"
    assert start_service().wait() == 5
    assert "READY=1" not in manager.heard()


def test_an_absent_control_plane_delays_no_start_and_starves_no_watchdog(
    plane: ControlPlane, start_agent: Start, start_service: Start, manager: Manager
) -> None:
    earlier = start_agent()
    plane.wait_for(lambda: plane.registrations)
    earlier.signal(signal.SIGTERM)
    assert earlier.wait() == 0
    plane.close()
    agent = start_service()
    manager.wait_for("STATUS=waits for the control plane")
    assert "READY=1" in manager.heard()
    manager.wait_for("WATCHDOG=1", times=5)
    plane.reopen()
    plane.wait_for(lambda: len(plane.registrations) == 2)
    plane.wait_for(lambda: plane.parked)
    plane.close()
    manager.wait_for("WATCHDOG=1", times=manager.heard().count("WATCHDOG=1") + 3)
    assert agent.process.poll() is None
    assert manager.heard().count("READY=1") == 1


def test_a_watchdog_that_asks_another_process_is_not_fed(
    plane: ControlPlane, start_service: Start, manager: Manager
) -> None:
    start_service(WATCHDOG_PID="1")
    manager.wait_for("READY=1")
    assert manager.heard().count("WATCHDOG=1") <= 1


# --- the unit


class Machine:
    """Somebody's home, where `install-service --user` is given; no systemd runs there."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.unit = home / UNIT
        self.settings = home / "agent.toml"
        self.settings.write_text('url = "https://edge.example.com"\ntoken_file = "%s"\n' % (home / "token"))
        (home / "token").write_text("ec_testkey_testsecret\n")

    def command(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        answer = subprocess.run(
            [*AGENT, *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**inherited_environment(), "HOME": str(self.home), **environ},
        )
        assert "testsecret" not in answer.stdout + answer.stderr
        assert "Traceback" not in answer.stderr
        return answer

    def install(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.command("install-service", "--user", "--config", str(self.settings), *words, **environ)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_unit_is_written_again_and_taken_away(machine: Machine) -> None:
    answer = machine.install()
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"wrote {machine.unit}" in answer.stdout
    unit = machine.unit.read_text()
    assert f"run --config {machine.settings} --state-dir {machine.home}/.local/state/edgecontrol-agent" in unit
    assert "WantedBy=default.target" in unit
    assert "testsecret" not in unit
    assert machine.install("--state-dir", str(machine.home / "other")).returncode == 0
    assert str(machine.home / "other") in machine.unit.read_text()
    assert machine.command("uninstall-service", "--user").returncode == 0
    assert not machine.unit.exists()
    gone = machine.command("uninstall-service", "--user")
    assert (gone.returncode, "nothing to remove" in gone.stderr) == (16, True)


def test_a_dry_run_writes_nothing(machine: Machine) -> None:
    answer = machine.install("--dry-run")
    assert answer.returncode == 0
    assert answer.stdout.startswith("# Written by")
    assert not machine.unit.exists()


def test_a_unit_of_somebody_else_stays_as_it_is(machine: Machine) -> None:
    machine.unit.parent.mkdir(parents=True)
    machine.unit.write_text("[Service]\nExecStart=/bin/true\n")
    for answer in (machine.install(), machine.command("uninstall-service", "--user")):
        assert answer.returncode == 16
        assert "stays as it is" in answer.stderr
    assert machine.unit.read_text().startswith("[Service]")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--state-dir", "/no/such", "--config", "/no/such.toml"], 2, "/no/such.toml"),
        (["--unit", "a/b"], 2, "--unit"),
        (["--run-as", "root"], 2, "--run-as"),
        (["--environment-file", "/no/such.env"], 2, "/no/such.env"),
    ],
)
def test_nothing_is_written_for_an_agent_that_could_not_start(
    machine: Machine, words: list[str], code: int, says: str
) -> None:
    answer = machine.install(*words)
    assert answer.returncode == code
    assert says in answer.stderr
    assert not machine.unit.exists()


def test_a_machine_that_is_not_enrolled_gets_no_service_whatever_the_shell_has(machine: Machine) -> None:
    answer = machine.command("install-service", "--user")
    assert answer.returncode == 2
    assert "as whom the agent is to run, has not enrolled this machine" in answer.stderr
    assert "agent enrol --url" in answer.stderr


def test_settings_may_be_in_the_services_own_environment(machine: Machine) -> None:
    variables = machine.home / "agent.env"
    variables.write_text('# the way out\nEDGE_AGENT_URL="https://edge.example.com"\nEDGE_AGENT_TOKEN=ec_k_testsecret\n')
    answer = machine.command("install-service", "--user", "--environment-file", str(variables))
    assert answer.returncode == 0
    assert f"EnvironmentFile={variables}" in machine.unit.read_text()


def test_the_proxy_of_who_installs_it_is_the_services_too_and_its_password_nobodys(machine: Machine) -> None:
    proxies = {"HTTPS_PROXY": 'http://me:testsecret"%@proxy:3128', "NO_PROXY": ".example.com", "OTHER": "x"}
    answer = machine.install(**proxies)
    assert answer.returncode == 0
    variables = machine.unit.with_name("edgecontrol-agent.env")
    assert variables.stat().st_mode & 0o777 == 0o600
    assert variables.read_text().splitlines()[1:] == [
        'HTTPS_PROXY="http://me:testsecret\\"%@proxy:3128"',
        'NO_PROXY=".example.com"',
    ]
    assert f"EnvironmentFile={variables}" in machine.unit.read_text()
    assert "testsecret" not in machine.unit.read_text()
    without = machine.install()  # as `sudo` does it
    assert f"kept {variables}" in without.stdout
    assert f"EnvironmentFile={variables}" in machine.unit.read_text()
    assert machine.install(NO_PROXY="localhost").returncode == 0
    assert variables.read_text().splitlines()[1:] == ['NO_PROXY="localhost"']
    assert machine.command("uninstall-service", "--user").returncode == 0
    assert not variables.exists()
