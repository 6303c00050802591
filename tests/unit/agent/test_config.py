from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, load
from agent.errors import AgentError, BadConfig, BadToken, WrongUrl

TOKEN = "ec_key_secret-part"
MINIMAL = {"EDGE_AGENT_URL": "https://edge.example.com", "EDGE_AGENT_TOKEN": TOKEN}


def read(environ: dict[str, str] | None = None, **flags: Any) -> Config:
    return load(flags=flags, environ=MINIMAL if environ is None else environ, home=Path("/home/somebody"))


def test_a_url_and_a_token_are_enough() -> None:
    config = read()
    assert (config.url, config.token, config.name, config.queues) == ("https://edge.example.com", TOKEN, None, None)
    assert (config.concurrency, config.on_term, config.task_start) == (8, "drain", "fork")
    assert config.state_dir == Path("/home/somebody/.local/state/edgecontrol-agent")


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('concurrency = 1\nname = "from-file"\nqueues = ["a", "b"]\nkill_grace_seconds = 3\n')
    environ = {**MINIMAL, "EDGE_AGENT_CONFIG": str(file), "EDGE_AGENT_CONCURRENCY": "2", "EDGE_AGENT_NAME": "from-env"}
    config = read(environ, name="from-flag")
    assert (config.name, config.concurrency, config.queues) == ("from-flag", 2, ("a", "b"))
    assert config.kill_grace_seconds == 3.0


def test_the_token_file_is_what_create_worker_token_writes(tmp_path: Path) -> None:
    file = tmp_path / "worker.token"
    file.write_text(f"{TOKEN}\n# worker edge-1, made by admin\n")
    assert read({"EDGE_AGENT_URL": "https://e"}, token_file=str(file)).token == TOKEN


def test_a_token_file_on_the_command_line_wins_over_a_token_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "worker.token"
    file.write_text("ec_other_token\n")
    assert read(token_file=str(file)).token == "ec_other_token"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("https://edge.example.com/", "https://edge.example.com"),
        ("http://127.0.0.1:8000/api/v1/edge/", "http://127.0.0.1:8000"),
        ("https://example.com/edge/control/", "https://example.com/edge/control"),
    ],
)
def test_the_url_may_be_given_in_several_ways(given: str, url: str) -> None:
    assert read(url=given).url == url


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        ({"url": "edge.example.com"}, WrongUrl, "https://"),
        ({"url": "ftp://edge"}, WrongUrl, "https://"),
        ({"url": "https://user:pw@edge"}, WrongUrl, "user"),
        ({"url": "https://edge/?a=b"}, WrongUrl, "'?'"),
        ({"concurrency": "0"}, BadConfig, "--concurrency must be a whole number from 1, not '0'"),
        ({"concurrency": "many"}, BadConfig, "not 'many'"),
        ({"on_term": "die"}, BadConfig, "drain or leave"),
        ({"kill_grace_seconds": "-1"}, BadConfig, "seconds"),
        ({"name": " "}, BadConfig, "--name"),
        ({"config": "/no/such/file"}, BadConfig, "/no/such/file"),
        ({"token_file": "/no/such/file"}, BadConfig, "/no/such/file"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_may_be(
    flags: dict[str, str], error: type[AgentError], says: str
) -> None:
    with pytest.raises(error) as caught:
        read(**flags)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_url_or_token_says_how_to_give_one() -> None:
    with pytest.raises(BadConfig, match="--url"):
        read({"EDGE_AGENT_TOKEN": TOKEN})
    with pytest.raises(BadConfig, match="create_worker_token"):
        read({"EDGE_AGENT_URL": "https://e"})


def test_what_is_no_token_is_not_shown() -> None:
    with pytest.raises(BadToken) as caught:
        read({**MINIMAL, "EDGE_AGENT_TOKEN": "pass word"})
    assert "pass word" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"EDGE_AGENT_CONCURENCY": "1"}, "did you mean EDGE_AGENT_CONCURRENCY?"),
        ({"EDGE_AGENT_XYZZY": "1"}, "known are"),
    ],
)
def test_unknown_variables_are_refused(environ: dict[str, str], says: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read({**MINIMAL, **environ})
    assert says in str(caught.value)


def test_unknown_keys_in_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('stat_dir = "/x"\n')
    with pytest.raises(BadConfig, match="did you mean state_dir"):
        read(config=str(file))


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("concurrency = \n")
    with pytest.raises(BadConfig, match=r"agent\.toml is not TOML"):
        read(config=str(file))
