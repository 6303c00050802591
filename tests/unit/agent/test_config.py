from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, Enrolment, load, load_enrolment
from agent.errors import AgentError, BadConfig, BadToken, WrongUrl

TOKEN = "ec_key_secret-part"
ENROLMENT_TOKEN = f"ece_{'0a' * 6}_{'1b' * 32}"
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


def test_what_enrolling_left_fills_in_what_nothing_else_names(tmp_path: Path) -> None:
    (tmp_path / "worker.token").write_text(f"{TOKEN}\n")
    (tmp_path / "enrolled.toml").write_text(
        f'# worker press-7\nurl = "https://enrolled.example.com"\ntoken_file = "{tmp_path}/worker.token"\n'
    )
    state_dir = {"EDGE_AGENT_STATE_DIR": str(tmp_path)}
    config = read(state_dir)
    assert (config.url, config.token, config.state_dir) == ("https://enrolled.example.com", TOKEN, tmp_path)
    assert read(state_dir, url="https://flag").url == "https://flag"
    assert read({**state_dir, "EDGE_AGENT_URL": "https://env"}).url == "https://env"
    assert read({**state_dir, "EDGE_AGENT_TOKEN": "ec_other_token"}).token == "ec_other_token"
    toml = tmp_path / "agent.toml"
    toml.write_text(f'url = "https://toml"\nstate_dir = "{tmp_path}"\n')
    assert read({}, config=str(toml)).url == "https://toml"
    assert read({}, config=str(toml)).token == TOKEN


def test_what_enrolling_left_is_not_looked_at_when_nothing_is_missing(tmp_path: Path) -> None:
    (tmp_path / "enrolled.toml").write_text("broken")
    assert read(state_dir=str(tmp_path)).url == "https://edge.example.com"
    with pytest.raises(BadConfig, match=r"enrolled\.toml is not TOML"):
        read({}, state_dir=str(tmp_path))


def test_an_enrolment_names_only_the_address_and_the_token_file(tmp_path: Path) -> None:
    (tmp_path / "enrolled.toml").write_text("concurrency = 3\n")
    with pytest.raises(BadConfig, match="concurrency is not known"):
        read({}, state_dir=str(tmp_path))


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
        ({"retry_seconds": "soon"}, BadConfig, "--retry-seconds must be a number of seconds"),
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
    for environ in ({"EDGE_AGENT_URL": "https://e"}, {}):
        with pytest.raises(BadConfig, match=r"python -m agent enrol --url .*create_worker_token"):
            read(environ)


def test_what_is_no_token_is_not_shown() -> None:
    with pytest.raises(BadToken) as caught:
        read({**MINIMAL, "EDGE_AGENT_TOKEN": "pass word"})
    assert "pass word" not in str(caught.value)


def test_an_enrolment_token_is_no_worker_token() -> None:
    with pytest.raises(BadToken, match="python -m agent enrol") as caught:
        read({**MINIMAL, "EDGE_AGENT_TOKEN": ENROLMENT_TOKEN})
    assert ENROLMENT_TOKEN not in str(caught.value)


@pytest.mark.parametrize("setting", ["token_file", "enrolment_token_file"])
def test_a_token_in_the_place_of_a_file_is_not_shown(setting: str) -> None:
    with pytest.raises(BadConfig, match="must name a file") as caught:
        read(**{setting: ENROLMENT_TOKEN})
    assert ENROLMENT_TOKEN not in str(caught.value)


def test_running_minds_no_settings_of_an_enrolment() -> None:
    read({**MINIMAL, "EDGE_AGENT_ENROLMENT_TOKEN": "x", "EDGE_AGENT_RETRY_SECONDS": "5"})


def read_enrolment(environ: dict[str, str] | None = None, *, force: bool = False, **flags: Any) -> Enrolment:
    defaults = {"EDGE_AGENT_URL": "https://edge.example.com"}
    return load_enrolment(
        flags=flags, force=force, environ=defaults if environ is None else environ, home=Path("/home/somebody")
    )


def test_enrolling_needs_an_address_and_asks_for_the_rest() -> None:
    settings = read_enrolment()
    assert (settings.url, settings.enrolment_token) == ("https://edge.example.com", None)
    assert settings.token_file == Path("/home/somebody/.local/state/edgecontrol-agent/worker.token")
    assert (settings.retry_seconds, settings.run_flags) == (60.0, ())
    with pytest.raises(BadConfig, match="--url"):
        read_enrolment({})


