"""Why a request got no answer, in one line with what to do about it; pure, nothing is sent or repeated here."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests

from agent.errors import AgentError, NotLetThrough, Unreachable, WrongUrl

#: `verify_code` of OpenSSL: what is wrong with a certificate that was shown to us.
NOT_YET_VALID, EXPIRED = 9, 10
WRONG_NAME = (62, 64)
#: What a gateway says of the certificate that it was shown, or not, in OpenSSL's words.
REFUSED = (
    "bad certificate",
    "certificate expired",
    "certificate revoked",
    "certificate unknown",
    "unsupported certificate",
    "unknown ca",
    "access denied",
)
TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})")
#: Answers of a proxy by which it says that it does not want, and not that it cannot.
PROXY_WANTS_PASSWORD, PROXY_REFUSES = 407, (401, 403, 405)


@dataclass(frozen=True)
class Obstacle:
    """What stood between us and the other side."""

    reason: str
    #: What somebody can do about it.
    remedy: str
    #: How the agent ends where the address has never led to a control plane.
    error: type[AgentError] = Unreachable
    #: Of causes that are not told from a machine that is off.
    common: bool = False

    def __str__(self) -> str:
        """One line; what is common needs no advice."""
        return self.reason if self.common else f"{self.reason}; {self.remedy}"


def explain(error: BaseException, *, url: str, environ: Mapping[str, str] = os.environ) -> Obstacle:
    """Why a request to this address failed with this exception of requests."""
    host = urlsplit(url).hostname or url
    causes = list(chain(error))
    proxy = next((cause for cause in causes if isinstance(cause, requests.exceptions.ProxyError)), None)
    tunnel = next((found for cause in causes if (found := TUNNEL.search(str(cause)))), None)
    if tunnel is not None:
        return of_proxy_answer(int(tunnel[1]), url=url, environ=environ)
    if proxy is not None:
        return away_proxy(causes, url=url, environ=environ)
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL) and is_address(url):
        return Obstacle(
            f"{proxy_name(url, environ)} is not an HTTP proxy that can be used",
            "it must look like http://proxy.example.com:3128",
            NotLetThrough,
        )
    if isinstance(error, requests.exceptions.InvalidURL):
        return Obstacle("that is not a web address", "it must look like https://edge.example.com", WrongUrl)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return of_certificate(cause, host=host, environ=environ)
        if isinstance(cause, ssl.SSLError) and (alert := of_alert(cause)) is not None:
            return alert
        if isinstance(cause, socket.gaierror):
            return Obstacle(
                f"the host name {host} does not exist, as seen from here",
                "check the address and DNS, or set HTTPS_PROXY if the way out is a proxy",
                WrongUrl,
            )
    return Obstacle(innermost(causes), "check the address, that the other side runs, proxy and firewall", common=True)


def of_certificate(error: ssl.SSLCertVerificationError, *, host: str, environ: Mapping[str, str]) -> Obstacle:
    """What is wrong with the certificate that the other side showed."""
    if error.verify_code in (EXPIRED, NOT_YET_VALID):
        what = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return Obstacle(
            f"the certificate of {host} {what}",
            f"have it renewed, or set this machine's clock, which says {now}",
            NotLetThrough,
        )
    if error.verify_code in WRONG_NAME:
        return Obstacle(
            f"the certificate that {host} shows is made for another name ({error.verify_message.rstrip('.')})",
            "check the address, or have the certificate made for that name",
            NotLetThrough,
        )
    ignored = "REQUESTS_CA_BUNDLE is not read; " if environ.get("REQUESTS_CA_BUNDLE") else ""
    return Obstacle(
        f"the certificate of {host} is not trusted here ({error.verify_message})",
        f"{ignored}name the file of the CA that signed it with --ca-bundle",
        NotLetThrough,
    )


def of_alert(error: ssl.SSLError) -> Obstacle | None:
    """What the other side said to end the handshake; None when it is about no certificate."""
    said = str(error.reason or error).replace("_", " ").lower()
    if any(words in said for words in ("wrong version number", "http request", "record layer failure")):
        return Obstacle("the other side does not speak TLS", "check whether the address begins with http://", WrongUrl)
    if "alert" not in said:
        return None
    if "certificate required" in said:
        return certificate_required(said)
    if any(words in said for words in REFUSED):
        return certificate_refused(said)
    if "handshake failure" in said:  # how TLS 1.2 says it, among other things
        return Obstacle(
            f"the other side broke the TLS handshake off ({said})",
            "if it requires a certificate of this machine, give --client-certificate and --client-key",
            NotLetThrough,
        )
    return None


def certificate_required(said: str) -> Obstacle:
    return Obstacle(
        f"a certificate of this machine is required ({said})",
        "give --client-certificate and --client-key",
        NotLetThrough,
    )


def certificate_refused(said: str) -> Obstacle:
    return Obstacle(
        f"the certificate of this machine is not accepted ({said})",
        "have --client-certificate renewed by a CA that the other side trusts",
        NotLetThrough,
    )


def of_page(status: int, page: str, *, url: str, environ: Mapping[str, str] = os.environ) -> Obstacle | None:
    """What a proxy or a gateway means that answered a request by itself; None when that cannot be told."""
    if status == PROXY_WANTS_PASSWORD:
        return of_proxy_answer(status, url=url, environ=environ)
    if status == 400 and "plain HTTP request was sent to HTTPS port" in page:
        return Obstacle("that port speaks TLS only", "let the address begin with https://", WrongUrl)
    if status == 400 and "SSL certificate" in page:  # nginx, which lets the handshake succeed
        missing = "No required SSL certificate" in page
        return certificate_required("400") if missing else certificate_refused("400")
    return None


def of_proxy_answer(status: int, *, url: str, environ: Mapping[str, str]) -> Obstacle:
    """What a proxy means that answers by itself instead of letting us through."""
    name, host = proxy_name(url, environ), urlsplit(url).hostname
    if status == PROXY_WANTS_PASSWORD and "@" in proxy_address(url, environ)[1]:
        return Obstacle(
            f"{name} does not accept the user name and password that its address has (407)",
            "mend them there; characters such as @ and / are written as %40 and %2F",
            NotLetThrough,
        )
    if status == PROXY_WANTS_PASSWORD:
        return Obstacle(
            f"{name} wants a user name and a password (407)",
            "put them into the proxy's address: http://user:password@host:port",
            NotLetThrough,
        )
    if status in PROXY_REFUSES:
        return Obstacle(
            f"{name} does not let this machine through to {host} ({status})",
            "have the address allowed there, or name the host in NO_PROXY if it can be reached without",
            NotLetThrough,
        )
    return Obstacle(f"{name} does not reach {host} ({status})", "check the address as seen from the proxy")


def away_proxy(causes: list[BaseException], *, url: str, environ: Mapping[str, str]) -> Obstacle:
    name = proxy_name(url, environ)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return Obstacle(f"the host name of {name} does not exist, as seen from here", "check the proxy's address")
    return Obstacle(f"{name} cannot be reached ({innermost(causes)})", "check the proxy's address, and that it runs")


def proxy_name(url: str, environ: Mapping[str, str]) -> str:
    """`the proxy http://host:port (HTTPS_PROXY)`: the one that is taken to this address, never its password."""
    variable, address = proxy_address(url, environ)
    if not variable:
        return "the proxy"
    scheme, _, rest = address.rpartition("://")
    return f"the proxy {scheme or 'http'}://{rest.rpartition('@')[2]} ({variable})"


def proxy_address(url: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that names the proxy to this address, and what it says; both are empty where none does."""
    for variable in (f"{urlsplit(url).scheme}_proxy", "all_proxy"):
        for spelling in (variable, variable.upper()):
            if address := environ.get(spelling):
                return spelling, address
    return "", ""


def is_address(url: str) -> bool:
    """Whether requests can make something of the address itself."""
    try:
        requests.Request("GET", url).prepare()
    except requests.RequestException:
        return False
    return True


def chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it wraps; requests and urllib3 do so in four ways."""
    seen: set[int] = set()
    left: list[object] = [error]
    while left:
        one = left.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            left += [getattr(one, "reason", None), getattr(one, "original_error", None)]
            left += [one.__cause__, one.__context__, *one.args]


def describe(error: BaseException) -> str:
    """The words of the system's own error, however it is wrapped."""
    return innermost(list(chain(error)))


def innermost(causes: list[BaseException]) -> str:
    """The words of the system's own error, else of the one that wraps least."""
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return clean(cause.strerror)
    last = causes[-1]
    return clean(str(last).split(": ", 1)[-1]) or type(last).__name__


def clean(text: str) -> str:
    return " ".join(text.split())[:200]
