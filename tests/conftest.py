"""The scratch database of a test run, as the programs beside Django see it."""

from __future__ import annotations

import pytest
from django.db import connection
from psycopg.conninfo import make_conninfo

import tests.airflow_home  # noqa: F401  (before any test imports Airflow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """pytest-django makes a scratch database only when some collected test asks for one by its mark."""
    for item in items:
        if "postgres_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.django_db)


@pytest.fixture(scope="session")
def postgres_url(django_db_setup: None) -> str:
    """libpq URL of the scratch database that Django's migrations were applied to; tests may empty its tables."""
    settings = connection.settings_dict
    if not settings["NAME"].startswith("test_"):
        pytest.exit(f"database {settings['NAME']!r} is no scratch database of Django's test runner", returncode=3)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return make_conninfo(**{theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours)})
