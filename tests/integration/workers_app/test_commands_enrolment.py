"""`create_enrolment_token` and `revoke_enrolment_token`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.integration.commandline import Ran, manage
from tests.integration.people import OPS
from workers_app import credentials, enrolment
from workers_app.enrolment import BadEnrolmentToken
from workers_app.management.endings import Code
from workers_app.models import Change, EnrolmentToken, Worker

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    monkeypatch.chdir(tmp_path)


def enrol(text: str) -> Worker:
    minted = credentials.mint(credentials.WORKER)
    return enrolment.enrol(token=text.strip(), key=minted.key, digest=minted.digest.hex())


def minutes_left() -> float:
    token = EnrolmentToken.objects.get()
    assert token.expires_at is not None
    return (token.expires_at - token.created_at) / timedelta(minutes=1)


class TestCreate:
    def test_the_token_stands_alone_on_stdout_and_makes_the_machine_a_worker_host(self) -> None:
        ran = manage("create_enrolment_token", "press-7")
        assert ran.code == Code.DONE
        assert ran.out.count("\n") == 1
        worker = enrol(ran.out)
        assert (worker.name, worker.allowed_queues, worker.team_name) == ("press-7", None, "")

    def test_what_to_do_is_said_on_stderr_without_the_token(self) -> None:
        ran = manage("create_enrolment_token", "press-7")
        assert "python -m agent enrol --url" in ran.err
        assert "python -m agent run" in ran.err
        assert EnrolmentToken.objects.get().key in ran.err
        assert ran.out.strip().split("_")[2] not in ran.err

    def test_the_address_for_machines_is_filled_in_where_it_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = settings.EDGECONTROL.model_copy(update={"public_url": "https://edge.example.com"})
        monkeypatch.setattr(settings, "EDGECONTROL", known)
        assert "--url https://edge.example.com\n" in manage("create_enrolment_token", "press-7").err

    def test_what_the_machine_may_do_is_limited(self) -> None:
        ran = manage("create_enrolment_token", "press-7", "--queues", " a, b ,", "--team", "red")
        worker = enrol(ran.out)
        assert (worker.allowed_queues, worker.team_name) == (["a", "b"], "red")

    def test_an_empty_list_of_queues_is_none_and_not_all(self) -> None:
        assert enrol(manage("create_enrolment_token", "press-7", "--queues", "").out).allowed_queues == []

    def test_it_is_good_for_a_quarter_of_an_hour_or_as_long_as_is_said(self) -> None:
        manage("create_enrolment_token", "press-7")
        assert round(minutes_left()) == 15
        EnrolmentToken.objects.all().delete()
        manage("create_enrolment_token", "press-7", "--minutes", "60")
        assert round(minutes_left()) == 60

    @pytest.mark.parametrize("minutes", ["0", "-1", "x", "10081", "٣", "1.5"])
    def test_other_times_are_wrong_usage(self, minutes: str) -> None:
        assert manage("create_enrolment_token", "press-7", f"--minutes={minutes}").code == Code.WRONG_USAGE
        assert not EnrolmentToken.objects.exists()

    def test_an_existing_name_is_refused_unless_the_machine_was_set_up_anew(self, make_worker: Make) -> None:
        make_worker("press-7", allowed_queues=["floor"], team_name="red")
        ran = manage("create_enrolment_token", "press-7")
        assert (ran.code, ran.out, ran.err.count("\n")) == (Code.REFUSED, "", 1)
        assert "exists already" in ran.err
        worker = enrol(manage("create_enrolment_token", "press-7", "--replace").out)
        assert (Worker.objects.count(), worker.allowed_queues, worker.team_name) == (1, ["floor"], "red")

    @pytest.mark.parametrize("limits", [["--queues", "a"], ["--queues", ""], ["--team", "red"]])
    def test_limits_for_a_machine_that_keeps_its_own_are_refused(self, make_worker: Make, limits: list[str]) -> None:
        make_worker("press-7")
        ran = manage("create_enrolment_token", "press-7", "--replace", *limits)
        assert (ran.code, ran.err.count("\n")) == (Code.REFUSED, 1)
        assert "keeps its queues and its team" in ran.err
        assert not EnrolmentToken.objects.exists()

    @pytest.mark.parametrize("name", ["line\nbreak", "", " x", "x" * 254, "\udcff"])
    def test_a_name_that_cannot_be_is_refused(self, name: str) -> None:
        ran = manage("create_enrolment_token", name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (Code.REFUSED, "", 1)

    def test_who_made_it_is_recorded_without_the_token(self) -> None:
        text = manage("create_enrolment_token", "press-7").out.strip()
        change = Change.objects.get()
        assert (change.action, change.subject, change.actor_kind) == ("create_enrolment_token", "press-7", "command")
        assert text.split("_")[2] not in f"{change.before} {change.after} {change.comment}"


class TestFile:
    def test_the_token_is_in_a_file_that_only_its_owner_can_read_and_nowhere_else(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            ran = manage("create_enrolment_token", "press-7", "--file", "press-7.enrol")
        finally:
            os.umask(before)
        file = tmp_path / "press-7.enrol"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().strip() not in ran.out + ran.err
        assert "--enrolment-token-file press-7.enrol" in ran.err
        assert enrol(file.read_text()).name == "press-7"

    def test_an_existing_file_is_kept_without_force(self, tmp_path: Path) -> None:
        file = tmp_path / "t"
        file.write_text("precious")
        ran = manage("create_enrolment_token", "press-7", "--file", "t")
        assert ran.code == Code.REFUSED
        assert "--force" in ran.err
        assert file.read_text() == "precious"
        assert not EnrolmentToken.objects.exists()
        assert manage("create_enrolment_token", "press-7", "--file", "t", "--force").code == Code.DONE
        assert enrol(file.read_text())

    @pytest.mark.parametrize("file", ["nowhere/t", "x" * 300, "."])
    def test_a_place_that_cannot_be_written_is_refused_and_no_token_is_made(self, file: str, tmp_path: Path) -> None:
        ran = manage("create_enrolment_token", "press-7", "--file", file, "--force")
        assert (ran.code, ran.err.count("\n")) == (Code.REFUSED, 1)
        assert not EnrolmentToken.objects.exists()
        assert list(tmp_path.iterdir()) == []


class TestRevoke:
    @pytest.fixture
    def tokens(self) -> dict[str, EnrolmentToken]:
        """One that was used, and three that can be."""
        made = {name: enrolment.create(name=name, by=OPS) for name in ("used", "press-1", "press-2", "lab")}
        enrol(made["used"][1])
        return {name: token for name, (token, _) in made.items()}

    def revoked(self) -> set[str]:
        return set(EnrolmentToken.objects.exclude(revoked_at=None).values_list("name", flat=True))

    def test_keys_are_taken_as_they_are_and_a_used_one_is_skipped(self, tokens: dict[str, EnrolmentToken]) -> None:
        ran = manage("revoke_enrolment_token", tokens["lab"].key, tokens["used"].key)
        assert (ran.code, self.revoked()) == (Code.SKIPPED, {"lab"})
        assert "it was used already" in ran.err

    @pytest.mark.parametrize(
        ("choice", "meant"),
        [(["--machine", "lab"], {"lab"}), (["--all"], {"press-1", "press-2", "lab"})],
    )
    def test_otherwise_only_those_that_can_be_used_are_meant(
        self, tokens: dict[str, EnrolmentToken], choice: list[str], meant: set[str]
    ) -> None:
        assert manage("revoke_enrolment_token", *choice, "--yes").code == Code.DONE
        assert self.revoked() == meant

    @pytest.mark.parametrize(
        "choice", [["--machine", "used"], ["--machine", "nobody"], ["000000000000"]], ids=lambda choice: choice[-1]
    )
    def test_what_fits_none_is_refused(self, tokens: dict[str, EnrolmentToken], choice: list[str]) -> None:
        ran = manage("revoke_enrolment_token", *choice, "--yes")
        assert (ran.code, ran.err.count("\n"), self.revoked()) == (Code.REFUSED, 1, set())

    def test_a_revoked_token_enrols_nobody(self) -> None:
        made: Ran = manage("create_enrolment_token", "press-7")
        manage("revoke_enrolment_token", "--machine", "press-7")
        with pytest.raises(BadEnrolmentToken):
            enrol(made.out)
