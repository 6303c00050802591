"""What tokens look like, how one is made, where settings hold them; none is ever shown, and nobody is asked here."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from agent.errors import BadConfig, BadToken

WORKER_TOKEN = re.compile(r"ec_[A-Za-z0-9]+_[A-Za-z0-9_-]+")
ENROLMENT_TOKEN = re.compile(r"ece_[0-9a-f]{12}_[0-9a-f]{64}")
HOW_TO_ENROL = "`python -m agent enrol --url https://...`"


class Minted(NamedTuple):
    """A worker token that was made here, and the two parts of it that the control plane may know."""

    token: str
    key: str
    digest: str


def mint() -> Minted:
    return of_token(f"ec_{secrets.token_hex(6)}_{secrets.token_hex(32)}")


def of_token(token: str) -> Minted:
    """The parts of a token of `mint`."""
    _, key, secret = token.split("_", 2)
    return Minted(token=token, key=key, digest=hashlib.sha256(secret.encode()).hexdigest())


def looks_like_a_token(value: str) -> bool:
    return value.startswith(("ec_", "ece_"))


def worker_token(merged: Mapping[str, Any]) -> str:
    """The worker's token, from the settings or from the first line of its file. Its text is never shown."""
    given = secret("token", merged)
    if given is None:
        raise BadConfig(
            f"the token is missing: run {HOW_TO_ENROL} first, or have a token made with `manage.py create_worker_token "
            "NAME` on the control plane and give --token-file FILE or set EDGE_AGENT_TOKEN_FILE"
        )
    value, origin = given
    if ENROLMENT_TOKEN.fullmatch(value):
        raise BadToken(f"{origin} holds an enrolment token: run {HOW_TO_ENROL} with it first")
    if not WORKER_TOKEN.fullmatch(value):
        raise BadToken(
            f"{origin} does not hold an EdgeControl token (ec_..._...): have one made with `manage.py "
            f"create_worker_token NAME` on the control plane, or enrol this machine with {HOW_TO_ENROL}"
        )
    return value


def enrolment_token(merged: Mapping[str, Any]) -> str | None:
    """The enrolment token, when something names it. Its text is never shown."""
    given = secret("enrolment_token", merged)
    return None if given is None else checked_enrolment_token(given[0], origin=given[1])


def checked_enrolment_token(value: str, *, origin: str) -> str:
    """The value, if it can be an enrolment token. Raises BadToken, without showing it."""
    if WORKER_TOKEN.fullmatch(value):
        raise BadToken(f"{origin} holds a worker token, which needs no enrolment: give it to `run` with --token-file")
    if not ENROLMENT_TOKEN.fullmatch(value):
        raise BadToken(
            f"{origin} does not hold a whole enrolment token (ece_..._...): copy it again, or have another one made "
            'under "Connect a machine" in the admin or with `manage.py create_enrolment_token`'
        )
    return value


def secret(name: str, merged: Mapping[str, Any]) -> tuple[str, str] | None:
    """A secret, and where it stood: in the settings, or in the first line of its file that is no comment."""
    if name in merged:
        return str(merged[name]), f"EDGE_AGENT_{name.upper()}"
    origin = merged.get(f"{name}_file")
    if origin is None:
        return None
    try:
        lines = Path(origin).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = name.replace("_", " ")
        raise BadConfig(f"cannot read the {what} file {origin}: {getattr(error, 'strerror', error)}") from None
    return next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), ""), origin
