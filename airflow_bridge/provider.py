"""What Airflow's provider discovery is told of EdgeControl: names, settings and their defaults; nothing runs here."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Entry point `apache_airflow_provider`. `package-name` must be the distribution's, or Airflow refuses it."""
    return {
        "package-name": "edgecontrol",
        "name": "EdgeControl",
        "description": "Runs tasks on machines outside the data centre, over outbound HTTPS only.",
        "executors": ["airflow_bridge.executor.EdgeControlExecutor"],
        "cli": ["airflow_bridge.cli.definition.get_commands"],
        "config": {
            "edgecontrol": {
                "description": "The bridge between Airflow and EdgeControl's tables.",
                "options": {
                    "database_url": _option(
                        "The PostgreSQL database that holds EdgeControl's tables (schema edgecontrol), as the control "
                        "plane's EDGECONTROL_DATABASE_URL names it. Schedulers, api-servers and triggerers need it; "
                        "tasks and edge machines must not have it.",
                        kind="string",
                        default="",
                        example="postgresql://edgecontrol:secret@db.example.com/edgecontrol",
                        sensitive=True,
                    ),
                    "outage_patience": _option(
                        "Seconds of silence after which a lost job's task counts as dead. The same as the control "
                        "plane's EDGECONTROL_OUTAGE_PATIENCE_SECONDS, and below [scheduler] "
                        "task_instance_heartbeat_timeout.",
                        kind="integer",
                        default="240",
                    ),
                    "queue_wait_limit": _option(
                        "Seconds that a task may wait for a worker. Then it fails, with the reason why nobody took it. "
                        "Airflow's own [scheduler] task_queued_timeout does not apply to waiting jobs.",
                        kind="integer",
                        default="86400",
                    ),
                    "control_plane_url": _option(
                        "The control plane's address as browsers reach it. With it, the Admin menu of Airflow's UI has "
                        "links to the lists of workers and of jobs in EdgeControl's admin; without, it has none. Only "
                        "api-servers use it, and `airflow edgecontrol` unless it is told --url.",
                        kind="string",
                        default="",
                        example="https://edge.example.com",
                    ),
                    "api_token_file": _option(
                        "A file with a personal token of EdgeControl's admin, for `airflow edgecontrol`; nobody but "
                        "its owner may be able to read it. The variable EDGECONTROL_TOKEN_FILE and --token-file go "
                        "before. Schedulers, api-servers and tasks do not use it.",
                        kind="string",
                        default="",
                        example="~/.config/edgecontrol.token",
                    ),
                },
            }
        },
    }


def _option(
    description: str, *, kind: str, default: str, example: str | None = None, sensitive: bool = False
) -> dict[str, Any]:
    option: dict[str, Any] = {
        "description": description + "\n",
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }
    return {**option, "sensitive": True} if sensitive else option
