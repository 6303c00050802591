"""EdgeControl's logs and those in a cloud, side by side: each task's lines once, and neither's failure in the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from airflow_bridge import cloud_logs
from airflow_bridge.database import StoreAway
from airflow_bridge.task_logs import EdgeControlLogs
from tests.integration.airflow_bridge import rows
from tests.integration.airflow_bridge.log_files import PATH, TI, TRIGGER_PATH, write
from tests.integration.airflow_bridge.rows import Database

NOWHERE = "postgresql://127.0.0.1:1/none"


class Older:
    """A RemoteLogIO of the older form, which does to files what the amazon provider's does."""

    processors = ("each line",)

    def __init__(self, folder: Path) -> None:
        self.base_log_folder = folder
        self.kept: dict[str, str] = {}
        self.delete = False
        self.trouble: Exception | None = None

    def read(self, relative_path: str, ti: Any) -> tuple[list[str], list[str] | None]:
        if self.trouble:
            raise self.trouble
        found = {f"cloud:{path}": text for path, text in sorted(self.kept.items()) if path.startswith(relative_path)}
        return list(found), list(found.values()) or None

    def upload(self, path: Any, ti: Any = None) -> None:
        if self.trouble:
            raise self.trouble
        file = self.base_log_folder / path
        self.kept[str(path)] = self.kept.get(str(path), "") + file.read_text()
        if self.delete:
            file.unlink()
        else:
            file.write_text("")


class Newer(Older):
    """The same with `stream`; it breaks after that many lines."""

    breaks_after: int | None = None

    def stream(self, relative_path: str, ti: Any) -> tuple[list[str], list[Iterator[str]]]:
        sources, texts = super().read(relative_path, ti)

        def lines(text: str) -> Iterator[str]:
            for number, line in enumerate(text.splitlines()):
                if number == self.breaks_after:
                    raise ConnectionError("reset by\npeer")
                yield line

        return sources, [lines(text) for text in texts or []]


@pytest.fixture
def make_logs(
    postgres_url: str, database: Database, log_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., EdgeControlLogs]]:
    made: list[EdgeControlLogs] = []

    def make(cloud: Any, *, url: str = postgres_url) -> EdgeControlLogs:
        monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", url)
        made.append(EdgeControlLogs(cloud=cloud))
        return made[-1]

    yield make
    for logs in made:
        logs._store.close()


@pytest.fixture(params=[Older, Newer])
def cloud(request: pytest.FixtureRequest, log_folder: Path) -> Older:
    made: Older = request.param(log_folder)
    return made


def lines(logs: EdgeControlLogs, path: str = PATH) -> list[str]:
    return [line for stream in logs.stream(path, TI)[1] for line in stream]


def event(line: str) -> str:
    return str(json.loads(line)["event"])


# Reading


def test_what_another_executor_ran_is_read_from_the_cloud(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older
) -> None:
    cloud.kept = {"other/attempt=1.log": "one\ntwo\n", "other/attempt=1.log.trigger.3.log": "three\nfour"}
    logs = make_logs(cloud)
    assert lines(logs, "other/attempt=1.log") == ["one", "two", "three", "four"]
    assert logs.stream("other/attempt=1.log", TI)[0] == [f"cloud:{path}" for path in cloud.kept]
    assert logs.read("other/attempt=1.log", TI)[1]
    assert make_logs(cloud).stream("nobody/attempt=1.log", TI) == ([], [])


def test_lines_that_both_have_are_shown_once(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older, database: Database, job: UUID
) -> None:
    cloud.kept = {PATH: "hello\n"}
    rows.add_log(database, job, b"hello\nand what came after the upload\n")
    logs = make_logs(cloud)
    assert lines(logs) == ["hello", "and what came after the upload"]
    rows.end(database, job, state="success")
    assert lines(logs) == ["hello", "and what came after the upload"]
    assert not [source for source in logs.stream(PATH, TI)[0] if source.startswith("cloud:")]


def test_while_a_job_waits_or_runs_the_cloud_is_not_asked(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older, job: UUID
) -> None:
    cloud.trouble = ConnectionError("no route")
    sources, streams = make_logs(cloud).stream(PATH, TI)
    assert [list(stream) for stream in streams] == [[]]
    assert not [source for source in sources if "no route" in source]


def test_a_purged_job_and_one_that_ended_without_a_line_are_read_from_the_cloud(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older, database: Database, job: UUID
) -> None:
    cloud.kept = {PATH: "hello\n"}
    logs = make_logs(cloud)
    rows.end(database, job, state="success")
    database.execute("UPDATE edgecontrol.job SET log_final_size = 6, log_trouble = 'answers 403'")
    sources, _ = logs.stream(PATH, TI)
    assert lines(logs) == ["hello"]
    assert "answers 403" in sources[0]
    assert sources[1] == f"cloud:{PATH}"
    database.execute("DELETE FROM edgecontrol.job")
    assert lines(logs) == ["hello"]
    assert logs.stream(PATH, TI)[0] == [f"cloud:{PATH}"]


def test_an_error_of_the_cloud_is_a_line_and_hides_nothing_of_edgecontrol(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older, database: Database, job: UUID
) -> None:
    cloud.trouble = ConnectionError("no route\nto host")
    logs = make_logs(cloud)
    said = "The log in Airflow's remote log storage cannot be read now: ConnectionError no route to host"
    assert [event(line) for line in lines(logs, "other/attempt=1.log")] == [said]
    assert logs.stream("other/attempt=1.log", TI)[0] == [said]
    rows.add_log(database, job, b"hello\n")
    rows.end(database, job, state="success")
    assert lines(logs) == ["hello"]


