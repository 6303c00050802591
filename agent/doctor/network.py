"""The checks of the way to the control plane: address, proxy, name, certificates."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from requests.utils import get_environ_proxies, select_proxy

from agent.doctor.examination import Examination, Finding, Proxy, failed, ok, warning
from agent.errors import BadConfig
from agent.obstacles import describe, explain, proxy_address
from agent.transport import Transport

CONNECT_SECONDS = 10.0
DAY = 86400.0
#: A certificate with less left than this is to be renewed.
SOON_DAYS = 14
PORTS = {"http": 80, "https": 443}


def url(examination: Examination) -> Iterator[Finding]:
    parts = urlsplit(examination.settings.url)
    if parts.scheme == "http" and not is_here(parts.hostname or ""):
        yield warning(
            "url", f"{examination.settings.url} is not encrypted, tokens can be read on the way: use https://"
        )
    else:
        yield ok("url", examination.settings.url)


def proxy(examination: Examination) -> Iterator[Finding]:
    """Which proxy is used, as `requests` decides it, and whether it answers."""
    address = examination.settings.url
    chosen = select_proxy(address, get_environ_proxies(address, no_proxy=None))
    if not chosen:
        named, _ = proxy_address(address, os.environ)
        yield ok("proxy", f"none: NO_PROXY takes the control plane past {named.upper()}" if named else "none")
        return
    parts = urlsplit(chosen if "://" in chosen else f"http://{chosen}")
    examination.secrets |= {secret for secret in (parts.password, unquote(parts.password or "")) if secret}
    try:
        port = parts.port or PORTS.get(parts.scheme, 1080)
    except ValueError:
        yield failed("proxy", f"{parts.scheme}://{parts.hostname} has no port that can be: check HTTPS_PROXY")
        return
    examination.proxy = found = Proxy(
        parts.scheme, parts.hostname or "", port, unquote(parts.username or ""), unquote(parts.password or "")
    )
    try:
        socket.create_connection((found.host, found.port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        yield failed("proxy", f"{found.shown} does not answer ({describe(error)}): check HTTPS_PROXY and NO_PROXY")
    else:
        yield ok("proxy", f"{found.shown} answers")


def dns(examination: Examination) -> Iterator[Finding]:
    parts = urlsplit(examination.settings.url)
    host = parts.hostname or ""
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        yield ok("dns", f"{host} needs no name")
        return
    if examination.proxy is not None:
        yield ok("dns", f"{host} is looked up by the proxy")
        return
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port_of(parts), type=socket.SOCK_STREAM)}
    except OSError as error:
        yield failed(
            "dns", f"{host} is not known here ({describe(error)}): check --url, and the name server of this machine"
        )
    else:
        yield ok("dns", f"{host} is {', '.join(sorted(map(str, found)))}")


def client_certificate(examination: Examination) -> Iterator[Finding]:
    name, path = "client certificate", examination.settings.client_certificate
    try:
        Transport.of(examination.settings).certificates.context()
    except BadConfig as error:
        yield failed("tls" if path is None or "CA bundle" in str(error) else name, str(error))
        return
    if path is None:
        return
    key = examination.settings.client_key or path
    # Tasks of other users read it too, by their group.
    others = examination.settings.task_user or any(own.user for own in examination.settings.queue_settings.values())
    left = (not_after(path) - time.time()) / DAY
    if left <= 0:
        yield failed(name, f"{path} has expired {-left:.0f} days ago: have it renewed; the agent takes the new file")
    elif os.name == "posix" and key.stat().st_mode & (0o007 if others else 0o077):
        yield warning(
            name, f"{key}, which has its key, can be read by others: chmod {'0640' if others else '0600'} {key}"
        )
    elif left < SOON_DAYS:
        yield warning(name, f"{path} expires in {left:.0f} days: have it renewed; the agent takes the new file")
    else:
        yield ok(name, f"{path}, {left:.0f} days left")


def tls(examination: Examination) -> Iterator[Finding]:
    """Whether the certificate that comes back is believed, and for how long."""
    parts = urlsplit(examination.settings.url)
    if parts.scheme != "https":
        yield ok("tls", "none, the address is http://")
        return
    if examination.proxy is not None and examination.proxy.scheme != "http":
        yield ok("tls", f"through {examination.proxy.shown}; see the control plane")
        return
    with contextlib.suppress(BadConfig):  # has been said
        yield look_at_certificate(examination, parts)


def look_at_certificate(examination: Examination, parts: SplitResult) -> Finding:
    context = Transport.of(examination.settings).certificates.context()
    host, port, through = parts.hostname or "", port_of(parts), examination.proxy
    first = (through.host, through.port) if through is not None else (host, port)
    connection = http.client.HTTPSConnection(*first, timeout=CONNECT_SECONDS, context=context)
    if through is not None:
        connection.set_tunnel(host, port, headers=credentials(through))
    try:
        with contextlib.closing(connection):
            connection.connect()
            certificate = connection.sock.getpeercert() or {}
    except (OSError, http.client.HTTPException) as error:
        return failed("tls", str(explain(error, url=examination.settings.url, environ=examination.environ)))
    left = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / DAY
    if left < SOON_DAYS:
        return warning(
            "tls", f"the certificate of {host} expires in {left:.0f} days: have it renewed at the control plane"
        )
    return ok("tls", f"the certificate of {host} is trusted, {left:.0f} days left")


def credentials(through: Proxy) -> dict[str, str]:
    if not through.user:
        return {}
    pair = base64.b64encode(f"{through.user}:{through.password}".encode()).decode()
    return {"Proxy-Authorization": f"Basic {pair}"}


def not_after(path: Path) -> float:
    """When the first certificate in a PEM file ends, in seconds since 1970.

    The standard library tells this of a certificate only at the other end of a connection. Certificate, its body, then
    (version), serial number, algorithm, issuer, validity: two moments.
    """
    text = path.read_text()
    begin, end = text.index("-----BEGIN CERTIFICATE-----"), text.index("-----END CERTIFICATE-----")
    der = ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n")
    parts = der_parts(der_parts(der_parts(der)[0][1])[0][1])
    fields = [content for kind, content in parts if kind != 0xA0]
    kind, moment = der_parts(fields[3])[1]
    century = "" if kind == 0x18 else "20" if moment[:2] < b"50" else "19"  # RFC 5280, 4.1.2.5.1
    ends = datetime.strptime(century + moment.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    return ends.timestamp()


def der_parts(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a DER sequence: kind and content."""
    parts, at = [], 0
    while at < len(data):
        kind, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size]), at + size
        parts.append((kind, data[at : at + length]))
        at += length
    return parts


def port_of(parts: SplitResult) -> int:
    return parts.port or PORTS[parts.scheme]


def is_here(host: str) -> bool:
    """Whether the address never leaves this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
