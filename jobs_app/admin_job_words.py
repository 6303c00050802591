"""How the admin words a job: its state, how long it waited and ran, where Airflow shows it. Nothing is read here."""

from __future__ import annotations

from datetime import datetime, timedelta
from urllib.parse import quote

from django.conf import settings
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from jobs_app.models import Job
from jobs_app.states import FINAL, JobState
from workers_app import admin_words

#: What each state means, for people who see it for the first time.
MEANINGS: dict[str, str] = {
    JobState.QUEUED: "Waits for a worker host.",
    JobState.CLAIMED: "Handed to a worker host that has not confirmed it yet; it has not started.",
    JobState.RUNNING: "Confirmed by its worker host, which may have started it.",
    JobState.SUCCESS: "Its process ended well and Airflow took the task's final state, whatever that was.",
    JobState.FAILED: "Its process failed, its result was not delivered, or nobody could or would take it.",
    JobState.REFUSED: "Airflow did not want this start any more.",
    JobState.LOST: "It ran and was given up: its machine rebooted, fell silent, or forgot it.",
    JobState.REVOKED: "Withdrawn by an operator, by Airflow, or by a newer job of the same task instance.",
}
#: Airflow's words for what became of a task instance, in the order of the list's filter.
OUTCOMES = ("success", "failed", "skipped", "deferred", "up_for_retry", "up_for_reschedule", "removed")
_GOOD = ("success", "skipped", "deferred", "up_for_reschedule")


def badge(job: Job) -> SafeString:
    return admin_words.badge(job.state, MEANINGS.get(job.state, ""))


def task(job: Job) -> str:
    """What Airflow calls it, without the run: `dag.task [3]`; the kind of a job that is no task."""
    if not job.dag_id:
        return job.kind
    return f"{job.dag_id}.{job.task_id}" + (f" [{job.map_index}]" if job.map_index >= 0 else "")


def airflow_url(job: Job) -> str:
    """The task instance in Airflow's UI; nothing when nobody has said where that is, or the job is no task.

    The address is Airflow 3's own (TaskInstance.log_url), but for ids with characters that an address needs.
    """
    base = settings.EDGECONTROL.airflow_url
    if not base or not (job.dag_id and job.run_id and job.task_id):
        return ""
    dag, run, task = (quote(part, safe="") for part in (job.dag_id, job.run_id, job.task_id))
    mapped = f"/mapped/{job.map_index}" if job.map_index >= 0 else ""
    tried = f"?try_number={job.try_number}" if job.try_number > 0 else ""
    return f"{base}/dags/{dag}/runs/{run}/tasks/{task}{mapped}{tried}"


def waited(job: Job, now: datetime) -> timedelta:
    """From the queueing until a worker took it, or it ended without one; so far, of one that waits."""
    return max((job.claimed_at or job.finished_at or now) - job.queued_at, timedelta(0))


def ran(job: Job, now: datetime) -> timedelta | None:
    """From the confirmation to the end; so far, of one that runs. None of one that was never confirmed."""
    return max((job.finished_at or now) - job.started_at, timedelta(0)) if job.started_at else None


def times(job: Job, now: datetime) -> list[str]:
    """`waited 3 s`, `ran 2 min`; in the present tense while it lasts."""
    words = [f"{'waits' if job.state == JobState.QUEUED else 'waited'} {admin_words.span(waited(job, now))}"]
    if (length := ran(job, now)) is not None:
        words.append(f"{'ran' if job.state in FINAL else 'runs'} {admin_words.span(length)}")
    return words


def process(job: Job) -> SafeString:
    """How the task's process ended, which is not what became of the task in Airflow; nothing while nobody knows."""
    if job.exit_code is None:
        return mark_safe("")
    tone = "good" if job.exit_code == 0 else "bad"
    if job.exit_code < 0:
        return tag(f"signal {-job.exit_code}", tone, "The process was ended by this signal.")
    return tag(f"exit {job.exit_code}", tone, "The exit code of the task's process.")


def outcome(job: Job) -> SafeString:
    """What Airflow accepted as the task's state; nothing while nobody knows."""
    if not job.airflow_outcome:
        return mark_safe("")
    tone = "good" if job.airflow_outcome in _GOOD else "warn" if job.airflow_outcome == "up_for_retry" else "bad"
    return tag(job.airflow_outcome.replace("_", " "), tone, "What Airflow accepted as the task's state.")


def tag(text: str, tone: str, title: str) -> SafeString:
    return format_html('<span class="ec-tone ec-tone--{}" title="{}">{}</span>', tone, title, text)
