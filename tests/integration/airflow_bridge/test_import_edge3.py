"""Workers of Airflow's own Edge provider become worker hosts, on both engines and with the tables of old versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import Engine, create_engine, insert
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from airflow_bridge.cli.endings import Code
from tests.integration.airflow_bridge.edge3_schema import tables
from tests.integration.airflow_bridge.test_cli import failed, maria
from tests.integration.airflow_command import airflow
from tests.integration.commandline import Ran
from tests.integration.fleet import Fleet, member
from workers_app import auth
from workers_app.models import Change, Worker

Make = Callable[..., Any]

__all__ = ["maria"]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Airflow's database, of which only edge3's tables matter here."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'airflow.db'}", poolclass=NullPool)
        monkeypatch.setattr("airflow.settings.Session", sessionmaker(engine))
        yield engine
        return
    url = request.getfixturevalue("postgres_url")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA airflow_of_edge3")
        connect = partial(psycopg.connect, url, options="-c search_path=airflow_of_edge3")
        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=NullPool)
        monkeypatch.setattr("airflow.settings.Session", sessionmaker(engine))
        yield engine
        connection.execute("DROP SCHEMA airflow_of_edge3 CASCADE")


@pytest.fixture
def edge3(engine: Engine) -> Callable[..., None]:
    """Make edge3's tables with these workers and jobs."""

    def edge3(*workers: dict[str, Any], jobs: tuple[dict[str, Any], ...] = (), first: bool = False) -> None:
        metadata = tables(first=first)
        metadata.create_all(engine)
        plain = {"state": "idle", "queues": None, "jobs_active": 0}
        with engine.begin() as connection:
            for worker in workers:
                connection.execute(insert(metadata.tables["edge_worker"]).values({**plain, **worker}))
            for number, job in enumerate(jobs):
                key = {"dag_id": "d", "task_id": "t", "run_id": str(number), "map_index": -1, "try_number": 1}
                connection.execute(insert(metadata.tables["edge_job"]).values({**key, **job}))

    return edge3


PRESS = {
    "worker_name": "press-7",
    "state": "offline maintenance",
    "maintenance_comment": "[2026-11-22 18:00] - maria put node into maintenance mode\nComment: disk",
    "queues": "['floor', 'paint']",
    "team_name": "print",
    "concurrency": 4,
    "sysinfo": {"concurrency": 8},
}
LASER = {"worker_name": "laser-1", "sysinfo": {"concurrency": 8, "status": 20}}


def names() -> set[str]:
    return set(Worker.objects.values_list("name", flat=True))


def results(ran: Ran) -> dict[str, str]:
    return {row["worker"]: row["result"] for row in ran.json}


