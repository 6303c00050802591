"""Personal tokens: a person's credential for scripts at the operator API. It may do what the person may.

The secret is never stored and never logged; a token of somebody who may no longer log in opens nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.request import Request

from workers_app import audit, credentials
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.models import PersonalToken
from workers_app.outcomes import Outcome

#: `last_used_at` is only as fine as this, so that reading costs no write.
_USE_NOTED_EVERY = timedelta(minutes=5)


class BadPersonalToken(Refusal):
    """The personal token is unknown, revoked or expired; make another in the admin."""

    code = "bad_token"


def issue(*, user: User, name: str, by: Actor, valid_for: timedelta | None = None) -> tuple[PersonalToken, str]:
    """Make a token for this person; return it with its text, which cannot be shown again."""
    minted = credentials.mint(credentials.PERSONAL)
    with transaction.atomic():
        token = PersonalToken.objects.create(
            user=user,
            name=name,
            key=minted.key,
            digest=minted.digest,
            expires_at=Now() + valid_for if valid_for else None,
        )
        token.refresh_from_db()
        after = {"owner": user.get_username(), "expires_at": token.expires_at}
        entry = audit.Entry(action="issue_token", kind="personal token", id=token.pk, name=name, after=after)
        audit.record([entry], by=by)
    return token, minted.text


def revoke(token_ids: list[int], *, by: Actor) -> Outcome:
    """Revoke personal tokens; they open nothing from now on."""
    outcome = Outcome()
    with transaction.atomic():
        for token in PersonalToken.objects.select_for_update().filter(pk__in=token_ids).order_by("pk"):
            if token.revoked_at:
                outcome.skip(str(token), "it is revoked already")
                continue
            PersonalToken.objects.filter(pk=token.pk).update(revoked_at=Now())
            audit.record(
                [audit.Entry(action="revoke_token", kind="personal token", id=token.pk, name=token.name)], by=by
            )
            outcome.done.append(str(token))
    return outcome


def recognise(text: str) -> PersonalToken:
    """The token with its owner. Raises BadPersonalToken, without saying which part was wrong."""
    parts = credentials.split(text, prefix=credentials.PERSONAL)
    if parts:
        unexpired = Q(expires_at=None) | Q(expires_at__gt=Now())
        # As at the login page: both boxes of an account count.
        usable = PersonalToken.objects.filter(unexpired, revoked_at=None, user__is_active=True, user__is_staff=True)
        token = usable.select_related("user").filter(key=parts[0]).first()
        if token and credentials.matches(token.digest, parts[1]):
            stale = Q(last_used_at=None) | Q(last_used_at__lt=Now() - _USE_NOTED_EVERY)
            PersonalToken.objects.filter(stale, pk=token.pk).update(last_used_at=Now())
            return token
    raise BadPersonalToken


class PersonalTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer ecp_...`; without that header somebody else may recognise the caller."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        scheme, _, text = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = recognise(text)
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class PersonalTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = PersonalTokenAuthentication
    name = "personalToken"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "ecp_<key>_<secret>"}
