"""`doctor` looks at one thing after the other and says what is wrong and what to do; it mends and changes nothing.

A running agent notices nothing: no session is begun, and its lock is only looked at. Secrets are never part of a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from agent.doctor import control_plane, machine, network, task_interpreter
from agent.doctor.examination import Examination, Finding, State

Check = Callable[[Examination], Iterator[Finding]]

#: Each check: its name, what of the examination it needs, and the function. Later ones use what earlier ones learned.
CHECKS: tuple[tuple[str, str, Check], ...] = (
    ("settings", "", machine.settings),
    ("state directory", "config", machine.state_directory),
    ("agent", "config", machine.running_agent),
    ("disk", "config", machine.disk),
    ("url", "config", network.url),
    ("proxy", "config", network.proxy),
    ("dns", "config", network.dns),
    ("client certificate", "config", network.client_certificate),
    ("tls", "config", network.tls),
    ("control plane", "config", control_plane.health),
    ("clock", "health", control_plane.clock),
    ("token", "config", control_plane.token),
    ("orders", "me", control_plane.orders),
    ("versions", "me", control_plane.versions),
    ("queues", "me", control_plane.queues),
    ("execution api", "me", control_plane.execution_api),
    ("task interpreter", "config", task_interpreter.interpreters),
    ("dags", "looks", task_interpreter.dags),
    ("providers", "looks", task_interpreter.providers),
    ("timeouts", "looks", task_interpreter.timeouts),
)
#: What each need itself rests on, the first thing first, and how it is said that it is missing.
NEEDS = {
    "": (),
    "config": ("config",),
    "health": ("config", "health"),
    "me": ("config", "health", "me"),
    "looks": ("config", "looks"),
}
WITHOUT = {
    "config": "the settings cannot be used",
    "health": "the control plane does not answer",
    "me": "the control plane does not know this machine",
    "looks": "no task interpreter has an Airflow that can be used",
}


def examine(examination: Examination) -> Iterator[Finding]:
    """Every finding, as soon as it is there. A check that fails by itself is a finding too, and ends no other."""
    found: set[str] = set()
    for name, need, check in CHECKS:
        missing = next((need for need in NEEDS[need] if not getattr(examination, need)), None)
        if missing is not None:
            if name not in found:
                yield Finding(name, State.SKIPPED, f"not looked at: {WITHOUT[missing]}")
            continue
        try:
            for finding in check(examination):
                found.add(finding.check)
                yield examination.without_secrets(finding)
        except Exception as error:
            text = f"this check itself went wrong ({type(error).__name__}: {error}); please report it"
            yield examination.without_secrets(Finding(name, State.FAILED, text))


def as_json(findings: list[Finding]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "checks": [{"check": one.check, "state": one.state.value, "text": one.text} for one in findings],
        **{state.value: sum(one.state is state for one in findings) for state in State},
    }
