"""Workers that edge3 itself has stored, with its own models in tables of its own making, become worker hosts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecontrol import embedded
from tests.acceptance.edge3.conftest import Both
from tests.acceptance.site import Site

pytestmark = [pytest.mark.slow, pytest.mark.airflow]

_PERSONAL_TOKEN = """
from pathlib import Path
from django.contrib.auth.models import User
from workers_app import personal_tokens
from workers_app.audit import Actor
maria = User.objects.create_superuser("maria")
Path({file!r}).write_text(personal_tokens.issue(user=maria, name="laptop", by=Actor.of_command())[1])
"""
_EDGE3 = """
from airflow.models.base import Base
from airflow.providers.edge3.models.db import EdgeDBManager
from airflow.providers.edge3.models.edge_job import EdgeJobModel
from airflow.providers.edge3.models.edge_worker import EdgeWorkerModel, EdgeWorkerState
from airflow.utils.session import create_session
with create_session(scoped=False) as session:
    EdgeDBManager(session).initdb()
with create_session() as session:
    press = EdgeWorkerModel("press-7", EdgeWorkerState.OFFLINE_MAINTENANCE, ["floor", "paint"], team_name="print",
                            maintenance_comment="new belt")
    press.concurrency = 4
    press.sysinfo = {"concurrency": 8}
    laser = EdgeWorkerModel("laser-1", EdgeWorkerState.IDLE, None)
    laser.sysinfo = {"concurrency": 2, "status": 20}
    session.add_all([press, laser])
    for number, (state, worker) in enumerate([("queued", None), ("running", "press-7"), ("success", "press-7")]):
        session.add(EdgeJobModel(
            dag_id="d", task_id="t", run_id=str(number), map_index=-1, try_number=1, state=state, queue="floor",
            concurrency_slots=1, command="{}", edge_worker=worker,
        ))
print("{}")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def airflow_database(request: pytest.FixtureRequest, site: Site, both: Both) -> str:
    """Where Airflow's tables are: on the same PostgreSQL as EdgeControl's, or in a file."""
    if request.param == "sqlite":
        return f"sqlite:///{both.home / 'of_both.db'}"
    return embedded.start(site.folder / "data", database="airflow").replace("postgresql:", "postgresql+psycopg:", 1)


def result(done: Any) -> dict[str, str]:
    return {row["worker"]: row["result"] for row in json.loads(done.stdout)}


def test_what_edge3_knows_of_its_workers_is_taken_over_once(
    site: Site, both: Both, airflow_database: str, tmp_path: Path
) -> None:
    token = tmp_path / "personal.token"
    token.touch(0o600)
    site.manage("shell", "-c", _PERSONAL_TOKEN.format(file=str(token)))
    both.use_database(airflow_database)
    both.settings |= {
        "edgecontrol.control_plane_url": site.url,
        "edgecontrol.api_token_file": str(token),
    }
    both.python_says(_EDGE3)
    before = both.airflow("edge", "list-workers", "--output", "json").stdout
    assert "press-7" in before

    dry = both.airflow("edgecontrol", "import-edge3", "--dry-run", "--output", "json")
    assert result(dry) == {"laser-1": "would be made", "press-7": "would be made"}
    assert "edge3 still has jobs that wait: 1 in floor." in dry.stderr
    assert site.rows("SELECT 1 FROM edgecontrol.worker") == []

    folder = tmp_path / "tokens"
    took = both.airflow("edgecontrol", "import-edge3", "--tokens", str(folder), "--output", "json")
    assert result(took)["press-7"] == f"made; its token is in {folder / 'press-7.token'}"
    assert {row["worker"]: row["edge3_jobs"] for row in json.loads(took.stdout)} == {"laser-1": 0, "press-7": 1}
    rows = site.rows(
        "SELECT name, allowed_queues, team_name, concurrency_override, requested, requested_comment, state"
        " FROM edgecontrol.worker ORDER BY name"
    )
    assert [tuple(row) for row in rows] == [
        ("laser-1", None, "", 2, "active", "", "offline"),
        ("press-7", ["floor", "paint"], "print", 4, "maintenance", "new belt", "offline maintenance"),
    ]

    again = both.airflow("edgecontrol", "import-edge3", "--output", "json")
    assert set(result(again).values()) == {"exists, left as it is; its machine has not called yet"}
    assert both.airflow("edge", "list-workers", "--output", "json").stdout == before


def test_the_commands_need_no_database_of_airflow(site: Site, both: Both, tmp_path: Path) -> None:
    token = tmp_path / "personal.token"
    token.touch(0o600)
    site.manage("shell", "-c", _PERSONAL_TOKEN.format(file=str(token)))
    site.token("press-7")
    # Nobody listens there.
    both.use_database("postgresql+psycopg://nobody@127.0.0.1:9/nothing")
    both.settings |= {
        "edgecontrol.control_plane_url": site.url,
        "edgecontrol.api_token_file": str(token),
    }
    said = json.loads(both.airflow("edgecontrol", "whoami", "--output", "json").stdout)
    assert (said[0]["user"], said[0]["control_plane"]) == ("maria", site.url)
    both.airflow("edgecontrol", "request-maintenance", "press-7", "--comment", "kernel patch")
    (worker,) = json.loads(both.airflow("edgecontrol", "list-workers", "--output", "json").stdout)
    assert (worker["name"], worker["comment"], worker["by"]) == ("press-7", "kernel patch", "maria")
    away = both.airflow("edgecontrol", "import-edge3", check=False)
    assert away.returncode == 1
    assert "Airflow's database cannot be read" in away.stderr
    site.process.terminate()
    site.process.wait(timeout=60)
    gone = both.airflow("edgecontrol", "list-workers", check=False)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert f"{site.url} cannot be reached" in gone.stderr.splitlines()[-1]
    assert "Traceback" not in gone.stderr
