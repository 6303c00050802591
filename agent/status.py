"""What the agent says of itself on its own machine: the JSON of `status --json` and of the local pages.

The same keys stand there whether an agent runs (`status`) or not (`on_disk`); what is not known then is empty.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import PROTOCOL, __version__
from agent.files import read_json
from agent.jobs import Found, Job, read_job
from agent.safe_files import is_there
from agent.wishes import FILE as WISHES
from agent.wishes import after, by_whom
from agent.wishes import read as read_wishes

if TYPE_CHECKING:
    from agent.worker import Worker

#: `state` of a machine without an agent.
NOT_RUNNING = "not running"
#: Of a name that a task's own process may have written.
LONGEST_NAME = 250
#: What a job does that has not ended.
WAITING, RUNNING, STOPPING = "waiting", "running", "stopping"


def status(worker: Worker) -> dict[str, Any]:
    """What the running agent is, does and holds. Asks nobody, waits for nobody; any thread may call it."""
    orders, held, contact = worker.orders, worker.held, worker.client.contact
    now = time.monotonic()
    # One that has just started holds nothing yet, and what its predecessor held goes on.
    found = [(job, state(job)) for job in held.all()] if worker.took_over else jobs_on_disk(worker.config.state_dir)
    jobs = [job for job, _ in found]
    figures = worker.figures()
    reason = str(figures.pop("not_working", ""))
    return {
        "name": worker.name,
        "url": worker.config.url,
        "state_dir": str(worker.config.state_dir),
        "state": orders.reported(jobs=sum(job.result is None for job in jobs), ready=worker.runner.ready),
        "pid": os.getpid(),
        "registered": worker.registered,
        "since_seconds": round(now - worker.started_at, 1),
        "requested": orders.requested,
        "requested_by": orders.requested_by,
        "requested_by_name": orders.requested_by_name,
        "comment": orders.comment,
        "wish_untold": worker.wishes.next() is not None,
        "jobs": [describe(job, state=word) for job, word in found],
        "slots": {"used": sum(job.slots for job in jobs if job.takes_slots), "of": held.concurrency},
        "not_working": contact.trouble if contact.silent or not worker.registered else reason,
        "versions": {
            "agent": __version__,
            "airflow": worker.runner.airflow_version,
            "protocol": PROTOCOL,
            "server": worker.server_version,
            "verdict": orders.verdict,
            "text": orders.verdict_text,
        },
        "last_contact_seconds": round(now - contact.last_success_at, 1) if contact.last_success_at else None,
        "undelivered": undelivered(jobs),
        "sysinfo": figures,
    }


def on_disk(state_dir: Path) -> dict[str, Any]:
    """What can be said of a machine on which no agent runs: the jobs that it holds, and what is still to be told."""
    jobs = list(jobs_on_disk(state_dir))
    wishes, wanted = read_wishes(state_dir / WISHES)
    for wish in wishes:
        wanted = after(wanted, wish)
    known: dict[str, Any] = {}
    with contextlib.suppress(OSError):
        known = read_json(state_dir / "registered") or {}
    return {
        "name": "",
        "url": str(known.get("url", "")),
        "state_dir": str(state_dir),
        "state": NOT_RUNNING,
        "pid": None,
        "registered": False,
        "since_seconds": None,
        "requested": wanted.requested,
        "requested_by": wanted.by,
        "requested_by_name": wanted.name,
        "comment": wanted.comment,
        "wish_untold": bool(wishes),
        "jobs": [describe(job, state=found) for job, found in jobs],
        "slots": {"used": sum(job.slots for job, found in jobs if found == RUNNING), "of": None},
        "not_working": "no agent runs",
        "versions": {
            "agent": __version__,
            "airflow": "",
            "protocol": PROTOCOL,
            "server": "",
            "verdict": "",
            "text": "",
        },
        "last_contact_seconds": None,
        "undelivered": undelivered([job for job, _ in jobs]),
        "sysinfo": {},
    }


def jobs_on_disk(state_dir: Path) -> list[tuple[Job, str]]:
    """Every job that an agent has left, and what it does. Only looks: an agent may start meanwhile."""
    found = []
    with contextlib.suppress(OSError):
        for directory in sorted((state_dir / "jobs").iterdir()):
            with contextlib.suppress(OSError):
                if not directory.name.startswith(".") and (job := read_job(directory)) is not None:
                    look = job.look()
                    job.result = job.read_result() if look is Found.ENDED else None
                    words = {Found.RUNNING: RUNNING, Found.ENDED: ended(job), Found.DIED: "died"}
                    found.append((job, words.get(look, WAITING)))
    return found


def describe(job: Job, *, state: str) -> dict[str, Any]:
    """One job, for people and scripts; nothing of its workload but its name."""
    return {
        "id": job.id,
        "attempt": job.attempt,
        "queue": job.queue,
        "slots": job.slots,
        "task": task_name(job),
        "state": state,
        "since_seconds": age_seconds(job),
        "log_bytes": job.log_size(),
        "log_shipped": job.shipped,
    }


def state(job: Job) -> str:
    """What a job of the running agent does, by what that knows: the disk is not asked whether its process lives."""
    if job.result is not None:
        return ended(job)
    if job.stopping_at is not None:
        return STOPPING
    with contextlib.suppress(OSError):
        return RUNNING if is_there(job.place / "started") else WAITING
    return WAITING


def active(known: dict[str, Any]) -> list[dict[str, Any]]:
    """The jobs of a status that have not ended."""
    return [job for job in known["jobs"] if job["state"] in (WAITING, RUNNING, STOPPING)]


def whose(known: dict[str, Any]) -> str:
    """` by` whom what is requested is; empty when nobody has said anything."""
    return by_whom(known["requested_by"], known["requested_by_name"])


def ended(job: Job) -> str:
    """What became of it; `failed` too when nobody can read it any more."""
    return str((job.result or {}).get("state", "failed"))


def age_seconds(job: Job) -> float | None:
    """How long ago it was started, or taken in if it was not."""
    for path in (job.place / "started", job.directory / "job.json"):
        with contextlib.suppress(OSError):
            return round(max(0.0, time.time() - path.lstat().st_mtime), 1)
    return None


def task_name(job: Job) -> str:
    """The task as Airflow calls it, if that can be told."""
    with contextlib.suppress(OSError):
        ti = job.read_workload().get("ti")
        known = ti if isinstance(ti, dict) else {}
        dag, task, mapped = (known.get(name) for name in ("dag_id", "task_id", "map_index"))
        if isinstance(dag, str) and isinstance(task, str):
            index = f"[{mapped}]" if isinstance(mapped, int) and mapped >= 0 else ""
            return f"{dag[:LONGEST_NAME]}.{task[:LONGEST_NAME]}{index}"
    return ""


def undelivered(jobs: list[Job]) -> dict[str, int]:
    """What the control plane has not got yet of jobs that have ended, and of all logs."""
    return {
        "reports": sum(1 for job in jobs if job.result is not None and not job.reported and not job.gone),
        "log_bytes": sum(max(0, job.log_size() - job.shipped) for job in jobs if not job.log_done and not job.gone),
    }