class TestTakingOver:
    def test_each_worker_becomes_what_it_was(self, maria: Fleet, edge3: Make) -> None:
        edge3(PRESS, LASER)
        ran = airflow("import-edge3", "-o", "json")
        assert ran.code == 0
        assert results(ran) == {"press-7": "made; to be enrolled", "laser-1": "made; to be enrolled"}
        assert "airflow edgecontrol create-enrolment-token laser-1 --replace" in ran.err
        press, laser = Worker.objects.get(name="press-7"), Worker.objects.get(name="laser-1")
        assert press.effective_queues == ["floor", "paint"]
        assert (press.team_name, press.effective_concurrency) == ("print", 4)
        assert (press.requested, press.requested_comment) == ("maintenance", PRESS["maintenance_comment"])
        assert (laser.effective_queues, laser.team_name) == (None, "")
        # What its program said, as nobody said otherwise.
        assert (laser.concurrency_override, laser.requested) == (8, "active")
        assert not press.tokens.exists()
        assert not laser.tokens.exists()
        assert {change.actor for change in Change.objects.filter(subject="press-7")} == {"maria"}

    def test_a_dry_run_says_what_would_be_and_changes_nothing(self, maria: Fleet, edge3: Make, tmp_path: Path) -> None:
        edge3(PRESS)
        folder = tmp_path / "tokens"
        ran = airflow("import-edge3", "--dry-run", "--tokens", str(folder), "-o", "json")
        assert ran.code == 0
        assert results(ran) == {"press-7": f"would be made, with its token in {folder / 'press-7.token'}"}
        assert "Nothing was changed." in ran.err
        assert not folder.exists()
        assert not names()
        assert "press-7" in airflow("import-edge3", "--dry-run").out

    def test_a_second_time_leaves_them_as_they_are(self, maria: Fleet, edge3: Make) -> None:
        edge3(PRESS, LASER)
        assert airflow("import-edge3").code == 0
        assert airflow("exit-maintenance", "press-7").code == 0
        Worker.objects.filter(name="laser-1").update(last_heartbeat="2026-11-22T18:00:00Z")
        ran = airflow("import-edge3", "-o", "json")
        assert ran.code == 0
        assert results(ran) == {
            "press-7": "exists, left as it is; its machine has not called yet",
            "laser-1": "exists, left as it is",
        }
        assert Worker.objects.get(name="press-7").requested == "active"

    def test_each_gets_a_token_in_a_file_of_its_own(self, maria: Fleet, edge3: Make, tmp_path: Path) -> None:
        edge3(PRESS, {**LASER, "worker_name": "halle 3/laser"})
        folder = tmp_path / "tokens"
        ran = airflow("import-edge3", "--tokens", str(folder))
        assert ran.code == 0
        assert folder.stat().st_mode & 0o777 == 0o700
        files = {file.name: file for file in folder.iterdir()}
        assert set(files) == {"press-7.token", "halle_3_laser.token"}
        for name, file in (("press-7", "press-7.token"), ("halle 3/laser", "halle_3_laser.token")):
            token = files[file].read_text().splitlines()[0]
            assert auth.recognise(token).name == name
            assert files[file].stat().st_mode & 0o777 == 0o600
            assert token not in ran.out + ran.err

    def test_some_can_be_chosen(self, maria: Fleet, edge3: Make) -> None:
        edge3(PRESS, {**PRESS, "worker_name": "press-8", "queues": "['paint']"}, LASER)
        assert airflow("import-edge3", "--queue", "floor", "--pattern", "press-*").code == 0
        assert names() == {"press-7"}
        assert airflow("import-edge3", "--queue", "floor").code == 0
        assert names() == {"press-7", "laser-1"}
        assert "no worker like that" in failed(airflow("import-edge3", "--pattern", "x*"))

    def test_what_edge3_has_not_finished_is_told(self, maria: Fleet, edge3: Make) -> None:
        jobs = (
            {"state": "queued", "queue": "floor"},
            {"state": "queued", "queue": "floor"},
            {"state": "running", "queue": "floor", "edge_worker": "press-7"},
            {"state": "success", "queue": "paint", "edge_worker": "press-7"},
        )
        edge3(PRESS, jobs=jobs)
        ran = airflow("import-edge3", "--dry-run", "-o", "json")
        assert ran.json[0]["edge3_jobs"] == 1
        assert "edge3 still has jobs that wait: 2 in floor." in ran.err
        assert "let each finish before you stop it" in ran.err

    def test_the_tables_of_its_first_version_do_as_well(self, maria: Fleet, edge3: Make) -> None:
        known = {"worker_name": "old", "queues": "['floor']", "sysinfo": json.dumps({"concurrency": 3})}
        edge3(known, {"worker_name": "odd", "queues": "not a list", "sysinfo": "{"}, first=True)
        assert airflow("import-edge3").code == 0
        old, odd = Worker.objects.get(name="old"), Worker.objects.get(name="odd")
        assert (old.effective_queues, old.team_name, old.concurrency_override) == (["floor"], "", 3)
        assert (odd.effective_queues, odd.concurrency_override) == (["not a list"], None)

    @pytest.mark.parametrize(
        ("state", "comment", "rests", "because"),
        [
            ("maintenance request", "disk", True, "disk"),
            ("maintenance pending", None, True, "in maintenance in edge3"),
            ("maintenance mode", "x" * 1024, True, "x" * 1000),
            ("maintenance exit", "disk", False, ""),
            ("unknown", "disk", False, ""),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_maintenance_is_what_it_was(
        self, maria: Fleet, edge3: Make, state: str, comment: str | None, rests: bool, because: str
    ) -> None:
        edge3({"worker_name": "a", "state": state, "maintenance_comment": comment})
        assert airflow("import-edge3").code == 0
        worker = Worker.objects.get()
        assert (worker.requested == "maintenance", worker.requested_comment) == (rests, because)


class TestWhatGoesWrong:
    def test_one_that_the_control_plane_refuses_stops_no_other(self, maria: Fleet, edge3: Make, tmp_path: Path) -> None:
        edge3({"worker_name": " a"}, {"worker_name": "b"})
        ran = airflow("import-edge3", "--tokens", str(tmp_path), "-o", "json")
        assert ran.code == Code.SKIPPED
        assert "refused: A worker's name has 1 to 253 printable" in results(ran)[" a"]
        assert names() == {"b"}
        assert [file.name for file in tmp_path.glob("*.token")] == ["b.token"]

    def test_a_missing_permission_ends_it_before_anything_is_made(
        self, maria: Fleet, edge3: Make, tmp_path: Path
    ) -> None:
        edge3(LASER)
        (tmp_path / "token").write_text(Fleet(member("operator", name="olga")).token)
        assert "workers_app.add_worker" in failed(airflow("import-edge3"))
        assert not names()

    def test_when_the_control_plane_goes_away_those_before_are_told(self, maria: Fleet, edge3: Make) -> None:
        edge3({"worker_name": "a"}, {"worker_name": "b"})
        made: list[str] = []

        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"results": [], "next": None})
            if made:
                raise httpx.ConnectError("refused")
            made.append(json.loads(request.content)["name"])
            return httpx.Response(201, json={"worker_token": None})

        ran = airflow("import-edge3", "-o", "json", transport=httpx.MockTransport(answer))
        assert ran.code == Code.REFUSED
        assert results(ran) == {"a": "made; to be enrolled"}
        assert "cannot be reached" in ran.err

    def test_two_names_that_make_one_file(self, maria: Fleet, edge3: Make, tmp_path: Path) -> None:
        edge3({"worker_name": "a b"}, {"worker_name": "a/b"})
        ran = airflow("import-edge3", "--tokens", str(tmp_path), "-o", "json")
        assert ran.code == Code.REFUSED
        assert "a_b.token exists" in ran.err
        assert len(names()) == len(ran.json) == 1

    def test_edge3_was_never_used(self, maria: Fleet, engine: Engine) -> None:
        assert "has no table edge_worker" in failed(airflow("import-edge3"))

    def test_edge3_has_no_workers(self, maria: Fleet, edge3: Make) -> None:
        edge3()
        assert "edge3 has no worker" in failed(airflow("import-edge3"))

    def test_the_folder_for_tokens_cannot_be_made(self, maria: Fleet, edge3: Make, tmp_path: Path) -> None:
        edge3(LASER)
        (tmp_path / "file").touch()
        assert "cannot make" in failed(airflow("import-edge3", "--tokens", str(tmp_path / "file" / "tokens")))
        assert "cannot make" in failed(airflow("import-edge3", "--tokens", str(tmp_path / "file")))


def test_airflows_database_is_away(maria: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    away = create_engine("postgresql+psycopg://airflow:secret@127.0.0.1:9/airflow")
    monkeypatch.setattr("airflow.settings.Session", sessionmaker(away))
    line = failed(airflow("import-edge3"))
    assert "Airflow's database cannot be read" in line
    assert "secret" not in line
