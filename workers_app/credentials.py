"""The shape of every credential: `<prefix>_<key>_<secret>`. The key finds the row, the secret is compared by digest.

The secret has 256 bits of entropy, so one SHA-256 is enough; a slow hash guards passwords, not this.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

#: Of a worker: opens the agent API.
WORKER = "ec"
#: Of a machine that is not yet a worker: makes it one, once.
ENROLMENT = "ece"
#: Of a person: opens the operator API.
PERSONAL = "ecp"

KEY = re.compile(r"[0-9a-f]{12}")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Minted:
    """A new credential. `text` is shown once; only the other two are stored."""

    text: str
    key: str
    digest: bytes


def mint(prefix: str) -> Minted:
    key, secret = secrets.token_hex(6), secrets.token_hex(32)
    return Minted(text=f"{prefix}_{key}_{secret}", key=key, digest=digest(secret))


def split(text: str, *, prefix: str) -> tuple[str, str] | None:
    """The key and the secret; None when this is no credential of that kind."""
    kind, _, rest = text.strip().partition("_")
    key, _, secret = rest.partition("_")
    return (key, secret) if kind == prefix and key and secret else None


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def matches(stored: bytes | memoryview, secret: str) -> bool:
    return hmac.compare_digest(bytes(stored), digest(secret))