def test_a_cloud_that_breaks_in_the_middle_ends_its_log_with_a_line(
    make_logs: Callable[..., EdgeControlLogs], log_folder: Path
) -> None:
    cloud = Newer(log_folder)
    cloud.kept, cloud.breaks_after = {PATH: "one\ntwo\n"}, 1
    first, last = lines(make_logs(cloud))
    assert first == "one"
    assert event(last).endswith("cannot be read now: ConnectionError reset by peer")


def test_edgecontrols_database_that_is_away_hides_nothing_of_the_cloud(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older
) -> None:
    cloud.kept = {"other/attempt=1.log": "one\n"}
    logs = make_logs(cloud, url=NOWHERE)
    assert lines(logs, "other/attempt=1.log") == ["one"]
    assert logs.stream("other/attempt=1.log", TI)[0][1].startswith("EdgeControl's log cannot be read now: ")
    cloud.trouble = ConnectionError("no route")
    (both,) = lines(logs, "other/attempt=1.log")
    assert "EdgeControl's log cannot be read now" in event(both)
    assert "no route" in event(both)


@pytest.mark.parametrize("with_cloud", [True, False])
def test_trouble_hides_no_file_that_airflow_has_on_this_machine(
    make_logs: Callable[..., EdgeControlLogs], log_folder: Path, cloud: Older, with_cloud: bool
) -> None:
    # Of a finished task Airflow shows its own file only when there is no stream.
    write(log_folder, "other/attempt=1.log", b"a task of the LocalExecutor\n")
    cloud.trouble = ConnectionError("no route")
    sources, streams = make_logs(cloud if with_cloud else None, url=NOWHERE).stream("other/attempt=1.log", TI)
    assert streams == []
    assert len(sources) == 1


# Writing


def test_the_log_of_another_executors_task_is_uploaded_and_its_errors_are_told(
    make_logs: Callable[..., EdgeControlLogs], log_folder: Path, cloud: Older
) -> None:
    logs = make_logs(cloud)
    write(log_folder, PATH, b"hello\n")
    logs.upload(PATH, TI)
    assert cloud.kept == {PATH: "hello\n"}
    cloud.trouble = ConnectionError("no route")
    with pytest.raises(ConnectionError):
        logs.upload(PATH, TI)


@pytest.mark.parametrize("delete", [True, False])
def test_the_triggerers_part_goes_to_both(
    make_logs: Callable[..., EdgeControlLogs],
    database: Database,
    job: UUID,
    log_folder: Path,
    cloud: Older,
    delete: bool,
) -> None:
    cloud.delete = delete
    file = write(log_folder, TRIGGER_PATH, b"trigger fired\n")
    logs = make_logs(cloud)
    logs.upload(TRIGGER_PATH, TI)
    assert cloud.kept == {TRIGGER_PATH: "trigger fired\n"}
    assert lines(logs) == ["trigger fired"]
    assert not file.exists()


@pytest.mark.parametrize("delete", [True, False])
def test_the_triggerers_part_is_kept_for_edgecontrol_when_the_cloud_had_it_first(
    make_logs: Callable[..., EdgeControlLogs],
    database: Database,
    job: UUID,
    log_folder: Path,
    cloud: Older,
    monkeypatch: pytest.MonkeyPatch,
    delete: bool,
) -> None:
    cloud.delete = delete
    logs = make_logs(cloud)

    def away(**_: Any) -> bool:
        raise StoreAway("gone")

    with monkeypatch.context() as patch:
        patch.setattr(logs._store, "add_log", away)
        for event in ("first", "second"):  # the same file, written anew
            write(log_folder, TRIGGER_PATH, f"{event}\n".encode())
            logs.upload(TRIGGER_PATH, TI)
    write(log_folder, f"{PATH}.trigger.8.log", b"third\n")
    logs.upload(f"{PATH}.trigger.8.log", TI)
    assert lines(logs) == ["first", "second", "third"]
    assert not [file for file in log_folder.rglob("*") if file.is_file() and file.read_text()]


def test_a_cloud_that_is_away_keeps_nothing_from_edgecontrol(
    make_logs: Callable[..., EdgeControlLogs], database: Database, job: UUID, log_folder: Path, cloud: Older
) -> None:
    write(log_folder, TRIGGER_PATH, b"trigger fired\n")
    cloud.trouble = ConnectionError("no route")
    logs = make_logs(cloud)
    with pytest.raises(ConnectionError):
        logs.upload(TRIGGER_PATH, TI)
    assert lines(logs) == ["trigger fired"]


# How Airflow finds it


def test_the_clouds_part_in_writing_stays_and_cannot_stop_a_task(
    make_logs: Callable[..., EdgeControlLogs], cloud: Older
) -> None:
    assert make_logs(cloud).processors == ("each line",)

    class Broken:
        @property
        def processors(self) -> tuple[Any, ...]:
            raise ConnectionError("no route")

    assert make_logs(Broken()).processors == ()


def test_the_provider_makes_its_storage_where_it_can(log_folder: Path) -> None:
    # Airflow 3.3 asks the provider first: it knows settings that Airflow's own module does not.
    class FromConfig(Older):
        @classmethod
        def from_config(cls) -> FromConfig:
            return cls(log_folder / "from_config")

    class Unable(Older):
        @classmethod
        def from_config(cls) -> Unable:
            raise ValueError("a setting is wrong")

    def found(io: Any) -> Any:
        return cloud_logs.configured(SimpleNamespace(REMOTE_TASK_LOG=io))  # type: ignore[arg-type]

    plain, unable = Older(log_folder), Unable(log_folder)
    assert found(FromConfig(log_folder)).base_log_folder == log_folder / "from_config"
    assert found(unable) is unable
    assert found(plain) is plain
    assert found(None) is None
