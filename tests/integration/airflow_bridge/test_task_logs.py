from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from airflow_bridge.database import StoreAway
from airflow_bridge.store import Store
from airflow_bridge.task_logs import PAGE_BYTES, EdgeControlLogs
from tests.integration.airflow_bridge import rows
from tests.integration.airflow_bridge.log_files import PATH, TI, TRIGGER_PATH, write
from tests.integration.airflow_bridge.rows import Database
from tests.unit.airflow_bridge.builders import new_job


@pytest.fixture
def logs(postgres_url: str, database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[EdgeControlLogs]:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", postgres_url)
    logs = EdgeControlLogs()
    yield logs
    logs._store.close()


def read(logs: EdgeControlLogs, path: str = PATH) -> list[list[str]]:
    return [list(stream) for stream in logs.stream(path, TI)[1]]


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_lines_come_back_as_the_task_wrote_them(
    logs: EdgeControlLogs, database: Database, job: UUID, chunk_size: int
) -> None:
    lines = [json.dumps({"event": f"Zeile {n} hällo 😀", "level": "info"}, ensure_ascii=False) for n in range(5)]
    rows.add_log(database, job, "\n".join(lines).encode() + b"\n\xff\0raw\n", chunk_size=chunk_size)
    assert read(logs) == [[*lines, "�\0raw"]]


def test_each_attempt_of_each_job_is_a_stream_of_its_own(
    logs: EdgeControlLogs, store: Store, database: Database, job: UUID, worker: int
) -> None:
    rows.add_log(database, job, b"first\n", attempt=1)
    database.execute("UPDATE edgecontrol.job SET state = 'queued', worker_id = NULL")
    rows.hold(database, job, worker=worker)
    rows.add_log(database, job, b"second\n", attempt=2)
    resumed = new_job(log_path=PATH)
    store.enqueue([resumed])
    rows.hold(database, resumed.id, worker=worker)
    rows.add_log(database, resumed.id, b"resumed\n", attempt=1)
    sources, _ = logs.stream(PATH, TI)
    assert read(logs) == [["first"], ["second"], ["resumed"]]
    assert sources == [
        f"EdgeControl job {job}, attempt 1 on berlin-3: running",
        f"EdgeControl job {job}, attempt 2 on berlin-3: running",
        f"EdgeControl job {resumed.id}, attempt 1 on berlin-3: running",
    ]


def test_a_job_without_a_line_has_an_empty_stream_and_a_reason(
    logs: EdgeControlLogs, store: Store, database: Database
) -> None:
    # Without a stream Airflow would ask port 8793 of the edge machine, for up to five seconds.
    given = new_job(log_path=PATH, queue="site-b")
    store.enqueue([given])
    sources, streams = logs.stream(PATH, TI)
    assert sources == [f"EdgeControl job {given.id}, attempt 0 in queue site-b: queued"]
    assert [list(stream) for stream in streams] == [[]]
    rows.end(database, given.id, state="lost", reason="berlin-3 rebooted")
    assert logs.stream(PATH, TI)[0] == [
        f"EdgeControl job {given.id}, attempt 0 in queue site-b: lost (berlin-3 rebooted)"
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("log_size = 10, log_final_size = 10, log_full = true, log_trouble = 'answers 503'", ""),
        ("log_size = 0, log_final_size = NULL", ""),
        (
            "log_size = 1000, log_full = true",
            "The log has reached the size that EdgeControl keeps, 1,000 bytes; the rest is not kept.",
        ),
        (
            "log_size = 5, log_final_size = 10, log_trouble = 'answers 503'",
            "The log is not all here (5 of 10 bytes are here); berlin-3 says: answers 503",
        ),
        ("log_trouble = 'answers 503'", "The log is not all here; berlin-3 says: answers 503"),
        ("log_final_size = 10", "The rest of the log has not come from berlin-3 yet (0 of 10 bytes are here)."),
    ],
    ids=["all here", "runs well", "full", "does not get through", "nothing got through", "late"],
)
def test_a_log_that_is_not_all_here_says_why(
    logs: EdgeControlLogs, database: Database, job: UUID, columns: str, said: str
) -> None:
    rows.add_log(database, job, b"hello\n")
    database.execute(f"UPDATE edgecontrol.job SET {columns}")  # type: ignore[arg-type]  # noqa: S608
    in_the_source = [source.partition("running")[2] for source in logs.stream(PATH, TI)[0]]
    assert in_the_source == [f". {said}" if said else ""]
    # Airflow goes on after the lines that it has had of a running task.
    assert read(logs) == [["hello"]]
    rows.end(database, job, state="success")
    assert [json.loads(line)["event"] for line in read(logs)[0][1:]] == ([said] if said else [])


def test_of_an_attempt_before_the_newest_nothing_is_missing(
    logs: EdgeControlLogs, database: Database, job: UUID, worker: int
) -> None:
    rows.add_log(database, job, b"first\n")
    rows.hold(database, job, worker=worker)
    database.execute("UPDATE edgecontrol.job SET log_trouble = 'answers 503'")
    sources, _ = logs.stream(PATH, TI)
    assert ["503" in source for source in sources] == [False, True]


def test_a_task_of_another_executor_is_left_to_airflow(logs: EdgeControlLogs) -> None:
    assert logs.stream("dag_id=other/attempt=1.log", TI) == ([], [])


