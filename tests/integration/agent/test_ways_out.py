"""How the agent and its tasks get out: through a proxy alone, by an own CA, with a certificate that is required."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from agent.obstacles import explain
from agent.transport import Transport
from tests.integration.agent.certificates import Authority, serving, split
from tests.integration.agent.conftest import Agent, Enrolling
from tests.integration.agent.control_plane import ControlPlane
from tests.integration.agent.forward_proxy import ForwardProxy

Start = Callable[..., Agent]
Enrol = Callable[..., Enrolling]
#: A name that only the proxy knows.
HOST = "edge.test"


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def proxy() -> Iterator[ForwardProxy]:
    proxy = ForwardProxy(names={HOST: "127.0.0.1"})
    yield proxy
    proxy.close()


def through(proxy: ForwardProxy) -> dict[str, str]:
    return {"HTTPS_PROXY": proxy.url, "http_proxy": proxy.url}


def assert_runs_a_job(plane: ControlPlane) -> None:
    job = plane.add({"bytes": 10})
    plane.wait_for(lambda: job.state == "success" and job.log)


class TestProxies:
    def test_an_agent_with_only_a_proxy_as_its_way_out_works(
        self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane", hosts=(HOST,))), host=HOST)
        agent = start_agent("--ca-bundle", str(authority.file), **through(proxy))
        assert_runs_a_job(plane)
        # Its tasks' calls to Airflow go the same way, and so does its own look whether Airflow is there.
        assert set(proxy.asked) == {f"CONNECT {urlsplit(url).netloc}" for url in (plane.url, plane.execution_api_url)}
        assert agent.process.poll() is None

    def test_connections_through_a_proxy_are_kept(
        self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane", hosts=(HOST,))), host=HOST)
        start_agent("--ca-bundle", str(authority.file), **through(proxy))
        for _ in range(3):
            assert_runs_a_job(plane)
        ours = [line for line in proxy.asked if line.endswith(f":{plane.port}")]
        assert len(ours) <= 6  # one for each that speaks at the same time
        assert len(plane.requests) > 2 * len(ours)

    def test_plain_http_through_a_proxy(self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy) -> None:
        plane.execution_api_url = plane.execution_api_url.replace("127.0.0.1", HOST)
        start_agent(url=f"http://{HOST}:{plane.port}", **through(proxy))
        assert_runs_a_job(plane)
        assert any(line.startswith("POST http://") for line in proxy.asked)

    def test_a_host_in_no_proxy_is_reached_without(
        self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy
    ) -> None:
        start_agent(**through(proxy), NO_PROXY="127.0.0.1")
        assert_runs_a_job(plane)
        assert proxy.asked == []

    def test_a_proxy_with_a_password(
        self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy, authority: Authority
    ) -> None:
        proxy.password = "edge:se%20cret"
        plane.speak_tls(serving(authority.issue("plane", hosts=(HOST,))), host=HOST)
        address = proxy.url.replace("://", "://edge:se%2520cret@")
        agent = start_agent("--ca-bundle", str(authority.file), HTTPS_PROXY=address)
        assert_runs_a_job(plane)
        proxy.close()
        # Which of its connections it misses first is chance; it says so once a minute.
        plane.wait_for(lambda: "running tasks go on" in agent.stderr)
        assert "cret" not in agent.stderr

    def test_an_agent_that_runs_outlives_its_proxy_and_says_what_is_away(
        self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy
    ) -> None:
        agent = start_agent(url=f"http://{HOST}:{plane.port}", **through(proxy), NO_PROXY="127.0.0.1")
        plane.wait_for(lambda: plane.parked)
        proxy.refuses = 407
        plane.order()
        plane.wait_for(lambda: "wants a user name and a password" in agent.stderr)
        proxy.refuses = None
        assert_runs_a_job(plane)


class TestCertificates:
    def test_an_own_ca_and_a_required_client_certificate(
        self, plane: ControlPlane, start_agent: Start, authority: Authority, tmp_path: Path
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane"), requires=authority.file))
        certificate, key = tmp_path / "me.crt", tmp_path / "me.key"
        split(authority.issue("press-7", hosts=()), certificate=certificate, key=key)
        start_agent(
            *("--ca-bundle", str(authority.file)),
            *("--client-certificate", str(certificate), "--client-key", str(key)),
        )
        assert_runs_a_job(plane)
        assert plane.shown == {"press-7"}

    def test_what_enrolling_was_told_of_certificates_is_found_by_the_agent(
        self, plane: ControlPlane, start_enrol: Enrol, start_agent: Start, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane"), requires=authority.file))
        mine = authority.issue("press-7", hosts=())
        enrolling = start_enrol(
            *("--ca-bundle", str(authority.file), "--client-certificate", str(mine)), given=plane.invite()
        )
        assert enrolling.wait() == 0, enrolling.stderr
        start_agent(enrolled=True)
        assert_runs_a_job(plane)

    def test_a_variable_that_requests_would_read_hinders_nothing(
        self, plane: ControlPlane, start_agent: Start, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane")))
        start_agent("--ca-bundle", str(authority.file), REQUESTS_CA_BUNDLE="/no/such/file")
        assert_runs_a_job(plane)

    @pytest.mark.parametrize("own_ca", [True, False])
    def test_what_requests_would_read_of_the_environment_is_not_trusted(
        self, plane: ControlPlane, start_agent: Start, authority: Authority, tmp_path: Path, own_ca: bool
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane")))
        flags = ("--ca-bundle", str(Authority(tmp_path / "pki", name="Other CA").file)) if own_ca else ()
        agent = start_agent(*flags, REQUESTS_CA_BUNDLE=str(authority.file))
        assert agent.wait() == 14
        assert "REQUESTS_CA_BUNDLE is not read" in agent.stderr

    def test_a_kept_connection_ends_when_its_certificate_is_replaced(
        self, plane: ControlPlane, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane"), requires=authority.file))
        mine = authority.issue("press-7", hosts=())
        with Transport(ca_bundle=authority.file, client_certificate=mine).session() as session:
            for _ in range(2):
                session.get(f"{plane.execution_api_url}health", timeout=10)
            assert len(plane.connections) == 1
            mine.write_bytes(authority.issue("renewed", hosts=()).read_bytes())
            session.get(f"{plane.execution_api_url}health", timeout=10)
            plane.wait_for(lambda: len(plane.connections) == 1)
        assert plane.shown == {"press-7", "renewed"}

    def test_a_ca_that_the_system_trusts_needs_no_setting(
        self, plane: ControlPlane, start_agent: Start, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane")))
        start_agent(SSL_CERT_FILE=str(authority.file))
        assert_runs_a_job(plane)

    def test_certificates_are_swapped_while_agent_and_task_run(
        self, plane: ControlPlane, start_agent: Start, authority: Authority, tmp_path: Path
    ) -> None:
        trusted, certificate, key = tmp_path / "ca.pem", tmp_path / "me.crt", tmp_path / "me.key"
        trusted.write_bytes(authority.file.read_bytes())
        split(authority.issue("press-7", hosts=()), certificate=certificate, key=key)
        plane.speak_tls(serving(authority.issue("plane"), requires=authority.file))
        agent = start_agent(
            *("--ca-bundle", str(trusted)),
            *("--client-certificate", str(certificate), "--client-key", str(key)),
        )
        before, gate = plane.add({"until": str(tmp_path / "go")}), tmp_path / "go"
        plane.wait_for(lambda: before.state == "running" and agent.starts())

        after = Authority(tmp_path / "pki", name="Next CA")
        plane.speak_tls(serving(after.issue("plane"), requires=after.file))
        trusted.write_bytes(after.file.read_bytes())
        split(after.issue("press-7-renewed", hosts=()), certificate=certificate, key=key)
        plane.wait_for(lambda: "press-7-renewed" in plane.shown)

        gate.touch()  # what the task says of its end, it says over a new connection
        plane.wait_for(lambda: before.state == "success")
        assert_runs_a_job(plane)
        assert "certificates have changed" in agent.stderr

    def test_a_file_that_is_not_whole_changes_nothing_and_is_said_once(
        self, plane: ControlPlane, start_agent: Start, authority: Authority, tmp_path: Path
    ) -> None:
        trusted = tmp_path / "ca.pem"
        trusted.write_bytes(authority.file.read_bytes())
        plane.speak_tls(serving(authority.issue("plane")))
        agent = start_agent("--ca-bundle", str(trusted))
        assert_runs_a_job(plane)
        trusted.write_bytes(authority.file.read_bytes()[:100])
        plane.order()
        plane.wait_for(lambda: "what was read before stays in use" in agent.stderr)
        requests = len(plane.requests)
        plane.order()
        plane.wait_for(lambda: len(plane.requests) > requests + 2)
        assert agent.stderr.count("what was read before stays in use") == 1


class TestLines:
    """What stands in the way has a line of its own, and the exit code 14."""

    def ends(self, agent: Agent, *, says: str, code: int = 14) -> None:
        assert agent.wait() == code, agent.stderr
        (line,) = [line for line in agent.stderr.splitlines() if line.startswith("edge-agent:")]
        assert says in line
        assert "Traceback" not in agent.stderr
        assert "cret" not in line

    @pytest.mark.parametrize(
        ("hosts", "days", "own_ca", "says"),
        [
            (("127.0.0.1",), (-1, 30), False, "is not trusted here"),
            (("127.0.0.1",), (-9, -1), True, "has expired; have it renewed, or set this machine's clock"),
            (("127.0.0.1",), (1, 9), True, "is not valid yet"),
            (("edge.example.com",), (-1, 30), True, "is made for another name"),
        ],
        ids=["untrusted", "expired", "of tomorrow", "of another name"],
    )
    def test_a_certificate_that_is_not_accepted(
        self,
        plane: ControlPlane,
        start_agent: Start,
        authority: Authority,
        hosts: tuple[str, ...],
        days: tuple[int, int],
        own_ca: bool,
        says: str,
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane", hosts=hosts, days=days)))
        self.ends(start_agent(*(("--ca-bundle", str(authority.file)) if own_ca else ())), says=says)

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_a_gateway_that_requires_a_certificate(
        self, plane: ControlPlane, start_agent: Start, authority: Authority, version: ssl.TLSVersion
    ) -> None:
        context = serving(authority.issue("plane"), requires=authority.file)
        context.maximum_version = version
        plane.speak_tls(context)
        self.ends(start_agent("--ca-bundle", str(authority.file)), says="give --client-certificate and --client-key")

    def test_what_a_gateway_says_counts_when_it_has_closed_before_all_is_sent(self, authority: Authority) -> None:
        context, closed = serving(authority.issue("plane"), requires=authority.file), threading.Event()
        listener = socket.create_server(("127.0.0.1", 0))

        def refuse() -> None:
            line, _ = listener.accept()
            with line, contextlib.suppress(OSError):
                context.wrap_socket(line, server_side=True)
            closed.set()

        def parts() -> Iterator[bytes]:
            assert closed.wait(20)
            for _ in range(100):
                yield b"x" * 10_000
                time.sleep(0.01)

        threading.Thread(target=refuse, daemon=True).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with listener, Transport(ca_bundle=authority.file).session() as session:
            with pytest.raises(requests.RequestException) as caught:
                session.post(url, data=parts(), timeout=20)
            assert "a certificate of this machine is required" in str(explain(caught.value, url=url))

    def test_a_gateway_that_does_not_accept_the_certificate(
        self, plane: ControlPlane, start_agent: Start, authority: Authority
    ) -> None:
        plane.speak_tls(serving(authority.issue("plane"), requires=authority.file))
        old = authority.issue("press-7", hosts=(), days=(-9, -1))
        agent = start_agent("--ca-bundle", str(authority.file), "--client-certificate", str(old))
        self.ends(agent, says="the certificate of this machine is not accepted")

    def test_a_proxy_that_wants_a_password(self, plane: ControlPlane, start_agent: Start, proxy: ForwardProxy) -> None:
        proxy.password = "edge:secret"
        self.ends(start_agent(url=f"https://{HOST}:1", **through(proxy)), says="wants a user name and a password (407)")
        self.ends(start_agent(url=f"http://{HOST}:1", **through(proxy)), says="wants a user name and a password (407)")

    def test_a_proxy_that_does_not_let_through(self, start_agent: Start, proxy: ForwardProxy) -> None:
        proxy.refuses = 403
        agent = start_agent(url=f"https://{HOST}:1", **through(proxy))
        self.ends(agent, says=f"{proxy.url} (HTTPS_PROXY) does not let this machine through to {HOST} (403)")

    def test_a_proxy_that_is_not_there(self, start_agent: Start, proxy: ForwardProxy) -> None:
        proxy.close()
        agent = start_agent(url=f"https://{HOST}:1", HTTPS_PROXY=proxy.url.replace("://", "://edge:secret@"))
        self.ends(agent, code=4, says=f"the proxy {proxy.url} (HTTPS_PROXY) cannot be reached (Connection refused)")

    def test_an_enrolment_that_is_not_let_through_can_be_repeated(
        self, plane: ControlPlane, start_enrol: Enrol, authority: Authority
    ) -> None:
        """The first try arrived, its answer was lost, and now a gateway stands before: the token is not forgotten."""
        invitation = plane.invite()
        plane.fault = lambda path, number: "drop"
        assert start_enrol("--retry-seconds", "0", given=invitation).wait() == 4
        plane.speak_tls(serving(authority.issue("plane")))
        plane.fault = lambda path, number: None
        refused = start_enrol(given=invitation)
        assert refused.wait() == 14
        assert "then give the same command again" in refused.stderr
        assert start_enrol("--ca-bundle", str(authority.file), given=invitation).wait() == 0
