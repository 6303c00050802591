from __future__ import annotations

import os
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from tests.integration.people import OPS
from workers_app import auth
from workers_app.auth import BadToken
from workers_app.models import Worker, WorkerToken

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("create_worker_token", *arguments, stdout=out)
    return out.getvalue()


def token_in(path: Path) -> str:
    return path.read_text().splitlines()[0]


def test_an_unknown_name_becomes_a_worker_whose_token_works(tmp_path: Path) -> None:
    said = run("site-7")
    file = tmp_path / "site-7.token"
    worker = auth.recognise(token_in(file))
    assert (worker.name, worker.allowed_queues, worker.team_name) == ("site-7", None, "")
    assert "site-7.token" in said
    assert token_in(file) not in said


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        run("site-7")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "site-7.token").stat().st_mode) == 0o600


def test_a_known_worker_gets_a_further_token(make_worker: Make, tmp_path: Path) -> None:
    worker = make_worker("known")
    older = auth.issue(worker=worker, by=OPS)
    run("known")
    assert auth.recognise(token_in(tmp_path / "known.token")) == auth.recognise(older) == worker


@pytest.mark.parametrize("limits", [["--queues", "floor"], ["--team", "red"]])
def test_limits_for_a_known_worker_are_refused_rather_than_ignored(
    make_worker: Make, tmp_path: Path, limits: list[str]
) -> None:
    make_worker("site-7")
    with pytest.raises(CommandError, match="for new workers only"):
        run("site-7", *limits)
    assert list(tmp_path.iterdir()) == []
    assert WorkerToken.objects.count() == 0


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    file = tmp_path / "site-7.token"
    file.write_text("precious")
    with pytest.raises(CommandError, match="--force"):
        run("site-7")
    assert file.read_text() == "precious"
    assert not Worker.objects.exists()
    assert not WorkerToken.objects.exists()


def test_force_overwrites_and_closes_the_file_to_others(tmp_path: Path) -> None:
    file = tmp_path / "site-7.token"
    file.write_text("x" * 1000)
    file.chmod(0o644)
    run("site-7", "--force")
    auth.recognise(token_in(file))
    assert "xxx" not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_refused_name_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="printable"):
        run("line\nbreak")
    assert not list(tmp_path.iterdir())


def test_a_refused_name_does_not_destroy_an_older_token(tmp_path: Path) -> None:
    file = tmp_path / "old.token"
    file.write_text("precious")
    with pytest.raises(CommandError):
        run("line\nbreak", "--file", str(file), "--force")
    assert file.exists()
    assert file.read_text() == "precious"


def test_a_database_that_is_away_leaves_no_file(tmp_path: Path) -> None:
    def away(*_: Any) -> None:
        raise OperationalError("away")

    with pytest.raises((CommandError, OperationalError)), connection.execute_wrapper(away):
        run("site-7")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_does_not_exist_is_refused_before_a_token_is_made(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="No such file"):
        run("site-7", "--file", str(tmp_path / "nowhere" / "token"))
    assert not WorkerToken.objects.exists()


def test_a_name_with_a_slash_stays_in_this_folder(tmp_path: Path) -> None:
    run("../hall b/7")
    (file,) = tmp_path.iterdir()
    assert auth.recognise(token_in(file)).name == "../hall b/7"


def test_queues_and_team_are_what_the_new_worker_is_allowed() -> None:
    run("site-7", "--queues", " a, b ,", "--team", "red")
    worker = Worker.objects.get()
    assert (worker.allowed_queues, worker.team_name) == (["a", "b"], "red")


def test_an_empty_list_of_queues_allows_none() -> None:
    run("site-7", "--queues", "")
    assert Worker.objects.get().allowed_queues == []


def test_days_end_the_token(tmp_path: Path) -> None:
    run("site-7", "--days", "3")
    token = WorkerToken.objects.get()
    assert 2.9 < (token.expires_at - token.created_at).total_seconds() / 86400 < 3.1


@pytest.mark.parametrize("days", ["0", "-1"])
def test_days_that_are_no_time_never_make_a_token_without_an_end(tmp_path: Path, days: str) -> None:
    try:
        run("site-7", "--days", days)
    except CommandError:
        return
    with pytest.raises(BadToken):
        auth.recognise(token_in(tmp_path / "site-7.token"))
