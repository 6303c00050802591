"""How the admin words and marks what it shows: states, moments, figures, changes. Nothing is read or decided here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from workers_app.models import Change, Worker
from workers_app.operations import Operation
from workers_app.states import Requested, Shown
from workers_app.versions import Verdict, judge

#: What each state means, for people who see it for the first time.
MEANINGS: dict[str, str] = {
    Shown.STARTING: "The agent has registered and has not asked for work yet.",
    Shown.IDLE: "Ready for work, and holds no job.",
    Shown.RUNNING: "Ready for work, and holds jobs.",
    Shown.SHUTDOWN_REQUEST: "Asked to shut down; the agent has not heard of it yet.",
    Shown.TERMINATING: "Finishes the jobs it holds, then the agent ends.",
    Shown.OFFLINE: "The agent said goodbye; nothing runs there.",
    Shown.UNKNOWN: "Silent: no word from the agent for too long, and no goodbye.",
    Shown.MAINTENANCE_REQUEST: "Asked to go into maintenance; the agent has not heard of it yet.",
    Shown.MAINTENANCE_PENDING: "Takes no more jobs because of maintenance, and still holds some.",
    Shown.MAINTENANCE_MODE: "In maintenance: takes no jobs, and holds none.",
    Shown.MAINTENANCE_EXIT: "Asked to leave maintenance; the agent has not heard of it yet.",
    Shown.OFFLINE_MAINTENANCE: "In maintenance, and no living agent is behind it.",
}

NEVER_CALLED = "No agent has called for it yet: enrol the machine and start its agent."
#: What an agent's version is marked with: the colour, and the words for those who point at it.
VERSION_MARKS: dict[str, tuple[str, str]] = {
    Verdict.OUTDATED: ("warn", "Older than the control plane: upgrade it."),
    Verdict.REFUSED: ("bad", "Too old for the control plane: it gets no more jobs, and ends. Install a newer agent."),
}
NOTHING = mark_safe('<span class="ec-none">-</span>')


def badge(state: str, meaning: str | None = None) -> SafeString:
    """A state in its colour, with its meaning for those who point at it."""
    css = state.replace(" ", "-")
    return format_html(
        '<span class="ec-state ec-state--{}" title="{}">{}</span>',
        css,
        MEANINGS.get(state, "") if meaning is None else meaning,
        state,
    )


def meaning(worker: Worker) -> str:
    """What the worker's state means for it."""
    never_called = worker.last_heartbeat is None and worker.state in (Shown.OFFLINE, Shown.OFFLINE_MAINTENANCE)
    if never_called:
        return NEVER_CALLED
    return f"Takes no work: {worker.hindrance}" if worker.hindrance else MEANINGS.get(worker.state, "")


def hindrance(worker: Worker) -> SafeString:
    """The agent's own reason to take no work; nothing where nothing hinders it."""
    if not worker.hindrance:
        return mark_safe("")
    return format_html('<span class="ec-wish ec-hindrance" title="{0}">takes no work: {0}</span>', worker.hindrance)


