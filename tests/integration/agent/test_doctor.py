"""`doctor` where one thing is broken: the line that names it and what to do, the exit code, and nothing disturbed."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.integration.agent.certificates import Authority, serving
from tests.integration.agent.conftest import AGENT, ROOT, Agent, doctor, inherited_environment
from tests.integration.agent.control_plane import TOKEN, ControlPlane, Refusal
from tests.integration.agent.forward_proxy import ForwardProxy
from tests.integration.agent.tls_gateway import TlsGateway

Start = Callable[..., Agent]
#: Where the task interpreters do not matter, none is asked: that takes its time.
NO_TASKS = ("--task-python", "/no/such/python")


class Report:
    """What one `python -m agent doctor` has printed."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code = process.returncode
        self.output = process.stdout
        self.stderr = process.stderr
        assert "Traceback" not in self.stderr
        assert "testsecret" not in self.output + self.stderr

    def lines(self, check: str) -> list[str]:
        return [line for line in self.output.splitlines() if line[9:27].strip() == check]

    def line(self, check: str) -> str:
        (line,) = self.lines(check)
        return line


Examine = Callable[..., Report]


@pytest.fixture
def examine(tmp_path: Path, plane: ControlPlane) -> Examine:
    def examine(*flags: str, url: str | None = None, tasks: bool = False, **environ: str) -> Report:
        asked = ("--url", plane.url if url is None else url) if url != "" else ()
        known = {"EDGE_AGENT_TOKEN": TOKEN, "EDGE_AGENT_STATE_DIR": str(tmp_path / "state")}
        return Report(doctor(*asked, *(() if tasks else NO_TASKS), *flags, folder=tmp_path, **{**known, **environ}))

    return examine


def assert_failed(report: Report, check: str, *, says: str) -> None:
    line = report.line(check)
    assert line.startswith("failed ")
    assert says in line
    assert report.code == 13
    assert check in report.stderr.splitlines()[-1]


def assert_warned(report: Report, check: str, *, says: str) -> None:
    line = report.line(check)
    assert line.startswith("warning ")
    assert says in line


def test_a_machine_that_is_well(plane: ControlPlane, examine: Examine) -> None:
    report = examine(tasks=True)
    assert (report.code, report.stderr) == (0, "")
    states = {line.split(" ")[0] for line in report.output.splitlines()}
    assert states == {"ok"}
    assert "this is edge-1" in report.line("token")
    assert "1 file in" in report.line("dags")
    assert plane.registrations == []


def test_json_says_the_same(examine: Examine) -> None:
    report = examine("--json")
    said = json.loads(report.output)
    assert (report.code, said["failed"]) == (13, 1)
    (line,) = [one for one in said["checks"] if one["state"] == "failed"]
    assert line["check"] == "task interpreter"
    assert "--task-python" in line["text"]


def test_a_running_agent_goes_on(plane: ControlPlane, start_agent: Start, examine: Examine) -> None:
    agent = start_agent()
    plane.wait_for(lambda: plane.parked)
    report = examine()
    assert "one runs here" in report.line("agent")
    assert report.line("token").startswith("ok ")
    assert len(plane.registrations) == 1
    job = plane.add({})
    plane.wait_for(lambda: job.report)
    agent.signal(signal.SIGTERM)
    assert agent.wait() == 0


# --- settings


def test_settings_that_are_wrong(examine: Examine) -> None:
    report = examine(EDGE_AGENT_CONCURENCY="3")
    assert_failed(report, "settings", says="did you mean EDGE_AGENT_CONCURRENCY?")
    for check in ("token", "clock", "queues", "dags"):
        assert report.line(check).startswith("skipped ")
        assert "the settings cannot be used" in report.line(check)


def test_a_machine_that_is_not_enrolled(examine: Examine) -> None:
    assert_failed(examine(url="", EDGE_AGENT_TOKEN=""), "settings", says="EDGE_AGENT_TOKEN")


def test_an_address_that_is_none(examine: Examine) -> None:
    assert_failed(examine(url="edge.example.com"), "url", says="https://edge.example.com")


def test_an_address_that_is_not_encrypted(examine: Examine) -> None:
    assert_warned(examine(url="http://no-such-host.invalid"), "url", says="https://")


# --- the way


def test_a_host_that_does_not_exist(examine: Examine) -> None:
    report = examine(url="https://no-such-host.invalid")
    assert_failed(report, "dns", says="no-such-host.invalid")
    assert report.line("token").startswith("skipped ")


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    proxy = ForwardProxy(names={"edge.internal": "127.0.0.1"}, password="me:hush-hush")
    yield proxy
    proxy.close()


