"""What is said of a request that got no answer, where no real connection is needed to know."""

from __future__ import annotations

import pytest
import requests

from agent.errors import AgentError, NotLetThrough, Unreachable, WrongUrl
from agent.obstacles import explain, of_page, proxy_name

URL = "https://edge.example.com"


@pytest.mark.parametrize(
    ("status", "page", "says", "end"),
    [
        (400, "<center>The plain HTTP request was sent to HTTPS port</center>", "begin with https://", WrongUrl),
        (
            400,
            "<h1>400 Bad Request</h1><center>No required SSL certificate was sent</center>",
            "is required",
            NotLetThrough,
        ),
        (400, "<center>The SSL certificate error</center>", "is not accepted", NotLetThrough),
        (407, "", "wants a user name and a password", NotLetThrough),
    ],
)
def test_pages_of_gateways_that_mean_certificates_and_passwords(
    status: int, page: str, says: str, end: type[AgentError]
) -> None:
    found = of_page(status, page, url=URL, environ={})
    assert found is not None
    assert says in str(found)
    assert found.error is end


@pytest.mark.parametrize(("status", "page"), [(400, "<h1>Bad Request</h1>"), (404, "certificate"), (503, "")])
def test_other_pages_say_nothing(status: int, page: str) -> None:
    assert of_page(status, page, url=URL) is None


@pytest.mark.parametrize("address", ["http://me:p@ss/w@proxy:3128", "me:pass@proxy:3128", "http://proxy:3128"])
def test_a_proxys_password_is_never_shown(address: str) -> None:
    assert proxy_name(URL, {"https_proxy": address}) == "the proxy http://proxy:3128 (https_proxy)"


@pytest.mark.parametrize("status", [401, 403, 405, 407])
def test_what_a_proxy_refuses_is_not_waited_for(status: int) -> None:
    error = requests.exceptions.ProxyError(OSError(f"Tunnel connection failed: {status} No"))
    assert explain(error, url=URL, environ={}).error is NotLetThrough


def test_a_password_that_a_proxy_does_not_accept_is_told_from_one_that_is_missing() -> None:
    error = requests.exceptions.ProxyError(OSError("Tunnel connection failed: 407 No"))
    said = [str(explain(error, url=URL, environ={"HTTPS_PROXY": f"http://{who}proxy"})) for who in ("", "me:secret@")]
    assert "wants a user name and a password" in said[0]
    assert "does not accept the user name and password" in said[1]
    assert "secret" not in said[1]


def test_what_a_proxy_cannot_reach_may_come() -> None:
    error = requests.exceptions.ProxyError(OSError("Tunnel connection failed: 503 Service Unavailable"))
    assert explain(error, url=URL, environ={}).error is Unreachable


@pytest.mark.parametrize(
    "error", [requests.exceptions.InvalidProxyURL("x"), requests.exceptions.InvalidSchema("SOCKS")]
)
def test_an_address_that_is_no_proxys(error: Exception) -> None:
    found = explain(error, url=URL, environ={"https_proxy": "socks5://proxy"})
    assert "socks5://proxy (https_proxy) is not an HTTP proxy" in str(found)


def test_what_is_common_needs_no_advice() -> None:
    found = explain(requests.exceptions.ConnectionError(ConnectionRefusedError(111, "Connection refused")), url=URL)
    assert str(found) == "Connection refused"
