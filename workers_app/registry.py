"""What machines are and say: create, register, heartbeat, silence. The other writer of Worker rows is `wishes`.

Every change that the agent must hear goes through `notices.announce`. Jobs are not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import IntegrityError, connection, models, transaction
from django.db.models.functions import Coalesce, Now

from workers_app import audit, notices
from workers_app.audit import Actor, ActorKind
from workers_app.errors import Refusal
from workers_app.models import Worker
from workers_app.states import GONE, LEAVING, Reported, Requested, shown_state

NAME_LENGTH = 253


class NameTaken(Refusal):
    """Another worker has this name; choose another one, or remove that worker first."""

    code = "name_taken"


class InvalidName(Refusal):
    """A worker's name has 1 to 253 printable characters."""

    code = "invalid_request"


class SessionReplaced(Refusal):
    """A newer agent with this identity has registered; this one must stop its jobs and exit."""

    code = "session_replaced"


class Removed(Refusal):
    """This worker has been removed, and its tokens with it; enrol the machine with `python -m agent enrol`."""

    code = "bad_token"


class OutdatedAgent(Refusal):
    """This agent speaks a protocol that the control plane no longer understands; install a newer agent."""

    code = "outdated_agent"


class BeingChanged(Refusal):
    """This worker is being changed by others at this moment; repeat the request."""

    code = "busy"


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What an agent says of itself when it registers."""

    session: UUID
    boot_id: str
    #: The session of the agent process that ran there before.
    replaces: UUID | None = None
    name: str | None = None
    queues: list[str] | None = None
    concurrency: int = 1
    agent_version: str = ""
    airflow_version: str = ""
    sysinfo: dict[str, Any] = field(default_factory=dict)


def create(*, name: str, by: Actor, allowed_queues: Sequence[str] | None = None, team_name: str = "") -> Worker:
    """Make the row of a machine that has not called yet. Raises NameTaken or InvalidName."""
    check_name(name)
    columns = {"allowed_queues": None if allowed_queues is None else list(allowed_queues), "team_name": team_name}
    try:
        with transaction.atomic():
            worker = Worker.objects.create(name=name, **columns)
            entry = audit.Entry(action="create_worker", kind="worker", id=worker.pk, name=name, after=columns)
            audit.record([entry], by=by)
            return worker
    except IntegrityError as error:
        raise NameTaken(f"A worker named {name!r} exists already; choose another name.") from error


def register(*, worker: Worker, introduction: Introduction, origin: str = "") -> bool | None:
    """Begin a session of this worker, which fences every older one; return whether its machine has rebooted.

    Returns None when this session has begun already: the request came twice, and says nothing that is still new.
    Updates `worker` in place. A shutdown wish ends here: a started agent is wanted. Raises NameTaken, InvalidName, or
    SessionReplaced for a session that is known to be over.
    """
    name = worker.name if introduction.name is None else introduction.name
    check_name(name)
    try:
        with transaction.atomic():
            row = Worker.objects.select_for_update(no_key=True).filter(pk=worker.pk).first()
            if row is None:
                raise Removed
            if row.session == introduction.session:
                worker.refresh_from_db()
                return None
            if row.replaced_session == introduction.session:
                raise SessionReplaced
            rebooted = row.boot_id not in ("", introduction.boot_id)
            was_shut_down = row.requested == Requested.SHUTDOWN
            requested = Requested.ACTIVE if was_shut_down else Requested(row.requested)
            Worker.objects.filter(pk=worker.pk).update(
                name=name,
                session=introduction.session,
                replaced_session=introduction.replaces,
                boot_id=introduction.boot_id,
                queues=introduction.queues,
                concurrency=introduction.concurrency,
                agent_version=introduction.agent_version,
                airflow_version=introduction.airflow_version,
                sysinfo=introduction.sysinfo,
                requested=requested,
                requested_by="" if was_shut_down else row.requested_by,
                requested_by_kind="" if was_shut_down else row.requested_by_kind,
                requested_at=None if was_shut_down else row.requested_at,
                requested_comment="" if was_shut_down else row.requested_comment,
                requested_until=None if was_shut_down else row.requested_until,
                reported=Reported.STARTING,
                state=shown_state(requested=requested, reported=Reported.STARTING, silent=False),
                jobs_active=0,
                first_online=Coalesce("first_online", Now()),
                last_heartbeat=Now(),
                claim_id=None,
            )
            # An older session's parked poll ends at once.
            notices.announce([worker.pk])
            _record_start(row, name=name, introduction=introduction, origin=origin)
    except IntegrityError as error:
        raise NameTaken(f"Another worker is named {name!r}; start the agent with another --name.") from error
    worker.refresh_from_db()
    return rebooted


def heartbeat(
    *,
    worker: Worker,
    reported: Reported,
    jobs_active: int,
    queues: list[str] | None,
    concurrency: int,
    sysinfo: dict[str, Any] | None,
    airflow_version: str = "",
) -> None:
    """Renew the lease of all that this worker holds, and store what it says. Updates `worker` in place.

    Raises SessionReplaced when a newer session has begun since `worker` was read.
    """
    changes: dict[str, Any] = {"jobs_active": jobs_active, "queues": queues, "concurrency": concurrency}
    if sysinfo is not None and sysinfo != worker.sysinfo:
        changes["sysinfo"] = sysinfo
    if airflow_version and airflow_version != worker.airflow_version:
        changes["airflow_version"] = airflow_version
    before = worker.reported
    touch(worker=worker, reported=reported, changes=changes)
    if reported in LEAVING and reported != before:
        # Its parked poll must bring nothing any more.
        notices.announce([worker.pk])


def touch(*, worker: Worker, reported: Reported | None = None, changes: dict[str, Any] | None = None) -> None:
    """Note a sign of life, and what the agent says of itself if it says something.

    One UPDATE guarded by all that the shown state is made of, so neither an operator's wish nor a
    heartbeat that came meanwhile is overwritten. Updates `worker` in place. Raises SessionReplaced.
    """
    for _ in range(5):
        seen = {"session": worker.session, "revision": worker.revision, "reported": worker.reported}
        said = reported or Reported(worker.reported)
        state = shown_state(requested=Requested(worker.requested), reported=said, silent=False)
        updated = Worker.objects.filter(pk=worker.pk, **seen).update(
            last_heartbeat=Now(), reported=said, state=state, **(changes or {})
        )
        if updated:
            for name, value in {"reported": said, "state": state, **(changes or {})}.items():
                setattr(worker, name, value)
            return
        session = worker.session
        try:
            worker.refresh_from_db()
        except Worker.DoesNotExist:
            raise Removed from None
        if worker.session != session:
            raise SessionReplaced
    raise BeingChanged


def mark_silent(*, after_seconds: int) -> list[str]:
    """Show workers without a word for `after_seconds` as silent; return their names.

    One UPDATE per pair of wish and report, so the rule stays in `states` and the fleet's size costs nothing.
    """
    candidates = Worker.objects.filter(last_heartbeat__lt=Now() - timedelta(seconds=after_seconds)).exclude(
        models.Q(state__in=[state.value for state in GONE]) | models.Q(reported=Reported.OFFLINE)
    )
    names = list(candidates.values_list("name", flat=True))
    for requested, reported in candidates.values_list("requested", "reported").distinct() if names else ():
        state = shown_state(requested=Requested(requested), reported=Reported(reported), silent=True)
        candidates.filter(requested=requested, reported=reported).update(state=state)
    return names


def sample(*, every_minutes: int, keep_days: int) -> None:
    """Keep the figures of every worker that is heard, once per `every_minutes`, however many processes ask for it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO worker_sample
                (worker_id, at, jobs_active, concurrency, load_per_cpu, memory_used_percent, disk_free_gb)
            SELECT id, date_bin(%(every)s * interval '1 minute', now(), 'epoch'), jobs_active,
                   coalesce(concurrency_override, concurrency),
                   jsonb_path_query_first(sysinfo, '$.load_per_cpu.double()', silent => true)::float8,
                   jsonb_path_query_first(sysinfo, '$.memory_used_percent.double()', silent => true)::float8,
                   jsonb_path_query_first(sysinfo, '$.disk_free_gb.double()', silent => true)::float8
              FROM worker WHERE state <> ALL (%(gone)s)
                ON CONFLICT DO NOTHING
            """,
            {"every": every_minutes, "gone": [state.value for state in GONE]},
        )
        cursor.execute("DELETE FROM worker_sample WHERE at < now() - %s * interval '1 day'", [keep_days])


def _record_start(before: Worker, *, name: str, introduction: Introduction, origin: str) -> None:
    told = ("boot_id", "queues", "concurrency", "agent_version", "airflow_version")
    entry = audit.Entry(
        action="register",
        kind="worker",
        id=before.pk,
        name=name,
        before={"name": before.name, **{column: getattr(before, column) for column in told}},
        after={"name": name, **{column: getattr(introduction, column) for column in told}},
    )
    audit.record([entry], by=Actor(kind=ActorKind.MACHINE, name=name, origin=origin))


def check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise InvalidName
