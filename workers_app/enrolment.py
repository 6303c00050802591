"""One-time tokens by which a new machine becomes a worker: create, revoke, use.

The machine mints its own worker token and shows only that token's digest here, so the credential
never crosses the wire, and a request whose answer was lost can be repeated.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.db.models.functions import Now

from workers_app import agent_file, audit, auth, credentials, registry
from workers_app.agent_file import AgentFile
from workers_app.audit import Actor, ActorKind
from workers_app.errors import Refusal
from workers_app.models import EnrolmentToken, Worker
from workers_app.outcomes import Outcome

VALID_FOR = timedelta(minutes=15)
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=7)
#: Who makes a token that replaces an existing worker's credential must be allowed to revoke that credential.
REPLACE_PERMISSION = "workers_app.revoke_workertoken"
#: Tokens that a machine could still show, by the database's clock.
USABLE = Q(used_at=None, revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=Now()))


class BadEnrolmentToken(Refusal):
    """The enrolment token is unknown, used, expired or revoked; make another under "Connect a machine", or with
    `manage.py create_enrolment_token`."""

    code = "bad_enrolment_token"


class InvalidValidity(Refusal):
    """An enrolment token is valid for one minute to seven days."""

    code = "invalid_request"


class KeepsItsOwn(Refusal):
    """A machine that was set up anew keeps its queues and its team; leave them out."""

    code = "invalid_request"


class InvalidWorkerToken(Refusal):
    """The key has 12 and the digest 64 hexadecimal digits."""

    code = "invalid_request"


def create(
    *,
    name: str,
    by: Actor,
    allowed_queues: Sequence[str] | None = None,
    team_name: str = "",
    valid_for: timedelta = VALID_FOR,
    replace: bool = False,
) -> tuple[EnrolmentToken, str]:
    """Make a token for the machine `name`; return it with its text, which cannot be shown again.

    `replace`: the machine exists and was set up anew; it keeps its queues and team, and its older tokens
    are revoked when this one is used. Raises NameTaken for an existing name without it, InvalidName, InvalidValidity,
    KeepsItsOwn.
    """
    registry.check_name(name)
    if not SHORTEST <= valid_for <= LONGEST:
        raise InvalidValidity
    worker = Worker.objects.filter(name=name).first()
    if worker and not replace:
        raise registry.NameTaken(
            f"A worker named {name!r} exists already; choose another name, or say that its machine was set up anew "
            "(replace)."
        )
    if worker and (allowed_queues is not None or team_name):
        raise KeepsItsOwn
    minted = credentials.mint(credentials.ENROLMENT)
    queues = worker.allowed_queues if worker else None if allowed_queues is None else list(allowed_queues)
    with transaction.atomic():
        token = EnrolmentToken.objects.create(
            key=minted.key,
            digest=minted.digest,
            name=name,
            allowed_queues=queues,
            team_name=worker.team_name if worker else team_name,
            replace=worker is not None,
            worker=worker,
            created_by=by.name,
            expires_at=Now() + valid_for,
        )
        token.refresh_from_db()
        after = {"queues": queues, "team": token.team_name, "replace": token.replace, "expires_at": token.expires_at}
        entry = audit.Entry(action="create_enrolment_token", kind="enrolment", id=token.pk, name=name, after=after)
        audit.record([entry], by=by)
    return token, minted.text


def commands(url: str, *, file: AgentFile | None) -> list[str]:
    """What is typed on the machine, line by line, the last two to enrol and to run.

    With the agent in one file, if there is one, else from the package. The token is not among it: `enrol` asks for it.
    """
    if file is None:
        fetch, agent = ["pip install 'edgecontrol[agent]' 'apache-airflow>=3.3,<3.4'"], "python -m agent"
    else:
        address = shlex.quote(url + agent_file.ADDRESS)
        fetch = [f"curl -fLO {address}", f"echo '{file.sum_line}' | sha256sum --check"]
        agent = f"python3 {agent_file.NAME}"
    return [*fetch, f"{agent} enrol --url {shlex.quote(url)}", f"{agent} run"]


def revoke(token_ids: Sequence[int], *, by: Actor) -> Outcome:
    """Withdraw enrolment tokens that nobody has used yet."""
    outcome = Outcome()
    with transaction.atomic():
        for token in EnrolmentToken.objects.select_for_update().filter(pk__in=token_ids).order_by("pk"):
            if token.used_at or token.revoked_at:
                why = "it was used already" if token.used_at else "it is revoked already"
                outcome.skip(str(token), why, id=token.pk)
                continue
            EnrolmentToken.objects.filter(pk=token.pk).update(revoked_at=Now())
            audit.record(
                [audit.Entry(action="revoke_enrolment_token", kind="enrolment", id=token.pk, name=token.name)], by=by
            )
            outcome.done.append(str(token))
            outcome.done_ids.append(token.pk)
    return outcome


def enrol(*, token: str, key: str, digest: str, origin: str = "") -> Worker:
    """Make the machine that shows this enrolment token a worker, with the worker token of this key and digest.

    Repeating it with the same key and digest is a success. Raises BadEnrolmentToken, NameTaken, InvalidWorkerToken.
    """
    if not credentials.KEY.fullmatch(key) or not credentials.DIGEST.fullmatch(digest):
        raise InvalidWorkerToken
    parts = credentials.split(token, prefix=credentials.ENROLMENT)
    if parts is None:
        raise BadEnrolmentToken
    with transaction.atomic():
        # The row's lock: of two machines that show the same token, one comes second.
        row = EnrolmentToken.objects.select_for_update().filter(key=parts[0], revoked_at=None).first()
        if row is None or not credentials.matches(row.digest, parts[1]):
            raise BadEnrolmentToken
        if row.used_at:
            return _repeated(row, key=key, digest=digest)
        # `used_at` is the database's time, and so is the check that it is not too late.
        fresh = EnrolmentToken.objects.filter(pk=row.pk).filter(Q(expires_at=None) | Q(expires_at__gt=Now()))
        if not fresh.update(used_at=Now(), worker_key=key):
            raise BadEnrolmentToken
        worker = _worker(row, origin=origin)
        by = Actor(kind=ActorKind.MACHINE, name=worker.name, origin=origin)
        try:
            with transaction.atomic():
                auth.store(worker=worker, key=key, digest=bytes.fromhex(digest), by=by)
        except IntegrityError as error:
            raise InvalidWorkerToken("This key is in use; mint another worker token.") from error
        EnrolmentToken.objects.filter(pk=row.pk).update(worker=worker)
        return worker


def _repeated(row: EnrolmentToken, *, key: str, digest: str) -> Worker:
    known = row.worker and row.worker.tokens.filter(key=key, digest=bytes.fromhex(digest), revoked_at=None).exists()
    if row.worker is None or row.worker_key != key or not known:
        raise BadEnrolmentToken
    return row.worker


def _worker(row: EnrolmentToken, *, origin: str) -> Worker:
    """The machine's row: a new one, or its old one without the old tokens."""
    by = Actor(kind=ActorKind.MACHINE, name=row.name, origin=origin)
    worker = row.worker if row.replace else None
    if worker is None:
        return registry.create(name=row.name, allowed_queues=row.allowed_queues, team_name=row.team_name, by=by)
    auth.revoke([worker.pk], by=by, comment="the machine was enrolled anew")
    return worker
