"""Admin pages of jobs, which are put together here; those of queues stand in `admin_queues`."""

from __future__ import annotations

from django.contrib import admin

import jobs_app.admin_queues  # noqa: F401 - registers its pages
from jobs_app import operations
from jobs_app.admin_job_list import JobsList
from jobs_app.admin_job_page import JobPage
from jobs_app.admin_logs import LogView
from jobs_app.models import Job


@admin.register(Job)
class JobAdmin(JobsList, JobPage, LogView):  # type: ignore[misc]  # unfold's own attributes have no types
    operations = operations.JOBS
