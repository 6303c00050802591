from __future__ import annotations

import functools
import os
import ssl
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


API_SSL_CERT_PATH = os.environ.get("AIRFLOW__API__SSL_CERT")
API_SSL_CA_FILE_PATH = os.environ.get("AIRFLOW__API__SSL_CA_FILE")
API_CLIENT_SSL_CERT = os.environ.get("AIRFLOW__API__CLIENT_SSL_CERT")
API_CLIENT_SSL_KEY = os.environ.get("AIRFLOW__API__CLIENT_SSL_KEY")


class Client(httpx.Client):
    """As to certificates, what Airflow 3.3.2 has."""

    @functools.lru_cache
    @staticmethod
    def _get_ssl_context_cached(ca_file: str | None, ca_path: str | None) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=ca_file)

    def __init__(self, *, base_url: str, token: str) -> None:
        context = type(self)._get_ssl_context_cached(API_SSL_CA_FILE_PATH, API_SSL_CERT_PATH)
        if API_CLIENT_SSL_CERT:
            context.load_cert_chain(API_CLIENT_SSL_CERT, API_CLIENT_SSL_KEY)
        super().__init__(base_url=base_url, timeout=2.0, verify=context, event_hooks={"response": [raise_for]})
