"""The project as an app: its admin, the schema before the first migration, the groups after the last one."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig
from django.db import connections
from django.db.models.signals import post_migrate, pre_migrate

#: Everything sits in this schema, in a database of its own as in Airflow's.
SCHEMA = "edgecontrol"


def create_schema(*, using: str, **_: Any) -> None:
    """Create the schema that the search path names; PostgreSQL does not do so by itself."""
    with connections[using].cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")


class EdgeControlConfig(AppConfig):
    name = "edgecontrol"
    verbose_name = "EdgeControl"

    def ready(self) -> None:
        from edgecontrol.groups import make_groups

        pre_migrate.connect(create_schema, dispatch_uid="edgecontrol.create_schema")
        # As the admin calls it beside worker hosts and jobs.
        apps.get_app_config("auth").verbose_name = "People"
        # The last app of ours: by then every permission exists.
        last = apps.get_app_config("jobs_app")
        post_migrate.connect(make_groups, sender=last, dispatch_uid="edgecontrol.make_groups")


class FleetAdminConfig(AdminConfig):
    default_site = "edgecontrol.admin_site.Site"
