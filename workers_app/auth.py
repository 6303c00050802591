"""Worker tokens: issue, recognise, revoke. The secret is never stored and never logged.

A token reads `ec_<key>_<secret>`: the key finds the row, the secret is compared by digest. The
secret has 256 bits of entropy, so one SHA-256 is enough; a slow hash guards passwords, not this.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models.functions import Now
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from workers_app import notices, registry
from workers_app.errors import Refusal
from workers_app.models import Worker, WorkerToken

PREFIX = "ec"
# In SQL, because every request begins with it: the ORM needs longer to write this statement than PostgreSQL to run it.
_RECOGNISE = """
SELECT worker.*, token.digest AS token_digest FROM worker_token AS token JOIN worker ON worker.id = token.worker_id
 WHERE token.key = %s AND token.revoked_at IS NULL AND (token.expires_at IS NULL OR token.expires_at > now())
"""
SESSION_HEADER = "Edge-Session"


class BadToken(Refusal):
    """The worker token is missing, unknown, revoked or expired; make another with `manage.py create_worker_token`."""

    code = "bad_token"


def issue(*, worker: Worker, valid_for: timedelta | None = None) -> str:
    """Make a further token for this worker and return it; it cannot be shown again."""
    key, secret = secrets.token_hex(6), secrets.token_hex(32)
    expires_at = Now() + valid_for if valid_for else None
    WorkerToken.objects.create(worker=worker, key=key, digest=_digest(secret), expires_at=expires_at)
    return f"{PREFIX}_{key}_{secret}"


def revoke(*, worker: Worker) -> int:
    """Revoke every usable token of this worker; return how many. Its parked poll ends at once."""
    count = WorkerToken.objects.filter(worker=worker, revoked_at=None).update(revoked_at=Now())
    notices.announce([worker.pk])
    return count


def recognise(token: str) -> Worker:
    """The worker that this token belongs to. Raises BadToken, without saying which part was wrong."""
    prefix, _, rest = token.partition("_")
    key, _, secret = rest.partition("_")
    if prefix != PREFIX or not secret:
        raise BadToken
    for worker in Worker.objects.raw(_RECOGNISE, [key]):
        if hmac.compare_digest(bytes(worker.token_digest), _digest(secret)):  # type: ignore[attr-defined]
            return worker
    raise BadToken


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Agent:
    """The authenticated caller of the agent API: a worker, in the place where Django expects a user."""

    is_authenticated = True
    is_active = True
    is_staff = False

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.pk = worker.pk

    def __str__(self) -> str:
        return self.worker.name


class WorkerTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer ec_...`."""

    def authenticate(self, request: Request) -> tuple[Any, Any]:
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            raise BadToken
        return Agent(recognise(token.strip())), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class WorkerTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = WorkerTokenAuthentication
    name = "workerToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "ec_<key>_<secret>"}


class IsAgent(BasePermission):
    """The caller has a worker token. Used alone only where a session begins."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.user, Agent)


class IsCurrentSession(IsAgent):
    """The caller is also the newest agent process with this identity; an older one is told to stop for good."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        if not super().has_permission(request, view):
            return False
        try:
            session = UUID(request.headers.get(SESSION_HEADER, ""))
        except ValueError:
            raise ValidationError({SESSION_HEADER: "The uuid with which this agent registered."}) from None
        if session != request.user.worker.session:  # type: ignore[union-attr]
            raise registry.SessionReplaced
        return True
