"""The page of a log: which attempts there are, its bytes from an offset on, all of it as a file, and why it is empty.

Log text never becomes part of a page here: it goes out as plain bytes, and `log.js` shows them as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import UUID

from django.contrib import admin
from django.contrib.admin.utils import quote
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_safe

from jobs_app import logs
from jobs_app.models import Job
from jobs_app.states import FINAL, JobState
from workers_app import admin_words
from workers_app.states import Shown

#: As much as one answer to the page has.
PART_BYTES = 256 * 1024
#: A first look begins so far before the end, and each "Load earlier" goes so much further back.
STEP_BYTES = 1024 * 1024
#: As much as a page holds; whoever wants more downloads the log.
PAGE_BYTES = 8 * 1024 * 1024
#: A job that was handed out more often shows the latest of its attempts.
_MOST_ATTEMPTS = 20
_LONGEST_NAME = 200
_LARGEST_OFFSET = 2**63 - 1


class LogView(admin.ModelAdmin):  # type: ignore[type-arg]
    """The pages of logs below those of jobs: `<job>/log/<attempt>/`, and there `tail/` and `download/`."""

    def get_urls(self) -> list[URLPattern]:
        view, log = self.admin_site.admin_view, "<uuid:job_id>/log/<int:attempt>/"
        return [
            path(log, view(require_safe(self.log_view)), name="jobs_app_job_log"),
            path(f"{log}tail/", view(require_safe(self.log_tail_view)), name="jobs_app_job_log_tail"),
            path(f"{log}download/", view(require_safe(self.log_download_view)), name="jobs_app_job_log_download"),
            *super().get_urls(),
        ]

    def log_view(self, request: HttpRequest, job_id: UUID, attempt: int) -> HttpResponse:
        """The page around a log."""
        job, extent = self._found(request, job_id, attempt)
        page = {
            **self.admin_site.each_context(request),
            "media": self.media,
            "title": f"Log of {job}",
            "opts": self.opts,
            "original": job,
            "job": job,
            "attempt": attempt,
            "attempts": _attempts(job, attempt),
            "badge": admin_words.badge(job.state, ""),
            # Of earlier attempts nobody knows any more who had them.
            "worker": job.worker if attempt == job.attempt else None,
            "worker_url": _worker_url(request, job),
            "job_url": reverse("admin:jobs_app_job_change", args=[quote(job.pk)]),
            "tail_url": reverse("admin:jobs_app_job_log_tail", args=[job.pk, attempt]),
            "download_url": reverse("admin:jobs_app_job_log_download", args=[job.pk, attempt]),
            "extent": extent,
            "note": note(job, attempt, extent),
            "part_bytes": PART_BYTES,
            "step_bytes": STEP_BYTES,
            "page_bytes": PAGE_BYTES,
        }
        return TemplateResponse(request, "jobs_app/log/page.html", page)

    def log_tail_view(self, request: HttpRequest, job_id: UUID, attempt: int) -> HttpResponse:
        """The bytes from `offset` on, `limit` or PART_BYTES of them at most, and in headers how the log stands."""
        job, extent = self._found(request, job_id, attempt)
        offset = _number(request, "offset", default=0, most=_LARGEST_OFFSET)
        limit = _number(request, "limit", default=PART_BYTES, most=PART_BYTES)
        if offset is None or limit is None:
            return HttpResponseBadRequest("offset and limit are numbers of bytes", content_type="text/plain")
        part = b"".join(_up_to(limit, logs.read(job_id=job.pk, attempt=attempt, offset=offset)))
        return HttpResponse(
            part,
            content_type="text/plain; charset=utf-8",
            headers={
                "X-Content-Type-Options": "nosniff",
                # Bytes may have come since it was measured.
                "Log-Size": str(max(extent.size, offset + len(part) if part else 0)),
                "Log-Complete": str(extent.complete).lower(),
                "Log-Note": note(job, attempt, extent).encode("ascii", "replace").decode(),
                "Job-State": job.state,
                "Job-Attempt": str(job.attempt),
            },
        )

    def log_download_view(self, request: HttpRequest, job_id: UUID, attempt: int) -> StreamingHttpResponse:
        """What is stored at this moment, as a file."""
        job, extent = self._found(request, job_id, attempt)
        chunks = _up_to(extent.size, logs.read(job_id=job.pk, attempt=attempt))
        return StreamingHttpResponse(
            _without_connection(chunks),
            content_type="application/octet-stream",
            headers={
                "X-Content-Type-Options": "nosniff",
                "Content-Disposition": f'attachment; filename="{file_name(job, attempt)}"',
                # A browser can then tell a broken download from a whole one.
                "Content-Length": str(extent.size),
            },
        )

    def _found(self, request: HttpRequest, job_id: UUID, attempt: int) -> tuple[Job, logs.Extent]:
        """The job and how much there is of this attempt's log, for those who may see jobs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        job = Job.objects.defer("workload", "token").select_related("worker").filter(pk=job_id).first()
        # A job that nobody has had yet has the page of its first attempt already.
        if job is None or attempt > max(job.attempt, 1):
            raise Http404
        extent = logs.extent(job, attempt=attempt)
        if attempt == 0 and not extent.size:
            raise Http404
        if attempt > job.attempt:
            extent = logs.Extent(0, job.state in FINAL)
        return job, extent


