"""Every operation on workers, once: its name, its words, its parameters, its permission, and the call behind it.

The admin, the operator API and the commands are three faces of this table; each only finds out which
workers are meant, and who asks. An operation takes text as people type it, and refuses what it cannot read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.utils import timezone

from workers_app import auth, enrolment, wishes
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.outcomes import Outcome

LONGEST_COMMENT = 1000
#: Airflow's own column of a task's queue is as long.
LONGEST_QUEUE = 256
MOST_SLOTS = 10_000
FURTHEST_AHEAD = timedelta(days=366)


class InvalidParameter(Refusal):
    """A parameter of the operation cannot be used as it is."""

    code = "invalid_request"


def comment(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise InvalidParameter("must be a text")
    text = (value or "").strip()
    if len(text) > LONGEST_COMMENT or "\0" in text or not encodable(text):
        raise InvalidParameter(f"has more than {LONGEST_COMMENT} characters, or one that cannot be stored")
    return text


def encodable(text: str) -> bool:
    """False for half of a surrogate pair, which comes from JSON and from odd command lines."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def queues(value: Any) -> list[str] | None:
    """A comma-separated text or a list; None when there is none."""
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise InvalidParameter("must be names of queues")
    names = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not all(name.isprintable() for name in names):
        raise InvalidParameter("has a queue name with characters that cannot be shown")
    if any(len(name) > LONGEST_QUEUE for name in names):
        raise InvalidParameter(f"has a queue name of more than {LONGEST_QUEUE} characters")
    return names or None


def slots(value: Any) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,5}", str(value)) or not 1 <= int(value) <= MOST_SLOTS:
        raise InvalidParameter(f"must be a whole number from 1 to {MOST_SLOTS}")
    return int(value)


_SPAN = re.compile(r"(?=\d)(?:(\d{1,3})\s*d)?\s*(?:(\d{1,4})\s*h)?\s*(?:(\d{1,6})\s*m(?:in)?)?", re.I)


def moment(value: Any) -> datetime | None:
    """A span from now such as `90m`, `2h` or `1d 12h`, or a moment such as `2026-11-22 18:00` (UTC unless it says)."""
    if isinstance(value, datetime):
        found = value if value.tzinfo else value.replace(tzinfo=UTC)
    elif value is not None and not isinstance(value, str):
        raise InvalidParameter("must be a span such as 90m or 2h, or a moment such as 2026-11-22 18:00")
    elif not (text := (value or "").strip()):
        return None
    elif (span := _SPAN.fullmatch(text)) and any(span.groups()):
        days, hours, minutes = (int(part or 0) for part in span.groups())
        found = timezone.now() + timedelta(days=days, hours=hours, minutes=minutes)
    else:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise InvalidParameter("must be a span such as 90m or 2h, or a moment such as 2026-11-22 18:00") from None
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
    if found <= timezone.now():
        raise InvalidParameter("lies in the past")
    if found > timezone.now() + FURTHEST_AHEAD:
        raise InvalidParameter("lies more than a year ahead")
    return found


class Kind(StrEnum):
    """How a parameter is read; each face has a field of its own for each of them."""

    COMMENT = "comment"
    QUEUES = "queues"
    SLOTS = "slots"
    MOMENT = "moment"


READERS: dict[Kind, Callable[[Any], Any]] = {
    Kind.COMMENT: comment,
    Kind.QUEUES: queues,
    Kind.SLOTS: slots,
    Kind.MOMENT: moment,
}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    name: str
    kind: Kind
    help: str
    required: bool = False

    def read(self, value: Any) -> Any:
        """The value as the operation takes it. Raises InvalidParameter, which says what would do."""
        found = READERS[self.kind](value)
        if self.required and found in (None, ""):
            raise InvalidParameter("is needed")
        return found


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Something that people do to workers, jobs or queues, given by their primary keys."""

    #: Of the action in the admin, the endpoint, the command and the record.
    name: str
    label: str
    #: One sentence for dialogs, the API's description and the command's help.
    help: str
    icon: str
    #: Django's name of it, such as workers_app.operate_worker.
    permission: str
    call: Callable[..., Outcome]
    parameters: tuple[Parameter, ...] = ()
    #: Worth a second look even for one subject: it ends or deletes something.
    grave: bool = False

    def run(self, ids: Sequence[Any], *, by: Actor, **given: Any) -> Outcome:
        """Read the parameters and do it. Raises InvalidParameter with the parameter's name; nothing is done then."""
        values = {}
        for parameter in self.parameters:
            try:
                values[parameter.name] = parameter.read(given.pop(parameter.name, None))
            except InvalidParameter as invalid:
                raise InvalidParameter(f"{parameter.name}: {invalid.detail}") from None
        if given:
            raise InvalidParameter(f"{', '.join(sorted(given))}: {self.name} has no such parameter")
        return self.call(ids, by=by, **values)


_COMMENT = Parameter(name="comment", kind=Kind.COMMENT, help="Why, for those who look later.")
_QUEUES = Parameter(name="queues", kind=Kind.QUEUES, help="Names of queues, separated by commas.", required=True)
_OPERATE = "workers_app.operate_worker"