def test_an_enrolment_file_on_the_command_line_wins_over_a_token_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "enrolment"
    file.write_text(f"# one machine only\n{ENROLMENT_TOKEN}\n")
    environ = {"EDGE_AGENT_URL": "https://e", "EDGE_AGENT_ENROLMENT_TOKEN": "ece_other"}
    assert read_enrolment(environ, enrolment_token_file=str(file)).enrolment_token == ENROLMENT_TOKEN


def test_an_enrolment_token_is_not_shown_by_its_settings() -> None:
    settings = read_enrolment({"EDGE_AGENT_URL": "https://e", "EDGE_AGENT_ENROLMENT_TOKEN": ENROLMENT_TOKEN})
    assert settings.enrolment_token == ENROLMENT_TOKEN
    assert ENROLMENT_TOKEN not in repr(settings)


def test_the_next_command_repeats_what_it_needs(tmp_path: Path) -> None:
    toml = tmp_path / "agent.toml"
    toml.write_text("concurrency = 2\n")
    assert read_enrolment(config=str(toml), state_dir="/srv/edge").run_flags == (
        "--config",
        str(toml),
        "--state-dir",
        "/srv/edge",
    )


def test_enrolling_again_goes_to_the_same_place(tmp_path: Path) -> None:
    (tmp_path / "enrolled.toml").write_text('url = "https://old"\ntoken_file = "/etc/edge/worker.token"\n')
    settings = read_enrolment({}, force=True, state_dir=str(tmp_path))
    assert (settings.url, settings.token_file) == ("https://old", Path("/etc/edge/worker.token"))


@pytest.mark.parametrize("name", ["a\nb", "a\udc80b"])
def test_a_place_that_no_file_could_name_is_refused(name: str) -> None:
    with pytest.raises(BadConfig, match="printed"):
        read_enrolment(token_file=name)


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


def test_a_queue_may_have_an_interpreter_variables_and_a_user_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        'task_user = "tasks"\n[environment]\nSITE = "north"\n[queues]\nserve = ["default", "gpu"]\n'
        '[queues.gpu]\npython = "/opt/gpu/bin/python"\nenvironment = { CUDA_VISIBLE_DEVICES = "0" }\nuser = "gpu"\n'
    )
    config = read({**MINIMAL, "EDGE_AGENT_CONFIG": str(file)})
    assert (config.queues, config.task_user, config.task_environment) == (
        ("default", "gpu"),
        "tasks",
        {"SITE": "north"},
    )
    gpu = config.queue_settings["gpu"]
    assert (gpu.python, gpu.environment, gpu.user) == ("/opt/gpu/bin/python", {"CUDA_VISIBLE_DEVICES": "0"}, "gpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[queues.gpu]\npyton = 'x'\n", "did you mean python?"),
        ("[queues]\ngpu = 3\n", "[queues.gpu]"),
        ("[environment]\nEDGE_AGENT_TOKEN = 'ec_a_b'\n", "cannot set EDGE_AGENT_TOKEN"),
        ("[environment]\nSECRET = 5\n", "table of variables"),
        ("queue_settings = 5\n", "queue_settings is not known"),
    ],
)
def test_a_wrong_table_is_refused_without_showing_its_values(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(content)
    with pytest.raises(BadConfig) as caught:
        read({**MINIMAL, "EDGE_AGENT_CONFIG": str(file)})
    assert said in str(caught.value)
    assert "ec_a_b" not in str(caught.value)


def test_how_much_must_be_free_is_a_share_or_an_amount() -> None:
    config = read(min_free_disk="5%", min_free_memory="1.5 GB")
    assert config.min_free_disk
    assert config.min_free_memory
    assert config.min_free_disk.is_left(free=5, total=100)
    assert not config.min_free_disk.is_left(free=4, total=100)
    assert not config.min_free_memory.is_left(free=1 << 30, total=1 << 40)
    with pytest.raises(BadConfig, match="such as 5% or an amount such as 2GB, not '5'"):
        read(min_free_disk="5")
    with pytest.raises(BadConfig, match="module:function"):
        read(extended_sysinfo="site.figures")
    with pytest.raises(BadConfig, match="must be a port"):
        read(http_port="99999")
