"""The operator API as the commands call it: pages put together, and whatever goes wrong told as one line.

The token goes to the one address that was named, whatever an answer says: no redirect is followed, and of a link to the
next page only its query is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from airflow_bridge.cli.access import Access
from airflow_bridge.cli.endings import Code, Failed
from airflow_bridge.cli.table import Kind

FLEET = "/api/v1/fleet/"
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 60.0
#: As many as one request may name.
MOST_NAMES = 1000


class Refused(Failed):
    """The control plane said no."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text, Code.WRONG_USAGE if status == httpx.codes.BAD_REQUEST else Code.REFUSED)
        #: It would be said again of whatever is asked next: of who is asking, or of the control plane itself.
        self.ends_all = status not in (httpx.codes.BAD_REQUEST, httpx.codes.CONFLICT)


@dataclass(frozen=True)
class Answer:
    """To whom an operation was done, and why not to the others."""

    done: list[str]
    #: (name, why).
    skipped: list[tuple[str, str]]


class FleetApi:
    """Raises Failed when the way out that the environment names cannot be used."""

    def __init__(self, access: Access) -> None:
        self.access = access
        try:
            self._http = httpx.Client(
                base_url=access.url,
                headers={"Authorization": f"Bearer {access.token}", "Accept": "application/json"},
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                follow_redirects=False,
            )
        except OSError as error:
            raise Failed(f"the certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read: {error}") from None
        except (ValueError, ImportError, httpx.InvalidURL):
            # Not repeated: it might hold a password.
            text = (
                "the proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names must look like http://proxy.example.com:3128"
            )
            raise Failed(text) from None

    def __enter__(self) -> FleetApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # -- what it is asked ---------------------------------------------------------

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """What stands below the API's address. Raises Failed."""
        return self._ask("GET", path, params=dict(query or {}))

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change something. Raises Failed; when it was interrupted, nobody knows whether it was done."""
        try:
            return self._ask("POST", path, json=dict(body))
        except KeyboardInterrupt:
            text = "interrupted; whether it was done is not known: `airflow edgecontrol list-changes` tells"
            raise Failed(text, Code.INTERRUPTED) from None

    def rows(self, kind: Kind, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """A list, page after page, as long as somebody reads on."""
        asked = {**query, "limit": str(kind.page)}
        while True:
            page = self.get(f"{kind.path}/", asked)
            yield from page["results"]
            if not page["next"]:
                return
            # Only how it goes on: behind a proxy the control plane may know another address of itself.
            asked = dict(httpx.URL(page["next"]).params)

    def operate(self, kind: Kind, operation: str, names: Sequence[str], said: Mapping[str, str]) -> Iterator[Answer]:
        """Do an operation to all of these, in requests of as many as one takes."""
        for start in range(0, len(names), MOST_NAMES):
            part = list(names[start : start + MOST_NAMES])
            answer = self.post(f"{kind.path}/{operation}/", {"names": part, **said})
            yield Answer(answer["done"], [(each["name"], each["why"]) for each in answer["skipped"]])

    # -- what goes wrong ----------------------------------------------------------------

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, FLEET + path, **options)
        except httpx.HTTPError as error:
            raise Failed(f"{self.access.url} cannot be reached: {_why(error)}") from None
        except UnicodeEncodeError:
            raise Failed("an argument is no text in UTF-8", Code.WRONG_USAGE) from None
        try:
            body = answer.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            body = None
        if answer.is_success and isinstance(body, dict):
            return body
        raise self._refusal(answer, body)

    def _refusal(self, answer: httpx.Response, body: Any) -> Failed:
        status, url = answer.status_code, self.access.url
        if isinstance(body, dict) and isinstance(body.get("detail"), str) and isinstance(body.get("code"), str):
            text = body["detail"]
            if status == httpx.codes.UNAUTHORIZED:
                text = f"{url} does not accept the token in {self.access.token_file}: {text}"
            return Refused(text, status=status)
        if answer.is_redirect:
            return Failed(f"{url} sends elsewhere, to {_origin(answer)}; name the address where it ends")
        if status in (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT):
            return Failed(f"something before the control plane at {url} answers {status}: it is away; try again later")
        return Failed(f"at {url} something else than a control plane answers ({status}); correct the address")


def _why(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time; try again, or look whether it runs"
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted here; SSL_CERT_FILE may name the CA's certificate"
    return f"{text}; look at the address, the way there (HTTPS_PROXY) and whether it runs"


def _origin(answer: httpx.Response) -> str:
    target = answer.request.url.join(answer.headers.get("Location", ""))
    return f"{target.scheme}://{target.netloc.decode('ascii', errors='replace')}"