REQUEST_MAINTENANCE = Operation(
    name="request_maintenance",
    label="Request maintenance",
    help="The worker finishes the jobs it holds and takes no more.",
    icon="build",
    permission=_OPERATE,
    call=wishes.request_maintenance,
    parameters=(
        Parameter(name="comment", kind=Kind.COMMENT, help="Why it is taken out of service.", required=True),
        Parameter(
            name="until",
            kind=Kind.MOMENT,
            help="When it ends by itself: a span such as 2h or 90m, or a moment in UTC such as 2026-11-22 18:00.",
        ),
    ),
)
UPDATE_MAINTENANCE_COMMENT = Operation(
    name="update_maintenance_comment",
    label="Edit maintenance comment",
    help="Say anew why the worker is in maintenance.",
    icon="edit_note",
    permission=_OPERATE,
    call=wishes.update_maintenance_comment,
    parameters=(Parameter(name="comment", kind=Kind.COMMENT, help="The new comment.", required=True),),
)
EXIT_MAINTENANCE = Operation(
    name="exit_maintenance",
    label="Exit maintenance",
    help="The worker takes jobs again.",
    icon="play_arrow",
    permission=_OPERATE,
    call=wishes.exit_maintenance,
)
SHUTDOWN_WORKER = Operation(
    name="shutdown_worker",
    label="Shut down",
    help="The worker finishes the jobs it holds, then its agent ends. It comes back when somebody starts the agent.",
    icon="power_settings_new",
    permission=_OPERATE,
    call=wishes.shut_down,
    parameters=(
        _COMMENT,
        Parameter(
            name="until",
            kind=Kind.MOMENT,
            help="When jobs that still run are stopped, such as 30m; empty waits for them.",
        ),
    ),
    grave=True,
)
CANCEL_SHUTDOWN = Operation(
    name="cancel_shutdown",
    label="Cancel shutdown",
    help="The worker goes on and takes jobs again, if its agent has not ended yet.",
    icon="undo",
    permission=_OPERATE,
    call=wishes.cancel_shutdown,
)
REMOVE_WORKER = Operation(
    name="remove_worker",
    label="Remove",
    help="Delete a worker that is offline or silent, with its tokens. Its finished jobs stay.",
    icon="delete",
    permission="workers_app.remove_worker",
    call=wishes.remove,
    parameters=(_COMMENT,),
    grave=True,
)
ADD_WORKER_QUEUES = Operation(
    name="add_worker_queues",
    label="Add queues",
    help="The worker serves these queues too.",
    icon="playlist_add",
    permission=_OPERATE,
    call=wishes.add_queues,
    parameters=(_QUEUES,),
)
REMOVE_WORKER_QUEUES = Operation(
    name="remove_worker_queues",
    label="Remove queues",
    help="The worker takes no more jobs of these queues; one without any queue takes none.",
    icon="playlist_remove",
    permission=_OPERATE,
    call=wishes.remove_queues,
    parameters=(_QUEUES,),
)
SET_WORKER_QUEUES = Operation(
    name="set_worker_queues",
    label="Set queues",
    help="The worker serves exactly these queues; empty leaves it to its agent again.",
    icon="list_alt",
    permission=_OPERATE,
    call=wishes.set_queues,
    parameters=(Parameter(name="queues", kind=Kind.QUEUES, help="Names of queues, separated by commas, or nothing."),),
)
SET_WORKER_CONCURRENCY = Operation(
    name="set_worker_concurrency",
    label="Set concurrency",
    help="How many slots the worker may fill; empty leaves it to its agent again.",
    icon="speed",
    permission=_OPERATE,
    call=wishes.set_concurrency,
    parameters=(Parameter(name="concurrency", kind=Kind.SLOTS, help="Slots from 1, or nothing."),),
)
REVOKE_TOKEN = Operation(
    name="revoke_token",
    label="Revoke tokens",
    help="The worker's tokens open nothing from now on: it gets no work and reports nothing until it is enrolled anew.",
    icon="key_off",
    permission="workers_app.revoke_workertoken",
    call=auth.revoke,
    parameters=(_COMMENT,),
    grave=True,
)
REVOKE_ENROLMENT_TOKEN = Operation(
    name="revoke_enrolment_token",
    label="Revoke",
    help="Nobody can enrol with the token any more.",
    icon="key_off",
    permission="workers_app.add_enrolmenttoken",
    call=enrolment.revoke,
)

#: In the order in which people meet them.
WORKERS = (
    REQUEST_MAINTENANCE,
    UPDATE_MAINTENANCE_COMMENT,
    EXIT_MAINTENANCE,
    SHUTDOWN_WORKER,
    CANCEL_SHUTDOWN,
    ADD_WORKER_QUEUES,
    REMOVE_WORKER_QUEUES,
    SET_WORKER_QUEUES,
    SET_WORKER_CONCURRENCY,
    REVOKE_TOKEN,
    REMOVE_WORKER,
)
ENROLMENTS = (REVOKE_ENROLMENT_TOKEN,)
