"""What each program of the demo is told: its environment, and nothing of the others' secrets.

None inherits the variables of the terminal, so an `AIRFLOW__...` that is set there cannot change the demo.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
DAGS = Path(__file__).resolve().parent / "dags"
#: The queues of the example DAG.
QUEUES = ("plant",)
CONCURRENCY = 4
#: The login of the Django admin and of Airflow's UI.
ADMIN = "admin"

_INHERITED = ("HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ")


def free_port(preferred: int, *, not_this: int | None = None) -> int:
    """Return the preferred port of the loopback interface or, when it is busy, the next free one."""
    for port in range(preferred, preferred + 200):
        with socket.socket() as probe:
            # As a server would bind it: a connection that a former server left in TIME_WAIT does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port != not_this:
                return port
    raise OSError(f"no free port from {preferred} to {preferred + 199}")


@dataclass(frozen=True)
class Environments:
    """Addresses, secrets and settings of one demo; the secrets stay the same from run to run."""

    state_dir: Path
    control_plane_port: int
    airflow_port: int

    @property
    def control_plane_url(self) -> str:
        return f"http://127.0.0.1:{self.control_plane_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://127.0.0.1:{self.airflow_port}"

    @property
    def token_file(self) -> Path:
        return self.state_dir / "worker.token"

    @cached_property
    def secrets(self) -> dict[str, str]:
        path = self.state_dir / "secrets.json"
        if not path.exists():
            _write_private(path, json.dumps({
                "django": secrets.token_urlsafe(50),
                "airflow_api": secrets.token_urlsafe(48),
                "airflow_jwt": secrets.token_urlsafe(64),
                "fernet": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "password": secrets.token_urlsafe(9),
            }))  # fmt: skip
        known: dict[str, str] = json.loads(path.read_text())
        return known

    @property
    def password(self) -> str:
        """The password of `admin`, in the Django admin and in Airflow's UI."""
        return self.secrets["password"]

    @cached_property
    def databases(self) -> dict[str, str]:
        """Return the libpq URL of each database; only once PostgreSQL is up."""
        from .database import addresses

        urls: dict[str, str] = json.loads(addresses(self.state_dir).read_text())
        return urls

    @property
    def plain(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in _INHERITED if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def _installed(self) -> dict[str, str]:
        """Keep the checkout off the path: its `edgecontrol.egg-info` would bring Airflow our plugin a second time."""
        return {**{name: value for name, value in self.plain.items() if name != "PYTHONPATH"}, "PYTHONSAFEPATH": "1"}

    @property
    def control_plane(self) -> dict[str, str]:
        return {
            **self.plain,
            "DJANGO_SETTINGS_MODULE": "edgecontrol.settings",
            "EDGECONTROL_DATABASE_URL": self.databases["edgecontrol"],
            "EDGECONTROL_DATA_DIR": str(self.state_dir),
            "EDGECONTROL_LISTEN": f"127.0.0.1:{self.control_plane_port}",
            "EDGECONTROL_SECRET_KEY": self.secrets["django"],
            "EDGECONTROL_EXECUTION_API_URL": f"{self.airflow_url}/execution/",
            "EDGECONTROL_AIRFLOW_URL": self.airflow_url,
            "EDGECONTROL_PROCESSES": "1",
            "EDGECONTROL_THREADS": "64",
        }

    @property
    def superuser(self) -> dict[str, str]:
        return {
            **self.control_plane,
            "DJANGO_SUPERUSER_USERNAME": ADMIN,
            "DJANGO_SUPERUSER_EMAIL": "admin@localhost",
            "DJANGO_SUPERUSER_PASSWORD": self.password,
        }

    @property
    def airflow(self) -> dict[str, str]:
        home = self.state_dir / "airflow"
        home.mkdir(exist_ok=True)
        passwords = home / "simple_auth_manager_passwords.json.generated"
        _write_private(passwords, json.dumps({ADMIN: self.password}))
        database = self.databases["airflow"].replace("postgresql:", "postgresql+psycopg:", 1)
        settings = {
            "core.executor": "airflow_bridge.executor.EdgeControlExecutor",
            "core.dags_folder": str(DAGS),
            "core.load_examples": "false",
            "core.dags_are_paused_at_creation": "false",
            "core.execution_api_server_url": f"{self.airflow_url}/execution/",
            "core.fernet_key": self.secrets["fernet"],
            "core.simple_auth_manager_users": f"{ADMIN}:admin",
            "core.simple_auth_manager_passwords_file": str(passwords),
            "core.internal_api_secret_key": self.secrets["airflow_jwt"],
            "database.sql_alchemy_conn": database,
            "database.sql_alchemy_conn_async": database,
            "api.base_url": self.airflow_url,
            "api.secret_key": self.secrets["airflow_api"],
            "api.workers": "1",
            "api_auth.jwt_secret": self.secrets["airflow_jwt"],
            # Five times the outage patience.
            "execution_api.jwt_expiration_time": "1200",
            "logging.logging_config_class": "airflow_bridge.logging_config.LOGGING_CONFIG",
            "logging.base_log_folder": str(home / "logs"),
            "edgecontrol.database_url": self.databases["edgecontrol"],
            "edgecontrol.control_plane_url": self.control_plane_url,
            # Two cores are shared by seven programs: one file is parsed by one process, and not all the time.
            "dag_processor.parsing_processes": "1",
            "dag_processor.refresh_interval": "60",
            "dag_processor.min_file_process_interval": "60",
            "scheduler.scheduler_idle_sleep_time": "0.5",
            "usage_data_collection.enabled": "false",
        }
        return {**self._installed, "AIRFLOW_HOME": str(home), **airflow_variables(settings)}

    @property
    def agent(self) -> dict[str, str]:
        """What a machine at the edge knows: where the control plane is, its token, its copy of the DAGs."""
        home = self.state_dir / "agent"
        home.mkdir(exist_ok=True)
        settings = {
            "core.dags_folder": str(DAGS),
            "core.load_examples": "false",
            # Python makes the environments of @task.virtualenv itself: uv would fetch pip from the network.
            "standard.venv_install_method": "pip",
            "usage_data_collection.enabled": "false",
        }
        return {
            **self.plain,
            "EDGE_AGENT_URL": self.control_plane_url,
            "EDGE_AGENT_TOKEN_FILE": str(self.token_file),
            "AIRFLOW_HOME": str(home / "airflow"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            **airflow_variables(settings),
        }


def airflow_variables(settings: dict[str, str]) -> dict[str, str]:
    """Spell settings of Airflow, `section.option`, as the environment does."""
    return {f"AIRFLOW__{name.replace('.', '__').upper()}": value for name, value in settings.items()}


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
