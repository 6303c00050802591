"""The checks of the interpreters that tasks run in: what their Airflow is, has and is set to, as `look.py` finds it."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from agent import AIRFLOW, AIRFLOW_BELOW, AIRFLOW_FROM
from agent.accounts import check_files
from agent.doctor.examination import Examination, Finding, Look, State, failed, ok, warning
from agent.doctor.look import MARK
from agent.errors import BadConfig
from agent.runner import PRELOAD
from agent.task_kinds import TaskKind, kinds_of
from agent.transport import task_variables

#: Importing Airflow from a cold, slow disk.
LOOK_SECONDS = 120.0
HOW_TO_INSTALL = f"install Airflow there (`python -m pip install '{AIRFLOW}'`), or name another interpreter"


def interpreters(examination: Examination) -> Iterator[Finding]:
    """Each one by itself, as its tasks would be run: does it start, and does its Airflow?"""
    ours = examination.settings
    try:
        kinds = kinds_of(ours, variables=task_variables(ours, examination.environ))
    except BadConfig as error:
        yield failed("task interpreter", str(error))
        return
    for kind in kinds:
        finding, facts = look_into(kind, examination.environ)
        yield finding
        if facts is not None:
            examination.looks.append(Look(label_of(kind), facts))


def label_of(kind: TaskKind) -> str:
    return f"{kind.python} (queue {', '.join(kind.queues)})" if kind.queues else kind.python


def look_into(kind: TaskKind, environ: Mapping[str, str]) -> tuple[Finding, dict[str, Any] | None]:
    """What it has; None for an interpreter that cannot run a task."""
    name, label = "task interpreter", label_of(kind)
    options = kind.account.how_to_start() if kind.account is not None else {"cwd": "/"}
    try:
        if kind.account is not None:
            check_files(kind.account, kind.certificates(environ))
        answer = subprocess.run(
            [kind.python, "-", *PRELOAD],
            input=resources.files("agent.doctor").joinpath("look.py").read_bytes(),
            env=kind.environment(environ),
            capture_output=True,
            timeout=LOOK_SECONDS,
            check=False,
            **options,
        )
    except BadConfig as error:
        return failed(name, f"{label}: {error}"), None
    except subprocess.TimeoutExpired:
        return failed(name, f"{label} did not import Airflow within {LOOK_SECONDS:.0f} s: see to its disk"), None
    except OSError as error:
        hint = "name another with --task-python"
        return failed(name, f"{label} cannot be started ({error.strerror or error}): {hint}"), None
    facts = facts_in(answer.stdout.decode(errors="replace"))
    if facts is None:
        said = answer.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        return failed(name, f"{label} ended with code {answer.returncode} ({said[-1]})"), None
    works = facts["airflow_version"] and not facts.get("error")
    return about(label, facts), facts if works else None


def about(label: str, facts: dict[str, Any]) -> Finding:
    name, found = "task interpreter", facts["airflow_version"]
    if not found:
        return failed(name, f"{label} has no Airflow: {HOW_TO_INSTALL}")
    text = f"{label} has Airflow {found} on Python {facts['python']}"
    if facts.get("error"):
        return failed(name, f"{text}, but {facts['error']}: mend it, or name another interpreter")
    if not numbers(AIRFLOW_FROM) <= numbers(found) < numbers(AIRFLOW_BELOW):
        made_for = f"{AIRFLOW_FROM} and later, below {AIRFLOW_BELOW}"
        return warning(name, f"{text}; this agent is made for {made_for}: {HOW_TO_INSTALL}")
    return ok(name, text)


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, for comparing; `rc1` and the like count for nothing."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def facts_in(output: str) -> dict[str, Any] | None:
    """What `look.py` has printed, among whatever else importing Airflow printed."""
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            facts = json.loads(line.removeprefix(MARK))
            return facts if isinstance(facts, dict) else None
    return None


def dags(examination: Examination) -> Iterator[Finding]:
    """Whether the DAGs that Airflow's tasks name can be found here."""
    for look in examination.looks:
        bundles = look.facts["bundles"]
        if not bundles:
            yield failed(
                "dags", f"{look.label}: no DAG bundle is configured; set [dag_processor] dag_bundle_config_list"
            )
        for bundle in bundles:
            yield about_bundle(bundle)


def about_bundle(bundle: dict[str, Any]) -> Finding:
    label = f"bundle {bundle['name']}"
    if "error" in bundle:
        return failed("dags", f"{label} ({bundle['kind']}) cannot be loaded ({bundle['error']}): install its provider")
    if "path" not in bundle:
        return ok("dags", f"{label} ({bundle['kind']}) is fetched when a task needs it")
    if not bundle["exists"]:
        hint = "bring the DAG files there, or set AIRFLOW__CORE__DAGS_FOLDER under [environment]"
        return failed("dags", f"{label}: there is no folder {bundle['path']}; {hint}")
    if not bundle["files"]:
        return warning("dags", f"{label}: {bundle['path']} has no .py or .zip file; bring the DAG files there")
    files = f"{bundle['files']} file{'' if bundle['files'] == 1 else 's'}"
    return ok("dags", f"{label}: {files} in {bundle['path']}")


def providers(examination: Examination) -> Iterator[Finding]:
    """Operators come from providers, which have to be here as well."""
    for look in examination.looks:
        found = look.facts["providers"]
        listed = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
        if "standard" in found:
            yield ok("providers", f"{listed} in {look.label}; other operators that DAGs use need theirs here too")
        else:
            yield warning(
                "providers",
                f"{look.label} has {listed or 'none'}: Python and Bash tasks need apache-airflow-providers-standard",
            )


def timeouts(examination: Examination) -> Iterator[Finding]:
    """Airflow's own limits against the patience. The scheduler's count; those seen here are a hint at them."""
    patience = (examination.me or {}).get("outage_patience_seconds")
    if patience is None:
        yield Finding("timeouts", State.SKIPPED, "not looked at: the control plane does not tell its patience")
        return
    for look in examination.looks:
        fine = []
        for name in ("task_queued_timeout", "task_instance_heartbeat_timeout"):
            seconds = look.facts[name]
            if not math.isnan(seconds) and seconds <= patience:
                yield warning(
                    "timeouts",
                    f"[scheduler] {name} is {seconds:.0f} s as {look.label} sees it, and must be above the patience of "
                    f"{patience:g} s: if the scheduler's (which counts) is the same, raise it there",
                )
            else:
                fine.append(f"{name} {seconds:.0f} s")
        if len(fine) == 2:
            yield ok(
                "timeouts", f"{' and '.join(fine)} are above the patience of {patience:g} s (the scheduler's count)"
            )
