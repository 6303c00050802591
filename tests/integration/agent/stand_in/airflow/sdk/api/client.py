from __future__ import annotations

from typing import Any

import httpx


class ServerResponseError(httpx.HTTPStatusError):
    detail: Any = None


def raise_for(response: httpx.Response) -> None:
    if response.is_success:
        return
    response.read()
    error = ServerResponseError("refused", request=response.request, response=response)
    error.detail = response.json()
    raise error


def get_hostname() -> str:
    return "unset"


class Client(httpx.Client):
    def __init__(self, *, base_url: str, token: str) -> None:
        super().__init__(base_url=base_url, timeout=2.0, event_hooks={"response": [raise_for]})
