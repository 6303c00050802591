"""Files of certificates: which are refused, and what a change of them does to what is in use."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certifi
import pytest

from agent.errors import BadConfig
from agent.runner import Renewal
from agent.transport import Certificates, Transport, task_variables
from tests.integration.agent.certificates import Authority, encrypted, split


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", name="Other CA")


def authorities(context: ssl.SSLContext) -> set[str]:
    return {str(found["subject"][0][0][1]) for found in context.get_ca_certs()}  # type: ignore[index]


class TestFiles:
    def refused(self, says: str, **files: Path) -> None:
        with pytest.raises(BadConfig) as caught:
            Transport(**files).check()
        assert says in str(caught.value)
        assert all(str(path) in str(caught.value) for name, path in files.items() if name == "ca_bundle")

    def test_a_bundle_that_is_not_there_or_holds_no_certificates(self, authority: Authority, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        self.refused("No such file", ca_bundle=file)
        for content in ("", "hello", authority.file.read_text()[:200]):
            file.write_text(content)
            self.refused("must hold CA certificates as PEM", ca_bundle=file)

    def test_a_bundle_that_is_cut_off_in_its_second_certificate(
        self, authority: Authority, other: Authority, tmp_path: Path
    ) -> None:
        file = tmp_path / "ca.pem"
        file.write_text(authority.file.read_text() + other.file.read_text()[:200])
        self.refused("must hold CA certificates as PEM", ca_bundle=file)

    def test_a_key_without_its_certificate(self, authority: Authority) -> None:
        self.refused("client_key needs client_certificate", client_key=authority.issue("press-7"))

    def test_a_certificate_without_a_key(self, authority: Authority) -> None:
        self.refused("both must be PEM, the key in the same file", client_certificate=authority.file)

    def test_a_key_of_another_certificate(self, authority: Authority, tmp_path: Path) -> None:
        certificate, key, nothing = tmp_path / "me.crt", tmp_path / "me.key", tmp_path / "rest"
        split(authority.issue("press-7"), certificate=certificate, key=nothing)
        split(authority.issue("press-8"), certificate=nothing, key=key)
        self.refused("does not belong to the client certificate", client_certificate=certificate, client_key=key)

    def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(self, authority: Authority, tmp_path: Path) -> None:
        file = tmp_path / "me.pem"
        file.write_text(encrypted(authority.issue("press-7")))
        self.refused("is encrypted", client_certificate=file)


class TestTrust:
    def test_an_own_bundle_is_trusted_instead_of_the_usual_ones(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
        assert authorities(Certificates(ca_bundle=authority.file).context()) == {"Test CA"}

    def test_without_one_the_system_and_certifi_are_trusted(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        found = authorities(Certificates().context())
        assert "Test CA" in found
        assert len(found) > 20


class TestChanges:
    def test_the_context_stays_while_no_file_changes(self, authority: Authority) -> None:
        certificates = Certificates(ca_bundle=authority.file)
        assert certificates.context() is certificates.context()

    def test_a_new_bundle_replaces_the_old_one(self, authority: Authority, other: Authority) -> None:
        certificates = Certificates(ca_bundle=authority.file)
        before = certificates.context()
        authority.file.write_bytes(other.file.read_bytes())
        assert authorities(certificates.context()) == {"Other CA"}
        assert authorities(before) == {"Test CA"}

    @pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nMIIB"])
    def test_what_cannot_be_used_is_said_once_and_the_old_stays(
        self, authority: Authority, caplog: pytest.LogCaptureFixture, content: bytes | None
    ) -> None:
        certificates, whole = Certificates(ca_bundle=authority.file), authority.file.read_bytes()
        before = certificates.context()
        if content is None:
            authority.file.unlink()
        else:
            authority.file.write_bytes(content)
        with caplog.at_level(logging.INFO, logger="agent.transport"):
            assert [certificates.context() for _ in range(3)] == [before] * 3
            assert len(caplog.records) == 1
            authority.file.write_bytes(whole)
            assert authorities(certificates.context()) == {"Test CA"}
        assert certificates.context() is not before
        assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]

    def test_a_new_certificate_waits_for_its_key(self, authority: Authority, tmp_path: Path) -> None:
        certificate, key, later = tmp_path / "me.crt", tmp_path / "me.key", tmp_path / "later"
        split(authority.issue("press-7"), certificate=certificate, key=key)
        certificates = Certificates(client_certificate=certificate, client_key=key)
        before = certificates.context()
        split(authority.issue("renewed"), certificate=certificate, key=later)
        assert certificates.context() is before
        later.replace(key)
        assert certificates.context() is not before

    def test_a_running_task_trusts_and_shows_the_new_files(
        self, authority: Authority, other: Authority, tmp_path: Path
    ) -> None:
        mine = authority.issue("press-7")
        context = ssl.create_default_context(cafile=authority.file)
        sdk: Any = SimpleNamespace(
            API_CLIENT_SSL_CERT=str(mine), API_CLIENT_SSL_KEY=str(mine), API_SSL_CA_FILE_PATH=str(authority.file)
        )
        renewal = Renewal(sdk, context)
        whole = other.issue("press-7").read_bytes()
        authority.file.write_bytes(other.file.read_bytes())
        mine.write_bytes(whole[:300])
        renewal.look()
        assert authorities(context) == {"Test CA"}
        mine.write_bytes(whole)
        renewal.look()
        assert authorities(context) == {"Test CA", "Other CA"}
        mine.unlink()
        renewal.look()  # nothing follows from it


class TestTasks:
    def settings(self, **files: Path) -> Any:
        return SimpleNamespace(**{"ca_bundle": None, "client_certificate": None, "client_key": None, **files})

    def test_without_settings_only_the_proxies_are_passed_on(self) -> None:
        environ = {"https_proxy": "http://p:3128", "NO_PROXY": "x", "PATH": os.defpath, "EDGE_AGENT_TOKEN": "secret"}
        assert task_variables(self.settings(), environ) == {"https_proxy": "http://p:3128", "NO_PROXY": "x"}

    def test_a_tasks_calls_go_by_the_agents_files(self) -> None:
        files = {"ca_bundle": Path("/etc/ca"), "client_certificate": Path("/etc/me")}
        found = task_variables(self.settings(**files), {})
        assert found == {
            "AIRFLOW__API__SSL_CA_FILE": "/etc/ca",
            "AIRFLOW__API__CLIENT_USE_PUBLIC_CERTS": "False",
            "AIRFLOW__API__CLIENT_SSL_CERT": "/etc/me",
            "AIRFLOW__API__CLIENT_SSL_KEY": "/etc/me",
        }
        assert (
            task_variables(self.settings(**files, client_key=Path("/key")), {})["AIRFLOW__API__CLIENT_SSL_KEY"]
            == "/key"
        )

    def test_what_was_said_to_airflow_itself_goes_before(self) -> None:
        files = {"ca_bundle": Path("/etc/ca"), "client_certificate": Path("/etc/me")}
        environ = {"AIRFLOW__API__SSL_CA_FILE": "/own", "AIRFLOW__API__CLIENT_SSL_CERT": "/own"}
        assert task_variables(self.settings(**files), environ) == {}
