"""What becomes of the control plane's connections when PostgreSQL is away for a while."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout


@pytest.mark.slow
def test_after_an_outage_there_are_connections_within_seconds_however_long_it_was(
    postgres_url: str, tmp_path: Path
) -> None:
    parts = conninfo_to_dict(postgres_url)
    here, there = tmp_path / "there", tmp_path / "away"
    here.symlink_to(str(parts["host"]))
    options = settings.DATABASES["default"]["OPTIONS"]["pool"] | {"timeout": 0.5, "max_size": 4}
    with ConnectionPool(make_conninfo(postgres_url, host=str(here)), open=True, **options) as pool:
        with pool.connection() as one:
            one.execute("SELECT 1")
        here.rename(there)
        pool.drain()
        asked_until = time.monotonic() + 8
        while time.monotonic() < asked_until:
            with pytest.raises(PoolTimeout):
                pool.getconn()
        there.rename(here)
        back_at = time.monotonic()
        while True:
            try:
                pool.putconn(pool.getconn())
                break
            except PoolTimeout:
                assert time.monotonic() - back_at < 4
