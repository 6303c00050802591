"""`manage.py serve`: bring the tables up to date, then become gunicorn."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import psycopg
from django.conf import settings
from django.core.management import BaseCommand, CommandError, call_command
from django.db import connection

from edgecontrol.hub import connection_parameters

#: Any number that no other program uses for an advisory lock in the same database.
_MIGRATION_LOCK = 0x6564676563746C
_WAIT_SECONDS = 60


class Command(BaseCommand):
    help = "Migrates the database under a lock, then serves the admin and the API with gunicorn."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        with self._reachable() as lock:
            # Several replicas start at once: the first one migrates, the others wait and find nothing to do.
            lock.execute("SELECT pg_advisory_lock(%s)", [_MIGRATION_LOCK])
            self.stdout.write("migrating the database")
            call_command("migrate", interactive=False, verbosity=0)
            call_command("check", deploy=settings.EDGECONTROL.production)
        connection.close_pool()  # type: ignore[attr-defined]
        self.stdout.write(f"serving on http://{settings.EDGECONTROL.listen}/admin/")
        self.stdout.flush()
        os.execv(  # noqa: S606 - the very interpreter that runs us
            sys.executable,
            [
                sys.executable,
                "-m",
                "gunicorn",
                "-c",
                "python:edgecontrol.gunicorn",
                "edgecontrol.wsgi:application",
            ],
        )

    def _reachable(self) -> psycopg.Connection[Any]:
        """A connection of our own, waited for: the database may start at the same moment."""
        deadline = time.monotonic() + _WAIT_SECONDS
        while True:
            try:
                return psycopg.connect(**connection_parameters(), autocommit=True)
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise CommandError(f"cannot reach PostgreSQL after {_WAIT_SECONDS} s: {error}") from None
                self.stderr.write(f"waiting for PostgreSQL: {str(error).splitlines()[0]}")
                time.sleep(2)