def inside(plane: ControlPlane) -> str:
    """The control plane by a name that only the proxy knows."""
    return f"http://edge.internal:{plane.port}"


def test_a_proxy_that_is_the_only_way(plane: ControlPlane, proxy: ForwardProxy, examine: Examine) -> None:
    address = proxy.url.replace("://", "://me:hush-hush@")
    report = examine(url=inside(plane), HTTP_PROXY=address, NO_PROXY="127.0.0.1")
    assert f"{proxy.url} answers" in report.line("proxy")
    assert "looked up by the proxy" in report.line("dns")
    assert report.line("token").startswith("ok ")
    assert "hush-hush" not in report.output


def test_a_proxy_that_wants_a_password(plane: ControlPlane, proxy: ForwardProxy, examine: Examine) -> None:
    address = proxy.url.replace("://", "://me:other-word@")
    report = examine(url=inside(plane), HTTP_PROXY=address)
    assert_failed(report, "control plane", says="407")
    assert "other-word" not in report.output + report.stderr


def test_a_proxy_that_is_not_there(plane: ControlPlane, examine: Examine) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_failed(examine(url=inside(plane), HTTP_PROXY=address), "proxy", says=f"{address} does not answer")


def test_a_control_plane_that_is_not_there(examine: Examine) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        report = examine(url=f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert_failed(report, "control plane", says="Connection refused")


def test_an_address_that_is_no_control_plane(plane: ControlPlane, examine: Examine) -> None:
    plane.fault = lambda path, number: Refusal(404, "")
    assert_failed(examine(), "control plane", says="is not an EdgeControl control plane")


def test_a_control_plane_whose_database_is_away(plane: ControlPlane, examine: Examine) -> None:
    plane.fault = lambda path, number: Refusal(503, "unavailable")
    assert_failed(examine(), "control plane", says="unavailable")


# --- certificates


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def gateway(plane: ControlPlane) -> Iterator[Callable[..., str]]:
    """Speak TLS before the control plane; the address of it."""
    listeners = []

    def gateway(certificate: Path, *, requires: Path | None = None) -> str:
        listener = TlsGateway(plane.port, serving(certificate, requires=requires))
        listeners.append(listener)
        return listener.url

    yield gateway
    for listener in listeners:
        listener.close()


def test_a_certificate_that_is_trusted(authority: Authority, gateway: Callable[..., str], examine: Examine) -> None:
    report = examine("--ca-bundle", str(authority.file), url=gateway(authority.issue("edge")))
    assert "29 days left" in report.line("tls") or "30 days left" in report.line("tls")
    assert report.line("token").startswith("ok ")


def test_a_certificate_that_ends_soon(authority: Authority, gateway: Callable[..., str], examine: Examine) -> None:
    report = examine("--ca-bundle", str(authority.file), url=gateway(authority.issue("edge", days=(-9, 3))))
    assert_warned(report, "tls", says="expires in 3 days")


def test_a_certificate_of_an_authority_that_nobody_knows(
    authority: Authority, gateway: Callable[..., str], examine: Examine
) -> None:
    assert_failed(examine(url=gateway(authority.issue("edge"))), "tls", says="--ca-bundle")


def test_a_certificate_that_has_expired(authority: Authority, gateway: Callable[..., str], examine: Examine) -> None:
    report = examine("--ca-bundle", str(authority.file), url=gateway(authority.issue("edge", days=(-9, -2))))
    assert_failed(report, "tls", says="has expired")


def test_an_address_that_does_not_speak_tls(plane: ControlPlane, examine: Examine) -> None:
    assert_failed(examine(url=plane.url.replace("http", "https")), "tls", says="TLS")


def test_a_ca_bundle_that_is_none(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    report = examine("--ca-bundle", str(tmp_path / "ca.pem"), url="https://127.0.0.1:1")
    assert_failed(report, "tls", says="ca.pem")


def test_a_client_certificate_that_is_required(
    tmp_path: Path, authority: Authority, gateway: Callable[..., str], examine: Examine
) -> None:
    url = gateway(authority.issue("edge"), requires=authority.file)
    trust = ("--ca-bundle", str(authority.file))
    assert_failed(examine(*trust, url=url), "control plane", says="--client-certificate")
    ours = authority.issue("press-7", days=(-1, 20))
    ours.chmod(0o600)
    report = examine(*trust, "--client-certificate", str(ours), url=url)
    assert "days left" in report.line("client certificate")
    assert report.line("token").startswith("ok ")
    ours.chmod(0o644)
    report = examine(*trust, "--client-certificate", str(ours), url=url)
    assert_warned(report, "client certificate", says="chmod 0600")


def test_a_client_key_and_tasks_of_another_user(authority: Authority, examine: Examine) -> None:
    """They read it too: as little as is needed is asked for, and whether it is enough is looked at as that user."""
    if os.geteuid() != 0:
        pytest.skip("only root can run tasks as another user")
    ours = authority.issue("press-7")
    flags = ("--client-certificate", str(ours), "--task-user", "nobody")
    ours.chmod(0o644)
    assert_warned(examine(*flags, url="https://127.0.0.1:1"), "client certificate", says="chmod 0640")
    ours.chmod(0o640)
    report = examine(*flags, url="https://127.0.0.1:1")
    assert report.line("client certificate").startswith("ok ")
    assert_failed(report, "task interpreter", says=f"'nobody', as whom tasks are to run, cannot read {ours}")


def test_a_client_certificate_that_has_expired(authority: Authority, examine: Examine) -> None:
    ours = authority.issue("press-7", days=(-9, -2))
    report = examine("--client-certificate", str(ours), url="https://127.0.0.1:1")
    assert_failed(report, "client certificate", says="has expired 2 days ago")


def test_a_client_certificate_that_is_missing(examine: Examine) -> None:
    report = examine("--client-certificate", "/no/such/file", url="https://127.0.0.1:1")
    assert_failed(report, "client certificate", says="/no/such/file")


# --- what the control plane says


@pytest.mark.parametrize(("seconds", "state"), [(600, "warning"), (-7300, "failed")])
def test_a_clock_that_is_wrong(plane: ControlPlane, examine: Examine, seconds: float, state: str) -> None:
    plane.clock_offset_seconds = seconds
    line = examine().line("clock")
    assert line.startswith(f"{state} ")
    assert ("behind" if seconds > 0 else "ahead of") in line


def test_a_token_that_is_not_accepted(plane: ControlPlane, examine: Examine) -> None:
    plane.token = "ec_other_token"
    assert_failed(examine(), "token", says="agent enrol --force")


def test_a_token_that_is_none_while_all_else_is_looked_at(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "token").write_text("hello\n")
    report = examine("--token-file", str(tmp_path / "token"))
    assert_failed(report, "token", says="does not hold an EdgeControl token")
    assert report.line("control plane").startswith("ok ")
    assert report.line("queues").startswith("skipped ")


def test_a_token_that_others_can_read(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o644)
    assert_warned(examine("--token-file", str(tmp_path / "token")), "token", says="chmod 0600")


def test_a_machine_that_rests(plane: ControlPlane, examine: Examine) -> None:
    plane.requested, plane.comment = "maintenance", "belt"
    assert_warned(examine(), "orders", says="belt")


@pytest.mark.parametrize(("verdict", "state"), [("outdated", "warning"), ("refused", "failed")])
def test_a_version_that_is_too_old(plane: ControlPlane, examine: Examine, verdict: str, state: str) -> None:
    plane.version = {"verdict": verdict, "text": "install 0.9"}
    line = examine().line("versions")
    assert line.startswith(f"{state} ")
    assert "install 0.9" in line


def test_queues_that_are_not_for_this_machine_or_stand_still_or_are_misspelt(
    plane: ControlPlane, examine: Examine
) -> None:
    plane.allowed_queues = ["press", "laser", "pint"]
    plane.queues = {"press": {}, "laser": {"paused": True, "comment": "lens"}, "gpu": {}}
    lines = examine("--queues", "press,laser,pint,gpu").lines("queues")
    assert [line.split(" ")[0] for line in lines] == ["warning", "warning", "failed"]
    for line, words in zip(
        lines, ("laser is paused by an operator (lens)", "pint has never", "gpu is not for"), strict=True
    ):
        assert words in line


def test_no_queue_at_all(plane: ControlPlane, examine: Examine) -> None:
    plane.allowed_queues = []
    assert_failed(examine(), "queues", says="none is served")


def test_an_execution_api_that_is_away(plane: ControlPlane, examine: Examine) -> None:
    plane.execution_healthy = False
    assert_failed(examine(), "execution api", says="503")


def test_an_execution_api_that_nobody_has_named(plane: ControlPlane, examine: Examine) -> None:
    plane.execution_api_url = ""
    assert_failed(examine(), "execution api", says="EDGECONTROL_EXECUTION_API_URL")


# --- the machine


def test_a_state_directory_that_cannot_be_used(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "file").write_text("")
    assert_failed(examine("--state-dir", str(tmp_path / "file")), "state directory", says="--state-dir")
    assert_failed(examine("--state-dir", str(tmp_path / "file/x")), "state directory", says="--state-dir")


def test_a_state_directory_that_others_can_read(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o755)
    assert_warned(examine(), "state directory", says="chmod go-rw")


def test_a_disk_that_has_less_than_it_should(examine: Examine) -> None:
    assert_warned(examine("--min-free-disk", "100%"), "disk", says="min_free_disk")


# --- the task interpreters


def test_no_such_interpreter(examine: Examine) -> None:
    assert_failed(examine(), "task interpreter", says="--task-python")


def test_an_interpreter_without_airflow(tmp_path: Path, examine: Examine) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    report = examine("--task-python", str(bare / "bin/python"), tasks=True, PYTHONPATH="")
    assert_failed(report, "task interpreter", says="has no Airflow")
    assert report.line("dags").startswith("skipped ")


def test_an_airflow_that_cannot_be_imported(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "broken/airflow").mkdir(parents=True)
    (tmp_path / "broken/airflow/__init__.py").write_text("raise ImportError('half installed')")
    report = examine(tasks=True, PYTHONPATH=str(tmp_path / "broken"))
    assert_failed(report, "task interpreter", says="half installed")


def test_the_interpreter_of_a_queue(tmp_path: Path, examine: Examine) -> None:
    settings = tmp_path / "agent.toml"
    settings.write_text('[queues.gpu]\npython = "/opt/gpu/bin/python"\n')
    good, bad = examine("--config", str(settings), tasks=True).lines("task interpreter")
    assert good.startswith("ok ")
    assert bad.startswith("failed ")
    assert "/opt/gpu/bin/python (queue gpu)" in bad


def test_dags_that_are_not_here(tmp_path: Path, examine: Examine) -> None:
    report = examine(tasks=True, AIRFLOW__CORE__DAGS_FOLDER="/no/such/folder")
    assert_failed(report, "dags", says="/no/such/folder")


def test_a_folder_without_dags_and_a_bundle_that_cannot_be_loaded(tmp_path: Path, examine: Examine) -> None:
    (tmp_path / "empty").mkdir()
    bundles = [
        {"name": "here", "classpath": "x.LocalDagBundle", "kwargs": {"path": str(tmp_path / "empty")}},
        {"name": "there", "classpath": "no.such.GitDagBundle", "kwargs": {"token": "testsecret"}},
    ]
    report = examine(tasks=True, AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST=json.dumps(bundles))
    empty, unknown = report.lines("dags")
    assert empty.startswith("warning ")
    assert unknown.startswith("failed ")
    assert "install its provider" in unknown


def test_limits_of_airflow_that_are_not_above_the_patience(plane: ControlPlane, examine: Examine) -> None:
    plane.settings["outage_patience_seconds"] = 300
    report = examine(tasks=True)
    assert_warned(report, "timeouts", says="task_instance_heartbeat_timeout is 300 s")
    assert "above the patience of 300 s" in report.line("timeouts")


@pytest.mark.airflow
def test_airflow_itself_says_what_it_is_set_to(tmp_path: Path, examine: Examine) -> None:
    report = examine(tasks=True, PYTHONPATH="", AIRFLOW_HOME=str(tmp_path), AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT="5")
    assert f"has Airflow {version('apache-airflow-core')} on" in report.line("task interpreter")
    assert f"1 file in {tmp_path}/dags" in report.line("dags")
    assert "standard" in report.line("providers")
    assert_warned(report, "timeouts", says="task_queued_timeout is 5 s")


# --- how it looks


def test_colours_are_for_terminals_and_never_where_they_are_not_wanted(tmp_path: Path) -> None:
    def on_a_terminal(**environ: str) -> bytes:
        ours, theirs = pty.openpty()
        command = [*AGENT, "doctor", *NO_TASKS, "--url", "edge"]
        kept = {**inherited_environment(), "HOME": str(tmp_path), "TERM": "xterm", **environ}
        subprocess.run(command, cwd=ROOT, stdout=theirs, stderr=subprocess.DEVNULL, env=kept, timeout=60, check=False)
        os.close(theirs)
        with os.fdopen(ours, "rb") as end:
            return os.read(end.fileno(), 100_000)

    assert b"\x1b[" in on_a_terminal()
    assert b"\x1b[" not in on_a_terminal(NO_COLOR="1")
    assert b"\x1b[" not in on_a_terminal(TERM="dumb")
