"""How the agent gets out: through which proxy, whom it trusts, what it shows of itself; requests are made elsewhere.

Proxies come from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Whom to trust comes from `ca_bundle`, else from the system and
certifi, as in Airflow's own client; never from REQUESTS_CA_BUNDLE, which that client does not read either.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import certifi
import requests

from agent.deadline import PromptAdapter
from agent.errors import BadConfig

log = logging.getLogger("agent.transport")

#: Of the environment: what says which proxy to take, in both spellings.
PROXY_VARIABLES = tuple(
    spelling for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY") for spelling in (name, name.lower())
)
#: How long an alert may be on its way when its connection is closed already.
ALERT_SECONDS = 1.0
Stamp = tuple[int, ...]


class Settings(Protocol):
    @property
    def ca_bundle(self) -> Path | None: ...
    @property
    def client_certificate(self) -> Path | None: ...
    @property
    def client_key(self) -> Path | None: ...


class Certificates:
    """The TLS context of all connections, made anew when one of its files has changed. Safe for many threads."""

    def __init__(
        self, *, ca_bundle: Path | None = None, client_certificate: Path | None = None, client_key: Path | None = None
    ) -> None:
        self.ca_bundle = ca_bundle
        self.certificate = client_certificate
        self.key = client_key
        usual = ssl.get_default_verify_paths().cafile
        trusted = ca_bundle or (Path(usual) if usual else None)
        self._files = [path for path in (trusted, client_certificate, client_key) if path is not None]
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._tried: list[Stamp] = []

    @property
    def given(self) -> bool:
        """Whether any file of this machine's own has a say."""
        return bool(self.ca_bundle or self.certificate or self.key)

    def context(self) -> ssl.SSLContext:
        """The context for connections that begin now. Raises BadConfig only where there was none before."""
        with self._lock:
            # Before the files are read: what changes meanwhile is read again.
            stamps = [stamp(path) for path in self._files]
            if self._context is None:
                self._context, self._tried = self._load(), stamps
            elif stamps != self._tried:
                self._tried = stamps
                self._renew()
            return self._context

    def _renew(self) -> None:
        """Take the new files, or say once that they cannot be used and keep what they held before."""
        try:
            self._context = self._load()
        except BadConfig as error:
            log.warning("%s; what was read before stays in use until the file changes again", error)
        else:
            log.info("certificates have changed (%s); new connections use them", ", ".join(map(str, self._files)))

    def _load(self) -> ssl.SSLContext:
        if self.key is not None and self.certificate is None:
            raise BadConfig("client_key needs client_certificate: name the certificate that the key belongs to")
        context = self._trust()
        if self.certificate is not None:
            self._identify(context, self.certificate, self.key)
        return context

    def _trust(self) -> ssl.SSLContext:
        if self.ca_bundle is None:
            context = ssl.create_default_context()
            context.load_verify_locations(certifi.where())
            return context
        check_readable(self.ca_bundle, what="the CA bundle")
        try:
            return ssl.create_default_context(cafile=self.ca_bundle)
        except OSError as error:  # ssl.SSLError is one
            raise BadConfig(
                f"the CA bundle {self.ca_bundle} cannot be used ({why(error)}): it must hold CA certificates as PEM"
            ) from None

    def _identify(self, context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
        check_readable(certificate, what="the client certificate")
        if key is not None:
            check_readable(key, what="the client key")
        place = f"the client key {key}" if key is not None else f"the client key in {certificate}"
        try:
            context.load_cert_chain(certificate, key, password=no_password)
        except Encrypted:
            raise BadConfig(
                f"{place} is encrypted: write it without a passphrase, readable for the agent only"
            ) from None
        except (OSError, ValueError) as error:  # ssl.SSLError among them
            if "KEY_VALUES_MISMATCH" in str(error):
                raise BadConfig(f"{place} does not belong to the client certificate {certificate}") from None
            raise BadConfig(
                f"the client certificate {certificate} and its key cannot be used ({why(error)}): both must be PEM, "
                "the key in the same file or in the one that client_key names"
            ) from None


class Encrypted(Exception):
    """A key wants a passphrase; without this, OpenSSL would ask for it at the terminal."""


def no_password() -> str:
    raise Encrypted


def check_readable(path: Path, *, what: str) -> None:
    """Raise BadConfig with the system's reason, which OpenSSL does not always give."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise BadConfig(f"cannot read {what} {path}: {error.strerror}") from None


def stamp(path: Path) -> Stamp:
    """What changes whenever a file is written, replaced, or made readable."""
    try:
        facts = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino)


def why(error: Exception) -> str:
    """OpenSSL's reason, without its codes and the line of its source."""
    text = str(getattr(error, "reason", None) or error).split(" (_ssl", 1)[0]
    return " ".join(text.rpartition("]")[2].replace("_", " ").lower().split())


class AlertReader:
    """A connection that, when it cannot send, says what the other side had to say before it closed.

    With TLS 1.3 a server refuses a certificate, or that there is none, only after the client has begun to send.
    """

    sock: Any

    def send(self, data: Any) -> None:
        try:
            super().send(data)  # type: ignore[misc]
        except OSError:
            self._read_alert()
            raise

    def _read_alert(self) -> None:
        """Raise the alert that came in, if one did."""
        if not isinstance(self.sock, ssl.SSLSocket):
            return
        try:
            self.sock.settimeout(ALERT_SECONDS)
            self.sock.recv(1)
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                raise
        except OSError:
            pass


class Adapter(PromptAdapter):
    """Connections by these certificates. Requests' own settings and variables for them have no say."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._context: ssl.SSLContext | None = None
        super().__init__()

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        host, options = super().build_connection_pool_key_attributes(request, True)
        if host["scheme"] == "https":
            options["ssl_context"] = self._current()
        return host, options

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **options)
        if not issubclass(pool.ConnectionCls, AlertReader):
            pool.ConnectionCls = type("AlertReader", (AlertReader, pool.ConnectionCls), {})
        return pool

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        if proxy.lower().startswith("https:"):
            options["proxy_ssl_context"] = self._current()
        return super().proxy_manager_for(proxy, **options)

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing: the original would have every connection trust certifi, whatever its context says."""

    def _current(self) -> ssl.SSLContext:
        context = self._certificates.context()
        if context is not self._context:
            self.close()  # what is kept open was agreed upon by the old certificates
            self.proxy_manager.clear()
            self._context = context
        return context


class Transport:
    """Makes the sessions of one agent, which share what they trust and show."""

    def __init__(
        self, *, ca_bundle: Path | None = None, client_certificate: Path | None = None, client_key: Path | None = None
    ) -> None:
        self.certificates = Certificates(
            ca_bundle=ca_bundle, client_certificate=client_certificate, client_key=client_key
        )

    @classmethod
    def of(cls, settings: Settings) -> Transport:
        return cls(
            ca_bundle=settings.ca_bundle,
            client_certificate=settings.client_certificate,
            client_key=settings.client_key,
        )

    def check(self) -> None:
        """Raise BadConfig when the files that are named cannot be used."""
        if self.certificates.given:
            self.certificates.context()

    def session(self) -> requests.Session:
        """A session for one thread at a time; its connections are kept open."""
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, Adapter(self.certificates))
        return session


def task_variables(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """What has a task's own calls to Airflow take the way that the agent takes (settings of Airflow 3.3's client).

    What the environment says to Airflow itself goes before. A task's own code is not told whom to trust.
    """
    found = {name: environ[name] for name in PROXY_VARIABLES if name in environ}
    certificate, key = settings.client_certificate, settings.client_key
    if settings.ca_bundle is not None and "AIRFLOW__API__SSL_CA_FILE" not in environ:
        found["AIRFLOW__API__SSL_CA_FILE"] = str(settings.ca_bundle)
        found["AIRFLOW__API__CLIENT_USE_PUBLIC_CERTS"] = "False"
    if certificate is not None and "AIRFLOW__API__CLIENT_SSL_CERT" not in environ:
        found["AIRFLOW__API__CLIENT_SSL_CERT"] = str(certificate)
        found["AIRFLOW__API__CLIENT_SSL_KEY"] = str(key or certificate)
    return found
