"""The agent's status in Prometheus' text format. The names are documented and stay; nothing is measured here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "edgecontrol_agent_"
#: What `state` may be.
STATES = ("starting", "idle", "running", "maintenance_pending", "maintenance", "terminating")
VERDICTS = ("ok", "outdated", "refused")
JOB_STATES = ("waiting", "running", "stopping", "ended")

Labels = Mapping[str, str]
Samples = Sequence[tuple[Labels, Any]]


def render(status: Mapping[str, Any], *, unhealthy: str) -> str:
    """All of it; a figure that is not known is left out, and a value that is no number counts as not known."""
    lines: list[str] = []
    for name, kind, about, samples in families(status, unhealthy=unhealthy):
        known = [(labels, float(value)) for labels, value in samples if is_number(value)]
        if known:
            lines.append(f"# HELP {PREFIX}{name} {about}")
            lines.append(f"# TYPE {PREFIX}{name} {kind}")
            lines += [f"{PREFIX}{name}{shown(labels)} {number(value)}" for labels, value in known]
    return "\n".join(lines) + "\n"


def families(status: Mapping[str, Any], *, unhealthy: str) -> list[tuple[str, str, str, Samples]]:
    """Name, type, what it is, and its samples."""
    versions, figures = status["versions"], status["sysinfo"]
    about = {
        "worker": status["name"],
        "version": versions["agent"],
        "airflow_version": versions["airflow"],
        "protocol": str(versions["protocol"]),
        "server_version": versions["server"],
    }
    jobs = [word if (word := job["state"]) in JOB_STATES else "ended" for job in status["jobs"]]
    return [
        ("info", "gauge", "Always 1; what this agent is.", [(about, 1)]),
        ("uptime_seconds", "gauge", "How long this agent process has run.", one(status["since_seconds"])),
        ("healthy", "gauge", "1 while /health answers 200.", one(not unhealthy)),
        (
            "contact_age_seconds",
            "gauge",
            "Since the control plane last answered; absent before its first answer.",
            one(status["last_contact_seconds"]),
        ),
        ("state", "gauge", "1 for the state that the agent reports.", among("state", STATES, status["state"])),
        ("working", "gauge", "1 while nothing but full slots keeps the agent from taking jobs.", one(works(status))),
        (
            "version_verdict",
            "gauge",
            "1 for what the control plane makes of this version.",
            among("verdict", VERDICTS, versions["verdict"]),
        ),
        ("slots", "gauge", "Slots that jobs may take.", one(status["slots"]["of"])),
        ("slots_used", "gauge", "Slots that jobs take.", one(status["slots"]["used"])),
        (
            "jobs",
            "gauge",
            "Jobs that are held, by what they do; `ended` waits for its report or its log to be delivered.",
            [({"state": word}, jobs.count(word)) for word in JOB_STATES],
        ),
        (
            "undelivered_reports",
            "gauge",
            "Ends of jobs that the control plane has not heard of yet.",
            one(status["undelivered"]["reports"]),
        ),
        (
            "undelivered_log_bytes",
            "gauge",
            "Bytes of logs that the control plane does not have yet.",
            one(status["undelivered"]["log_bytes"]),
        ),
        (
            "cpu_ratio",
            "gauge",
            "Share of the machine's processors that is busy.",
            one(figures.get("cpu_percent"), 0.01),
        ),
        ("load_per_cpu", "gauge", "Load average of a minute, per processor.", one(figures.get("load_per_cpu"))),
        (
            "memory_used_ratio",
            "gauge",
            "Share of the machine's memory that is in use.",
            one(figures.get("memory_used_percent"), 0.01),
        ),
        (
            "disk_used_ratio",
            "gauge",
            "Share of the state directory's disk that is in use.",
            one(figures.get("disk_used_percent"), 0.01),
        ),
        (
            "disk_free_bytes",
            "gauge",
            "Free on the state directory's disk.",
            one(figures.get("disk_free_gb"), 1 << 30),
        ),
    ]


def one(value: Any, factor: float = 1.0) -> Samples:
    return [({}, value * factor if is_number(value) else value)]


def among(label: str, words: Sequence[str], now: str) -> Samples:
    """A sample for each word, 1 for the one that it is now."""
    return [({label: word}, word == now) for word in words]


def works(status: Mapping[str, Any]) -> bool:
    return status["state"] in ("idle", "running") and not status["not_working"]


def own(figures: Mapping[str, Any]) -> str:
    """The numbers of the operator's own function, each as a label of one metric: their names are not ours to choose."""
    samples = [
        f"{PREFIX}extended_sysinfo{shown({'figure': name})} {number(float(value))}"
        for name, value in figures.items()
        if is_number(value)
    ]
    if not samples:
        return ""
    name = f"{PREFIX}extended_sysinfo"
    head = [f"# HELP {name} What the function of the setting extended_sysinfo tells.", f"# TYPE {name} gauge"]
    return "\n".join([*head, *samples]) + "\n"


def is_number(value: Any) -> bool:
    """Whether it is a number that a sample can have; True and False are 1 and 0."""
    return isinstance(value, int | float)


def number(value: float) -> str:
    if math.isfinite(value):
        return repr(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def shown(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{escaped(str(text))}"' for name, text in labels.items()) + "}"


def escaped(text: str) -> str:
    return re.sub(r'[\\"]', lambda found: f"\\{found[0]}", text).replace("\n", r"\n")
