"""The words for a worker's condition, and the pure function that derives the one state people see.

What an operator wants (`Requested`) and what the agent says (`Reported`) are two
axes; nothing here reads a clock or a database.
"""

from __future__ import annotations

from enum import StrEnum


class Requested(StrEnum):
    """What is wanted of a worker; the last wish wins, whoever had it."""

    #: Take jobs.
    ACTIVE = "active"
    #: Finish what is held, then take no more until told otherwise.
    MAINTENANCE = "maintenance"
    #: Finish what is held, then end the agent's process. Forgotten at the agent's next start.
    SHUTDOWN = "shutdown"


class RequestedBy(StrEnum):
    """Whose wish that is."""

    #: Somebody in the admin, at the operator API or with a management command.
    OPERATOR = "operator"
    #: Somebody at the machine itself.
    MACHINE = "machine"
    #: Nobody: a machine's own thresholds, or an end time that has come.
    AUTOMATIC = "automatic"


class Reported(StrEnum):
    """What the agent last said of itself."""

    #: Registered; has not asked for work yet.
    STARTING = "starting"
    #: Ready, and holds no job.
    IDLE = "idle"
    #: Ready, and holds jobs.
    RUNNING = "running"
    #: Takes no more jobs because of maintenance, and still holds some.
    MAINTENANCE_PENDING = "maintenance_pending"
    #: Takes no more jobs because of maintenance, and holds none.
    MAINTENANCE = "maintenance"
    #: Finishes its jobs in order to exit.
    TERMINATING = "terminating"
    #: Said goodbye; nothing runs.
    OFFLINE = "offline"


class Shown(StrEnum):
    """The twelve states that users of Airflow's edge workers know."""

    STARTING = "starting"
    IDLE = "idle"
    RUNNING = "running"
    SHUTDOWN_REQUEST = "shutdown request"
    TERMINATING = "terminating"
    OFFLINE = "offline"
    #: Silent: no word from it for `silent_after` seconds, and no goodbye.
    UNKNOWN = "unknown"
    MAINTENANCE_REQUEST = "maintenance request"
    MAINTENANCE_PENDING = "maintenance pending"
    MAINTENANCE_MODE = "maintenance mode"
    MAINTENANCE_EXIT = "maintenance exit"
    OFFLINE_MAINTENANCE = "offline maintenance"


#: The agent's own words for resting.
RESTING = frozenset({Reported.MAINTENANCE_PENDING, Reported.MAINTENANCE})

#: The agent's own words for ending.
LEAVING = frozenset({Reported.TERMINATING, Reported.OFFLINE})

#: No living agent is behind these.
GONE = frozenset({Shown.OFFLINE, Shown.OFFLINE_MAINTENANCE, Shown.UNKNOWN})

_AS_REPORTED = {
    Reported.STARTING: Shown.STARTING,
    Reported.IDLE: Shown.IDLE,
    Reported.RUNNING: Shown.RUNNING,
    Reported.MAINTENANCE_PENDING: Shown.MAINTENANCE_PENDING,
    Reported.MAINTENANCE: Shown.MAINTENANCE_MODE,
    Reported.TERMINATING: Shown.TERMINATING,
}


def shown_state(*, requested: Requested, reported: Reported, silent: bool) -> Shown:
    """Derive the one state that people see and filter by.

    A goodbye outlasts silence: a worker that reported `offline` never becomes `unknown`.
    """
    if reported is Reported.OFFLINE:
        return Shown.OFFLINE_MAINTENANCE if requested is Requested.MAINTENANCE else Shown.OFFLINE
    if silent:
        resting = requested is Requested.MAINTENANCE or reported in RESTING
        return Shown.OFFLINE_MAINTENANCE if resting else Shown.UNKNOWN
    if reported is Reported.TERMINATING:
        return Shown.TERMINATING
    if requested is Requested.SHUTDOWN:
        return Shown.SHUTDOWN_REQUEST
    if requested is Requested.MAINTENANCE and reported not in RESTING:
        return Shown.MAINTENANCE_REQUEST
    if requested is Requested.ACTIVE and reported in RESTING:
        return Shown.MAINTENANCE_EXIT
    return _AS_REPORTED[reported]
