"""Where the tests' PostgreSQL comes from: an embedded one, unless EDGECONTROL_DATABASE_URL names another."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

if "EDGECONTROL_DATABASE_URL" not in os.environ:
    # Read by edgecontrol.settings, which pytest-django imports after this module.
    os.environ.setdefault("EDGECONTROL_DATA_DIR", str(Path(tempfile.gettempdir()) / f"edgecontrol-tests-{os.getuid()}"))


@pytest.fixture(scope="session")
def postgres_url(django_db_setup: None) -> str:
    """libpq URL of the scratch database that Django's migrations were applied to."""
    from django.db import connection
    from psycopg.conninfo import make_conninfo

    settings = connection.settings_dict
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return make_conninfo(**{theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours)})