def test_the_older_form_reads_the_same(logs: EdgeControlLogs, database: Database, job: UUID) -> None:
    rows.add_log(database, job, b"one\ntwo\n")
    assert logs.read(PATH, TI)[1] == ["one\ntwo"]


def test_of_a_large_log_no_page_is_read_before_the_lines_of_the_one_before_were_taken(
    logs: EdgeControlLogs, database: Database, job: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b"x" * 99 + b"\n"
    rows.add_log(database, job, line * 80_000, chunk_size=256 * 1024)  # 8 MB
    log_page, sizes = logs._store.log_page, []

    def page(**values: Any) -> list[tuple[int, bytes]]:
        chunks = log_page(**values)
        sizes.append(sum(len(data) for _, data in chunks))
        return chunks

    monkeypatch.setattr(logs._store, "log_page", page)
    _, (stream,) = logs.stream(PATH, TI)
    assert not sizes
    for taken, got in enumerate(stream):
        assert got == "x" * 99
        assert sum(sizes[:-1]) <= (taken + 1) * len(line)
    assert taken == 79_999
    assert max(sizes) <= PAGE_BYTES + 256 * 1024
    assert len(sizes) >= 8


def test_many_readers_at_once_all_get_their_log(logs: EdgeControlLogs, database: Database, job: UUID) -> None:
    rows.add_log(database, job, b"line\n" * 1000)
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(read(logs))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[["line"] * 1000]] * 20


def test_a_database_that_is_away_is_one_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__EDGECONTROL__DATABASE_URL", "postgresql://127.0.0.1:1/none")
    sources, streams = EdgeControlLogs().stream(PATH, TI)
    (line,) = (json.loads(line) for stream in streams for line in stream)
    assert line["level"] == "error"
    assert line["event"].startswith("EdgeControl's log cannot be read now: ")
    assert sources == [line["event"]]


def test_a_database_that_goes_away_in_the_middle_ends_the_log_with_a_line(
    logs: EdgeControlLogs, database: Database, job: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.add_log(database, job, b"one\ntwo\n")
    _, (stream,) = logs.stream(PATH, TI)
    pages = iter([[(0, b"one\nhal")]])

    def page(**_: Any) -> Any:
        try:
            return next(pages)
        except StopIteration:
            raise StoreAway("gone") from None

    monkeypatch.setattr(logs._store, "log_page", page)
    first, last = list(stream)
    assert first == "one"
    assert json.loads(last)["event"] == "EdgeControl's log cannot be read now: gone"


# The triggerer's part


def test_the_triggerers_part_is_stored_and_its_file_removed(
    logs: EdgeControlLogs, database: Database, job: UUID, log_folder: Path
) -> None:
    rows.add_log(database, job, b"deferring\n")
    file = write(log_folder, TRIGGER_PATH, b"trigger fired\n" * 40_000)  # more than one chunk
    logs.upload(TRIGGER_PATH, TI)
    assert not file.exists()
    assert read(logs) == [["trigger fired"] * 40_000, ["deferring"]]
    assert "at Airflow's triggerer" in logs.stream(PATH, TI)[0][0]


def test_the_end_of_a_task_stores_nothing(logs: EdgeControlLogs, job: UUID, log_folder: Path) -> None:
    # The task's supervisor calls this on the edge machine; the agent ships that log.
    file = write(log_folder, PATH, b"the task's own log\n")
    logs.upload(PATH, TI)
    assert file.exists()
    assert read(logs) == [[]]


def test_a_trigger_of_another_executors_task_keeps_its_file(logs: EdgeControlLogs, log_folder: Path) -> None:
    path = "dag_id=other/attempt=1.log.trigger.7.log"
    file = write(log_folder, path, b"trigger fired\n")
    logs.upload(path, TI)
    assert file.exists()
    assert not logs._left_behind


def test_without_a_database_url_nothing_happens(log_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__EDGECONTROL__DATABASE_URL", raising=False)
    file = write(log_folder, TRIGGER_PATH, b"trigger fired\n")
    EdgeControlLogs().upload(TRIGGER_PATH, TI)
    assert file.exists()


def test_a_part_that_could_not_be_stored_goes_with_the_next_one(
    logs: EdgeControlLogs, database: Database, job: UUID, log_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(log_folder, TRIGGER_PATH, b"a" * 300_000 + b"\n")
    add_log, calls = logs._store.add_log, []

    def fails_after_one_chunk(**values: Any) -> bool:
        calls.append(values)
        if len(calls) > 1:
            raise StoreAway("gone")
        return add_log(**values)

    with monkeypatch.context() as patch:
        patch.setattr(logs._store, "add_log", fails_after_one_chunk)
        logs.upload(TRIGGER_PATH, TI)
    assert first.exists()
    second = write(log_folder, f"{PATH}.trigger.8.log", b"b\n")
    logs.upload(f"{PATH}.trigger.8.log", TI)
    assert not first.exists()
    assert not second.exists()
    assert read(logs)[0] == ["a" * 300_000, "b"]


def test_airflow_finds_the_logs_beside_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow._shared.logging.remote import discover_remote_log_handler
    from airflow._shared.module_loading import import_string

    found, _ = discover_remote_log_handler("airflow_bridge.logging_config.LOGGING_CONFIG", "", import_string)
    assert isinstance(found, EdgeControlLogs)
    assert found.processors == ()
