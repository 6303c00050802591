"""The app of worker hosts."""

from __future__ import annotations

from django.apps import AppConfig


class WorkersConfig(AppConfig):
    name = "workers_app"
    verbose_name = "Worker hosts"
    default_auto_field = "django.db.models.BigAutoField"
