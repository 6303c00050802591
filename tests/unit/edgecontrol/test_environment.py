from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from edgecontrol import environment

FIT_FOR_PRODUCTION = {
    "PRODUCTION": "true",
    "DATABASE_URL": "postgresql://edge@db/edge",
    "SECRET_KEY": "k" * 32,
    "ALLOWED_HOSTS": "edge.example.com",
}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., environment.Environment]:
    """Read the settings from an environment with nothing of ours but the given ones."""
    for name in list(os.environ):
        if name.upper().startswith(environment.PREFIX):
            monkeypatch.delenv(name)

    def given(**values: str) -> environment.Environment:
        for name, value in values.items():
            monkeypatch.setenv(f"EDGECONTROL_{name}", value)
        return environment.read()

    return given


@pytest.fixture
def mistakes(given: Callable[..., environment.Environment]) -> Callable[..., list[str]]:
    """The lines of the refusal of this environment."""

    def mistakes(**values: str) -> list[str]:
        with pytest.raises(ImproperlyConfigured) as refused:
            given(**values)
        return str(refused.value).splitlines()

    return mistakes


def test_nothing_needs_to_be_set_to_try_it_out(given: Callable[..., environment.Environment]) -> None:
    read = given()
    assert read.database_url == ""
    assert not read.production
    assert read.outage_patience_seconds == 240


def test_values_come_with_their_types(given: Callable[..., environment.Environment]) -> None:
    read = given(
        THREADS="64",
        ALLOWED_HOSTS="a.example.com, b.example.com,",
        DATA_DIR="/var/lib/edge",
        PRODUCTION="no",
    )
    assert read.threads == 64
    assert read.allowed_hosts == ["a.example.com", "b.example.com"]
    assert read.data_dir == Path("/var/lib/edge")
    assert read.production is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", "many"),
        ("THREADS", "7"),
        ("THREADS", ""),
        ("THREADS", "12.5"),
        ("PRODUCTION", "perhaps"),
        ("CLAIM_WAIT_SECONDS", "56"),
        ("DATABASE_POOL", "1"),
        ("LOG_CHUNK_BYTES", "0"),
        ("OUTAGE_PATIENCE_SECONDS", "0"),
        ("RETENTION_DAYS", "-1"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_variables_name(
    mistakes: Callable[..., list[str]], name: str, value: str
) -> None:
    (line,) = mistakes(**{name: value})
    assert line.startswith(f"EDGECONTROL_{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [("LOG_LEVEL", "LOUD"), ("LISTEN", "8086x"), ("DATABASE_URL", "mysql//nowhere")],
)
def test_a_value_that_nothing_could_start_with_is_refused_by_its_variables_name(
    mistakes: Callable[..., list[str]], name: str, value: str
) -> None:
    (line,) = mistakes(**{name: value})
    assert line.startswith(f"EDGECONTROL_{name}: ")


def test_an_unknown_name_is_refused_with_the_nearest_known_one(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(THREADZ="9")
    assert line == "EDGECONTROL_THREADZ: no such setting; did you mean EDGECONTROL_THREADS?"


def test_a_name_like_no_other_is_refused_without_a_guess(mistakes: Callable[..., list[str]]) -> None:
    assert mistakes(XQZJWV="9") == ["EDGECONTROL_XQZJWV: no such setting"]


def test_what_airflows_command_is_told_in_the_same_shell_is_no_mistake(
    given: Callable[..., environment.Environment],
) -> None:
    assert given(TOKEN_FILE="/home/maria/edgecontrol.token").threads == 512


def test_each_mistake_has_its_own_line(mistakes: Callable[..., list[str]]) -> None:
    lines = mistakes(THREADS="few", PROCESSES="0", SECRET_KAY="x", DATABASE_URL_FILE="/nowhere/url")
    assert sorted(line.partition(":")[0] for line in lines) == [
        "EDGECONTROL_DATABASE_URL_FILE",
        "EDGECONTROL_PROCESSES",
        "EDGECONTROL_SECRET_KAY",
        "EDGECONTROL_THREADS",
    ]


@pytest.mark.parametrize(("name", "field"), [("DATABASE_URL", "database_url"), ("SECRET_KEY", "secret_key")])
def test_a_secret_may_come_from_a_file(
    given: Callable[..., environment.Environment], tmp_path: Path, name: str, field: str
) -> None:
    file = tmp_path / "secret"
    file.write_text("postgresql://from.a.file/edge\n")
    assert getattr(given(**{f"{name}_FILE": str(file)}), field) == "postgresql://from.a.file/edge"


def test_an_unreadable_secret_file_is_refused_by_name_and_path(
    mistakes: Callable[..., list[str]], tmp_path: Path
) -> None:
    (line,) = mistakes(SECRET_KEY_FILE=str(tmp_path / "missing"))
    assert line == f"EDGECONTROL_SECRET_KEY_FILE: cannot read {tmp_path / 'missing'}: No such file or directory"


def test_a_secret_file_that_is_not_text_is_refused_by_name(mistakes: Callable[..., list[str]], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe\x00")
    (line,) = mistakes(SECRET_KEY_FILE=str(file))
    assert line.startswith("EDGECONTROL_SECRET_KEY_FILE: ")


def test_only_secrets_have_a_file_variant(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(THREADS_FILE="/etc/hostname")
    assert line.startswith("EDGECONTROL_THREADS_FILE: no such setting")


def test_settings_that_are_fit_for_production_are_taken(given: Callable[..., environment.Environment]) -> None:
    assert given(**FIT_FOR_PRODUCTION).production


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", ""),
        ("SECRET_KEY", ""),
        ("SECRET_KEY", "k" * 31),
        ("ALLOWED_HOSTS", "*"),
        ("ALLOWED_HOSTS", "edge.example.com,*"),
    ],
)
def test_production_refuses_what_is_only_fit_for_trying_out(
    mistakes: Callable[..., list[str]], name: str, value: str
) -> None:
    (line,) = mistakes(**FIT_FOR_PRODUCTION | {name: value})
    assert line.startswith(f"EDGECONTROL_{name}: production needs ")


def test_production_names_all_that_is_missing_at_once(mistakes: Callable[..., list[str]]) -> None:
    assert len(mistakes(PRODUCTION="1", ALLOWED_HOSTS="*")) == 3


def test_a_worker_cannot_be_given_up_before_it_is_shown_silent(mistakes: Callable[..., list[str]]) -> None:
    (line,) = mistakes(SILENT_AFTER_SECONDS="100", OUTAGE_PATIENCE_SECONDS="60")
    assert "EDGECONTROL_OUTAGE_PATIENCE_SECONDS" in line