def note(job: Job, attempt: int, extent: logs.Extent) -> str:
    """What is to be said of a log that is empty, waited for or cut; nothing of one that speaks for itself."""
    if attempt == 0:
        return "This is what Airflow's own side wrote."
    if attempt == job.attempt and (missing := " ".join(logs.missing(job).split())):
        return missing
    if not extent.size:
        return _why_empty(job, attempt, complete=extent.complete)
    if not extent.complete and job.state in FINAL:
        return "The job has ended; the rest of its log has not come from the worker host yet."
    return "" if extent.complete else _of_silent_worker(job)


def _why_empty(job: Job, attempt: int, *, complete: bool) -> str:
    if attempt > job.attempt:
        waits = job.state not in FINAL
        return "Not started: the job waits for a worker host." if waits else "No worker host has had the job."
    if attempt < job.attempt or job.state == JobState.QUEUED:
        return "Nothing of this attempt's log is kept here: the job was handed out again."
    if job.state == JobState.CLAIMED:
        return "A worker host has taken the job and has not started it yet."
    if job.state == JobState.RUNNING:
        return _of_silent_worker(job) or "The job runs and has written nothing yet."
    return "The job ended without a log." if complete else "The job has ended; its log has not come yet."


def _of_silent_worker(job: Job) -> str:
    silent = job.worker is not None and job.worker.state == Shown.UNKNOWN
    return "The worker host is silent; the log goes on when it is heard again." if silent else ""


def file_name(job: Job, attempt: int) -> str:
    """A name that is safe in a header and in any directory, whatever Airflow's ids hold."""
    mapped = f".{job.map_index}" if job.map_index >= 0 else ""
    what = f"{job.dag_id}.{job.task_id}{mapped}.{job.run_id}" if job.dag_id else f"{job.kind}.{job.pk}"
    safe = re.sub(r"[^A-Za-z0-9._+-]+", "_", what).lstrip(".-")[:_LONGEST_NAME]
    return f"{safe or 'log'}.try{job.try_number}.attempt{attempt}.log"


def _attempts(job: Job, shown: int) -> list[int]:
    """The attempts that have a page: the latest ones, the one that is looked at, and what Airflow's side wrote."""
    last = max(job.attempt, 1)
    numbers = {shown, *range(max(1, last - _MOST_ATTEMPTS + 1), last + 1)}
    if logs.extent(job, attempt=0).size:
        numbers.add(0)
    return sorted(numbers)


def _worker_url(request: HttpRequest, job: Job) -> str:
    if job.worker_id is None or not request.user.has_perm("workers_app.view_worker"):
        return ""
    return reverse("admin:workers_app_worker_change", args=[quote(job.worker_id)])


def _number(request: HttpRequest, name: str, *, default: int, most: int) -> int | None:
    """A whole number from 0 to `most`; None when something else stands there."""
    said = request.GET.get(name, str(default))
    if not (said.isascii() and said.isdigit() and len(said) <= len(str(most))):
        return None
    return int(said) if int(said) <= most else None


def _up_to(limit: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The first `limit` bytes; nothing is read beyond them."""
    while limit > 0 and (chunk := next(chunks, None)):
        yield chunk[:limit]
        limit -= len(chunk)


def _without_connection(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in parts of about PART_BYTES. While a slow reader takes one, others have the connection."""
    more = True
    while more:
        part = bytearray()
        try:
            while len(part) < PART_BYTES and (chunk := next(chunks, None)):
                part += chunk
            more = len(part) >= PART_BYTES
        finally:
            connection.close()
        if part:
            yield bytes(part)