def span(length: timedelta) -> str:
    """`12 s`, `3 min`, `5 h 20 min`, `4 days`; the sign is left to the caller."""
    seconds = int(abs(length.total_seconds()))
    minutes, hours = seconds // 60, seconds // 3600
    if seconds < 60:
        return f"{seconds} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 10:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    return f"{hours} h" if hours < 48 else f"{hours // 24} days"


def left(until: datetime) -> str:
    """How long it is until then, to the nearest minute: what was said to be 2 h is not 1 h 59 min a moment later."""
    length = max(until - timezone.now(), timedelta(0))
    return span(length if length < timedelta(minutes=1) else length + timedelta(seconds=30))


def moment(when: datetime | None, *, never: str = "") -> SafeString:
    """`12 s ago` or `in 3 h`, with the moment itself for those who point at it."""
    if when is None:
        return format_html('<span class="ec-none">{}</span>', never) if never else NOTHING
    length = when - timezone.now()
    words = f"in {left(when)}" if length > timedelta(0) else f"{span(length)} ago"
    return format_html('<time datetime="{}" title="{}">{}</time>', when.isoformat(), exactly(when), words)


def exactly(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def queues(names: Sequence[str] | None, *, most: int | None = None) -> SafeString:
    """Names of queues as tags; from `most` on they are only counted."""
    if names is None:
        return mark_safe('<span class="ec-none">every queue</span>')
    if not names:
        return mark_safe('<span class="ec-none">none</span>')
    shown, rest = names[:most], names[len(names[:most]) :]
    tags = format_html_join(" ", '<span class="ec-tag">{}</span>', ((name,) for name in shown))
    more = format_html(' <span class="ec-none" title="{}">+{}</span>', ", ".join(rest), len(rest)) if rest else ""
    return format_html("{}{}", tags, more)


def overridden(text: str) -> SafeString:
    """The mark of a value that an operator set in place of the agent's."""
    return format_html('<span class="ec-mark" title="{}">set</span>', text)


def wish(worker: Worker) -> SafeString:
    """What somebody wants of the worker: the comment, who, when and until; nothing for one that shall take jobs."""
    if worker.requested == Requested.ACTIVE:
        return mark_safe("")
    shutdown = worker.requested == Requested.SHUTDOWN
    parts = [format_html("{} {}", worker.wished_by or "somebody", moment(worker.requested_at))]
    if worker.requested_until:
        words = "jobs are stopped {}" if shutdown else "ends {}"
        parts.append(format_html(words, moment(worker.requested_until)))
    comment = worker.requested_comment or ("Shutdown" if shutdown else "Maintenance")
    return format_html(
        '<span class="ec-wish"><span class="ec-comment">{}</span> <small>{}</small></span>',
        comment,
        format_html_join(" · ", "{}", ((part,) for part in parts)),
    )


#: Figures of `sysinfo` that lists and pages show: key, name, unit, from where on it is a warning, and from where bad.
FIGURES = (
    ("load_per_cpu", "Load per CPU", "", 1.0, 2.0),
    ("memory_used_percent", "Memory", "%", 85.0, 95.0),
    ("disk_used_percent", "Disk", "%", 85.0, 95.0),
)


#: Of a machine's own status, which is a level of Python's logging: from where on, how grave, in a word.
STATUS_LEVELS = ((40, "bad", "error"), (30, "warn", "warning"), (float("-inf"), "good", "well"))


def figures(sysinfo: Any) -> list[dict[str, Any]]:
    """The figures that the machine told; what is no number is left out, as it comes from the edge."""
    found = []
    for key, name, unit, warn, bad in FIGURES:
        value = sysinfo.get(key) if isinstance(sysinfo, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            continue
        tone = "bad" if value >= bad else "warn" if value >= warn else "good"
        text = f"{value:.1f}" if key == "load_per_cpu" else f"{value:.0f}{unit}"
        full = min(100, round(100 * value / bad if key == "load_per_cpu" else value))
        found.append({"name": name, "text": text, "tone": tone, "full": full})
    return found


def own_check(sysinfo: Any) -> dict[str, str] | None:
    """What the machine's own function says of its status: a tone, and words; None where it says nothing."""
    told = sysinfo if isinstance(sysinfo, Mapping) else {}
    level, text, error = (told.get(key) for key in ("status", "status_text", "extended_sysinfo_error"))
    if isinstance(error, str) and error:
        return {"tone": "warn", "text": f"does not work: {error}"}
    if isinstance(level, bool) or not isinstance(level, int):
        return None
    tone, word = next((tone, word) for least, tone, word in STATUS_LEVELS if level >= least)
    return {"tone": tone, "text": text if isinstance(text, str) and text else word}


def meters(sysinfo: Any) -> SafeString:
    """The figures as small bars with their numbers; nothing when there are none."""
    one = '<span class="ec-meter ec-meter--{}" title="{}: {}"><i style="width:{}%"></i><b>{}</b></span>'
    rows = ((each["tone"], each["name"], each["text"], each["full"], each["text"]) for each in figures(sysinfo))
    bars = format_html_join("", one, rows)
    return format_html('<span class="ec-meters">{}</span>', bars) if bars else bars


def release(worker: Worker, *, server_version: str) -> SafeString:
    """The agent's version and Airflow's, marked when the agent is behind the control plane."""
    if not worker.agent_version:
        return NOTHING
    verdict = judge(worker.agent_version, server_version=server_version).verdict
    tone, words = VERSION_MARKS.get(verdict, ("", ""))
    mark = format_html('<span class="ec-mark ec-mark--{}" title="{}">{}</span>', tone, words, verdict) if tone else ""
    return format_html(
        '<span class="ec-stack"><span class="ec-nowrap">{} {}</span><small class="ec-sub">{}</small></span>',
        worker.agent_version,
        mark,
        f"Airflow {worker.airflow_version}" if worker.airflow_version else "",
    )


ACTIONS = {
    "register": "Agent started",
    "create_worker": "Created",
    "issue_token": "Token issued",
    "revoke_token": "Tokens revoked",
    "create_enrolment_token": "Enrolment token made",
    "revoke_enrolment_token": "Enrolment token revoked",
}


def action(name: str, operations: Mapping[str, Operation]) -> str:
    """What a change is called: in words of its own, or as the button that makes it."""
    known = operations.get(name)
    return ACTIONS.get(name) or (known.label if known else name.replace("_", " ").capitalize())


#: Columns whose own names would not tell people what they are.
_COLUMNS = {
    "requested": "wanted",
    "requested_comment": "comment",
    "requested_until": "until",
    "queues_override": "queues",
    "concurrency_override": "concurrency",
    "boot_id": "boot",
}


def differences(change: Change) -> list[tuple[str, str | None, str | None]]:
    """(what, before, after) of a change, as text; None where there was nothing before, or is nothing after."""
    before, after = (side if isinstance(side, dict) else {} for side in (change.before, change.after))
    found = []
    for name in {**before, **after}:
        sides = [value(side[name]) if name in side else None for side in (before, after)]
        # A comment that is the change's own stands beside it already.
        if sides != ["-", "-"] and not (name == "requested_comment" and after.get(name) == change.comment != ""):
            found.append((_COLUMNS.get(name, name.replace("_", " ")), *sides))
    return found


def value(stored: Any) -> str:
    """A stored value as people write it."""
    if stored is None or stored == "":
        return "-"
    if isinstance(stored, bool):
        return "yes" if stored else "no"
    if isinstance(stored, list):
        return ", ".join(value(part) for part in stored) or "none"
    if isinstance(stored, dict):
        return ", ".join(f"{name}: {value(part)}" for name, part in stored.items())
    if isinstance(stored, str):
        try:
            return exactly(datetime.fromisoformat(stored)) if stored[10:11] == "T" else stored
        except (ValueError, OverflowError):
            return stored
    return str(stored)
