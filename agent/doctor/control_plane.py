"""The checks that the control plane answers: is it one, does it know this machine, what does it want of it.

Nothing is registered: that would begin a session, and end that of an agent that runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from agent import __version__, registration
from agent.client import ApiError
from agent.doctor.examination import Examination, Finding, State, failed, ok, warning

#: A clock that is off by so much confuses people who read logs; by so much more, certificates and tasks.
CLOCK_SECONDS = 30.0
WRONG_CLOCK_SECONDS = 3600.0


def health(examination: Examination) -> Iterator[Finding]:
    asked_at, began = time.time(), time.monotonic()
    try:
        answer = examination.caller.health()
    except ApiError as error:
        yield failed("control plane", why(examination, error))
        return
    took = time.monotonic() - began
    examination.health = answer
    if moment := moment_of(answer):
        examination.ahead_seconds = asked_at + took / 2 - moment.timestamp()
    yield ok(
        "control plane", f"EdgeControl {answer.get('version', 'of unknown version')} answers in {took * 1000:.0f} ms"
    )


def clock(examination: Examination) -> Iterator[Finding]:
    ahead = examination.ahead_seconds
    if ahead is None:
        yield ok("clock", "the control plane does not tell the time")
        return
    side = "ahead of" if ahead > 0 else "behind"
    text = f"this machine's is {abs(ahead):.0f} s {side} the control plane's"
    if abs(ahead) < CLOCK_SECONDS:
        yield ok("clock", text if abs(ahead) >= 1 else "agrees with the control plane's")
        return
    hint = f"{text}: set it (`timedatectl set-ntp true`); the agent works, but logs and certificates go by it"
    yield (failed if abs(ahead) >= WRONG_CLOCK_SECONDS else warning)("clock", hint)


def token(examination: Examination) -> Iterator[Finding]:
    """Whether it is accepted, and for whom. Files that others can read are not the machine's own secret."""
    if examination.bad_token:
        yield failed("token", examination.bad_token)
        return
    if examination.health is None:
        yield Finding("token", State.SKIPPED, "not tried: the control plane does not answer")
        return
    try:
        examination.me = examination.caller.me(queues=asked(examination))
    except ApiError as error:
        if error.code == "not_found":
            yield warning(
                "token", "not tried: this control plane is older than the agent and cannot tell without a start"
            )
        else:
            yield failed("token", why(examination, error))
        return
    me = examination.me
    team = f" of team {me['team_name']}" if me.get("team_name") else ""
    path = examination.token_file
    if path is not None and os.name == "posix" and path.stat().st_mode & 0o077:
        yield warning("token", f"accepted, this is {me['name']}{team}; others can read it: chmod 0600 {path}")
    else:
        yield ok("token", f"accepted, this is {me['name']}{team}")


def orders(examination: Examination) -> Iterator[Finding]:
    me = examination.me or {}
    comment = f" ({me['comment']})" if me.get("comment") else ""
    if me.get("requested") == "maintenance":
        yield warning("orders", f"maintenance is wanted of this machine{comment}: it takes no jobs until that is ended")
    elif me.get("requested") == "shutdown":
        yield warning("orders", f"the agent was shut down from the control plane{comment}; the next start ends that")
    else:
        yield ok("orders", "jobs are wanted of this machine")


def versions(examination: Examination) -> Iterator[Finding]:
    me = examination.me or {}
    verdict = me.get("version") or {}
    text = f"agent {__version__}, control plane {me.get('server_version', 'unknown')}"
    if verdict.get("verdict") == "refused":
        yield failed("versions", verdict.get("text") or f"{text}: install a newer agent")
    elif verdict.get("verdict") == "outdated":
        yield warning("versions", verdict.get("text") or f"{text}: it works, and should be upgraded")
    else:
        yield ok("versions", text)


def asked(examination: Examination) -> list[str]:
    """The queues that the settings name."""
    ours = examination.settings
    return list(dict.fromkeys([*(ours.queues or ()), *ours.queue_settings]))


def queues(examination: Examination) -> Iterator[Finding]:
    """Whether there are such queues, and whether this machine may serve them."""
    me, serves = examination.me or {}, examination.settings.queues
    allowed = me.get("allowed_queues")
    fine = True
    for one in me.get("queues", []):
        if bad := about_queue(one, own=serves is None or one["name"] in serves, allowed=allowed):
            fine = False
            yield bad
    served = allowed if serves is None else [name for name in serves if allowed is None or name in allowed]
    if served is not None and not served:
        yield failed("queues", "none is served: set queues, or have an operator give some to the worker")
    elif fine:
        yield ok("queues", "every queue is served" if served is None else f"served: {', '.join(served)}")


def about_queue(one: dict[str, Any], *, own: bool, allowed: list[str] | None) -> Finding | None:
    """What is wrong with a queue that the settings name; None when nothing is."""
    name = one["name"]
    if not own:
        return warning("queues", f"[queues.{name}] is set, but {name} is not among the queues that are served")
    if not one["allowed"]:
        may = ", ".join(allowed or ()) or "none"
        return failed(
            "queues", f"{name} is not for this machine, which may serve: {may}; see to queues or its enrolment"
        )
    if one["paused"]:
        comment = f" ({one['comment']})" if one["comment"] else ""
        return warning("queues", f"{name} is paused by an operator{comment}: its jobs wait")
    if not one["known"]:
        return warning("queues", f"{name} has never been named by a job or another machine: check its spelling")
    return None


def execution_api(examination: Examination) -> Iterator[Finding]:
    """Whether tasks would reach Airflow from here."""
    address = (examination.me or {}).get("execution_api_url", "")
    if not address:
        hint = "set EDGECONTROL_EXECUTION_API_URL there"
        yield failed("execution api", f"the control plane does not say where Airflow's is: {hint}")
    elif trouble := examination.caller.execution_api_health(address):
        hint = "see to firewall, proxy (NO_PROXY) and Airflow's api-server; the control plane names the address"
        yield failed("execution api", f"{trouble}: {hint}")
    else:
        yield ok("execution api", f"{address} is healthy")


def why(examination: Examination, error: ApiError) -> str:
    """The line by which `run` would end, or what it would wait for."""
    ended = registration.why_not(error, url=examination.settings.url, name=None, known=False)
    return str(ended or f"{error}: the agent would wait and try again; see to the control plane")


def moment_of(answer: dict[str, Any]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(answer.get("time")))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
