"""Worker tokens: issue, recognise, revoke. The secret is never stored and never logged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models.functions import Now
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from workers_app import audit, credentials, notices, registry
from workers_app.errors import Refusal
from workers_app.models import Worker, WorkerToken
from workers_app.outcomes import Outcome

# In SQL, because every request begins with it: the ORM needs longer to write this statement than PostgreSQL to run it.
_RECOGNISE = """
SELECT worker.*, token.digest AS token_digest FROM worker_token AS token JOIN worker ON worker.id = token.worker_id
 WHERE token.key = %s AND token.revoked_at IS NULL AND (token.expires_at IS NULL OR token.expires_at > now())
"""
SESSION_HEADER = "Edge-Session"


class BadToken(Refusal):
    """The worker token is missing, unknown, revoked or expired; enrol the machine with `python -m agent enrol`."""

    code = "bad_token"


def issue(*, worker: Worker, by: audit.Actor, valid_for: timedelta | None = None) -> str:
    """Make a further token for this worker and return it; it cannot be shown again."""
    minted = credentials.mint(credentials.WORKER)
    with transaction.atomic():
        store(worker=worker, key=minted.key, digest=minted.digest, by=by, valid_for=valid_for)
    return minted.text


def store(*, worker: Worker, key: str, digest: bytes, by: audit.Actor, valid_for: timedelta | None = None) -> None:
    """Accept a token that was minted elsewhere: only its key and digest are known here."""
    expires_at = Now() + valid_for if valid_for else None
    WorkerToken.objects.create(worker=worker, key=key, digest=digest, expires_at=expires_at)
    entry = audit.Entry(action="issue_token", kind="worker", id=worker.pk, name=worker.name, after={"token": key})
    audit.record([entry], by=by)


def revoke(worker_ids: Sequence[int], *, by: audit.Actor, comment: str = "") -> Outcome:
    """Revoke every usable token of these workers. Their parked polls end at once, and so do their agents."""
    outcome = Outcome()
    with transaction.atomic():
        workers = Worker.objects.select_for_update(no_key=True).filter(pk__in=worker_ids).order_by("pk")
        for worker in workers:
            usable = WorkerToken.objects.filter(worker=worker, revoked_at=None)
            keys = sorted(usable.values_list("key", flat=True))
            if not keys:
                outcome.skip(worker.name, "it has no token to revoke")
                continue
            usable.update(revoked_at=Now())
            entry = audit.Entry(
                action="revoke_token",
                kind="worker",
                id=worker.pk,
                name=worker.name,
                before={"tokens": keys},
                after={"tokens": []},
            )
            audit.record([entry], by=by, comment=comment)
            notices.announce([worker.pk])
            outcome.done.append(worker.name)
    return outcome


def recognise(token: str) -> Worker:
    """The worker that this token belongs to. Raises BadToken, without saying which part was wrong."""
    parts = credentials.split(token, prefix=credentials.WORKER)
    if parts:
        key, secret = parts
        for worker in Worker.objects.raw(_RECOGNISE, [key]):
            if credentials.matches(worker.token_digest, secret):  # type: ignore[attr-defined]
                return worker
    raise BadToken


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
