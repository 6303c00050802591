"""A machine enrols with real processes: what it is told, what it leaves on disk, what it survives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.integration.agent.conftest import ROOT, Agent, Enrolling, default_state_dir
from tests.integration.agent.control_plane import ControlPlane, Refusal

Start = Callable[..., Agent]
Enrol = Callable[..., Enrolling]
ENROL = "workers/enrol"


def assert_ends(enrolling: Enrolling, *, code: int, says: str, typed: str | None = None) -> None:
    assert enrolling.wait(typed=typed) == code, enrolling.stderr
    lines = [line for line in enrolling.stderr.splitlines() if line.startswith("edge-agent:")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in enrolling.stderr
    assert enrolling.stdout == ""


def assert_secret(text: str, *tokens: str) -> None:
    for token in tokens:
        assert token.split("_")[2] not in text


def digests(plane: ControlPlane) -> list[tuple[str, str]]:
    return [(body["key"], body["digest"]) for _, path, body in plane.requests if path == ENROL]


def digest(token: str) -> tuple[str, str]:
    _, key, secret = token.split("_")
    return key, hashlib.sha256(secret.encode()).hexdigest()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_enrolled_machine_runs_without_any_further_setting(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start
) -> None:
    invitation = plane.invite("press-7", queues=["floor", "paint"], team_name="hall 2")
    plane.token = "ec_nobody_knows"  # this one counts no more than any other
    enrolling = start_enrol(given=invitation)
    assert enrolling.wait() == 0, enrolling.stderr
    for text in ("press-7", "floor, paint", "hall 2", "next: python -m agent run\n"):
        assert text in enrolling.stdout
    agent = start_agent(enrolled=True)
    job = plane.add()
    plane.wait_for(lambda: job.state == "success")
    assert_secret(enrolling.stdout + enrolling.stderr + agent.stderr, invitation, enrolling.token())


def test_only_the_owner_can_read_what_enrolling_leaves(plane: ControlPlane, start_enrol: Enrol) -> None:
    enrolling = start_enrol(given=plane.invite())
    assert enrolling.wait() == 0
    assert mode(enrolling.state_dir) == 0o700
    assert {path.name: mode(path) for path in enrolling.state_dir.iterdir()} == dict.fromkeys(
        ("agent.lock", "enrolled.toml", "registered", "worker.token"), 0o600
    )


def test_the_secret_stays_on_the_machine_and_off_the_command_line(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start
) -> None:
    invitation, asked, seen = plane.invite(), threading.Event(), threading.Event()

    def wait(path: str, number: int) -> None:
        asked.set()
        seen.wait(20)

    plane.fault = wait
    enrolling = start_enrol(given=invitation)
    assert asked.wait(20)
    shown = " ".join(psutil.Process(enrolling.process.pid).cmdline())
    seen.set()
    assert enrolling.wait() == 0
    assert_secret(shown, invitation, enrolling.token())
    assert [set(body) for _, path, body in plane.requests if path == ENROL] == [{"enrolment_token", "key", "digest"}]
    assert digests(plane) == [digest(enrolling.token())]
    assert_secret(str(plane.requests), enrolling.token())


@pytest.mark.parametrize("piped", ["{}\n", "{}", "  {} \nmore that nobody asked for\n"])
def test_the_enrolment_token_may_be_piped_in(plane: ControlPlane, start_enrol: Enrol, piped: str) -> None:
    enrolling = start_enrol()
    assert enrolling.wait(typed=piped.format(plane.invite())) == 0
    assert "standard input" in enrolling.stderr


def test_the_enrolment_token_may_come_from_a_file(plane: ControlPlane, start_enrol: Enrol, tmp_path: Path) -> None:
    file = tmp_path / "enrolment.token"
    file.write_text(f"# for press-7, until Friday\n{plane.invite()}\n")
    assert start_enrol("--enrolment-token-file", str(file)).wait() == 0


def test_at_a_terminal_the_enrolment_token_is_asked_for_and_not_shown(plane: ControlPlane, start_enrol: Enrol) -> None:
    invitation = plane.invite()
    master, slave = os.openpty()
    enrolling = start_enrol(stdin=slave)
    stderr = enrolling.process.stderr
    assert stderr is not None
    prompt = ""
    while "Enrolment token" not in prompt:
        character = stderr.read(1)
        assert character, prompt
        prompt += character
    os.write(master, f"{invitation}\n".encode())
    assert enrolling.wait() == 0, enrolling.stderr
    os.close(slave)
    os.set_blocking(master, False)
    echoed = ""
    with contextlib.suppress(OSError):  # there is nothing, not even an end
        echoed = os.read(master, 10_000).decode()
    os.close(master)
    assert_secret(echoed + enrolling.stdout + enrolling.stderr, invitation)


def test_an_unanswered_prompt_and_an_interrupt_end_in_one_line(plane: ControlPlane, start_enrol: Enrol) -> None:
    asked, over = threading.Event(), threading.Event()

    def wait(path: str, number: int) -> None:
        asked.set()
        over.wait(20)

    plane.fault = wait
    enrolling = start_enrol(given=plane.invite())
    assert asked.wait(20)
    enrolling.process.send_signal(signal.SIGINT)
    assert_ends(enrolling, code=130, says="interrupted")
    over.set()


def test_a_state_dir_of_its_own_is_named_for_the_next_command(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start, tmp_path: Path
) -> None:
    place = tmp_path / "a place"
    enrolling = start_enrol("--state-dir", str(place), given=plane.invite())
    assert enrolling.wait() == 0
    assert f"next: python -m agent run --state-dir '{place}'" in enrolling.stdout
    start_agent("--state-dir", str(place), enrolled=True)
    plane.wait_for(lambda: plane.registrations)


def test_a_token_file_of_its_own_is_found_again(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start, tmp_path: Path
) -> None:
    file = tmp_path / "secrets" / 'press "7".token'
    enrolling = start_enrol("--token-file", str(file), given=plane.invite())
    assert enrolling.wait() == 0, enrolling.stderr
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert not enrolling.token_file.exists()
    start_agent(enrolled=True)
    plane.wait_for(lambda: plane.registrations)


# --- the answer that does not come


def test_an_enrolment_whose_answer_was_lost_is_asked_for_again_at_once(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: "drop" if number == 1 else None
    enrolling = start_enrol(given=plane.invite())
    assert enrolling.wait() == 0
    assert "trying again" in enrolling.stderr
    assert digests(plane) == [digest(enrolling.token())] * 2


def test_an_enrolment_whose_answer_was_lost_for_good_is_completed_by_the_same_command(
    plane: ControlPlane, start_enrol: Enrol
) -> None:
    invitation = plane.invite()
    plane.fault = lambda path, number: "drop"
    first = start_enrol("--retry-seconds", "0", given=invitation)
    assert_ends(first, code=4, says="the enrolment token stays good for this machine")
    assert [mode(path) for path in first.pending()] == [0o600]
    assert not first.token_file.exists()
    plane.fault = lambda path, number: None
    second = start_enrol(given=invitation)
    assert second.wait() == 0
    assert second.pending() == []
    assert digests(plane) == [digest(second.token())] * 2


def test_a_killed_enrolment_is_completed_by_the_same_command(plane: ControlPlane, start_enrol: Enrol) -> None:
    invitation, asked, killed = plane.invite(), threading.Event(), threading.Event()

    def wait(path: str, number: int) -> None:
        if number == 1:
            asked.set()
            killed.wait(20)

    plane.fault = wait
    first = start_enrol(given=invitation)
    assert asked.wait(20)
    first.process.kill()
    first.process.wait()
    killed.set()
    plane.wait_for(lambda: plane.invitations[invitation].used_by)
    second = start_enrol(given=invitation)
    assert second.wait() == 0
    assert digest(second.token()) == plane.invitations[invitation].used_by


def test_another_enrolment_token_brings_another_worker_token(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: "drop" if number == 1 else None
    assert start_enrol("--retry-seconds", "0", given=plane.invite("press-7")).wait() == 4
    enrolling = start_enrol(given=plane.invite("press-8"))
    assert enrolling.wait() == 0
    assert enrolling.pending() == []
    assert len(set(digests(plane))) == 2


def test_a_mistyped_enrolment_token_does_not_cost_the_one_whose_answer_was_lost(
    plane: ControlPlane, start_enrol: Enrol
) -> None:
    invitation = plane.invite()
    plane.fault = lambda path, number: "drop" if number == 1 else None
    assert start_enrol("--retry-seconds", "0", given=invitation).wait() == 4
    mistyped = invitation[:-1] + ("0" if invitation[-1] != "0" else "1")
    assert_ends(start_enrol(given=mistyped), code=5, says="unknown or used")
    assert start_enrol(given=invitation).wait() == 0


def test_a_busy_control_plane_is_asked_again(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: Refusal(503, "busy", retry_after=0) if number == 1 else None
    assert start_enrol(given=plane.invite()).wait() == 0


def test_after_enrolling_the_agent_waits_for_a_control_plane_that_is_away(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start
) -> None:
    assert start_enrol(given=plane.invite()).wait() == 0
    plane.close()
    agent = start_agent(enrolled=True)
    plane.wait_for(lambda: "no answer from" in agent.stderr)
    plane.reopen()
    plane.wait_for(lambda: plane.registrations)


# --- what is there already


def test_a_token_that_is_there_is_kept_unless_told_otherwise(plane: ControlPlane, start_enrol: Enrol) -> None:
    enrolling = start_enrol(given=plane.invite())
    assert enrolling.wait() == 0
    token = enrolling.token()
    assert_ends(start_enrol(given=plane.invite()), code=2, says="--force")
    assert enrolling.token() == token
    assert len(digests(plane)) == 1
    refused = start_enrol("--force", given="ece_" + "0" * 12 + "_" + "0" * 64)
    assert_ends(refused, code=5, says="unknown")
    assert enrolling.token() == token
    assert start_enrol("--force", url="", given=plane.invite("press-8")).wait() == 0, "the address is known by now"
    assert enrolling.token() != token


def test_enrolling_beside_a_running_agent_is_refused(
    plane: ControlPlane, start_enrol: Enrol, start_agent: Start
) -> None:
    assert start_enrol(given=plane.invite()).wait() == 0
    start_agent(enrolled=True)
    plane.wait_for(lambda: plane.registrations)
    assert_ends(start_enrol("--force", given=plane.invite()), code=9, says="stop it")


# --- each wrong turn has its line and its exit code


def test_no_url(start_enrol: Enrol) -> None:
    assert_ends(start_enrol(url="", given="ece_" + "0" * 12 + "_" + "0" * 64), code=2, says="--url")


@pytest.mark.parametrize("typed", ["", "\n"])
def test_no_enrolment_token(start_enrol: Enrol, typed: str) -> None:
    assert_ends(start_enrol(), code=2, says="Connect a machine", typed=typed)


def test_no_standard_input_at_all(start_enrol: Enrol) -> None:
    assert_ends(start_enrol(stdin=subprocess.DEVNULL), code=2, says="create_enrolment_token")


def test_an_enrolment_token_file_that_is_not_there(start_enrol: Enrol) -> None:
    assert_ends(start_enrol("--enrolment-token-file", "/no/such/file"), code=2, says="/no/such/file")


def test_a_wrong_retry_time(start_enrol: Enrol) -> None:
    assert_ends(start_enrol("--retry-seconds", "soon"), code=2, says="--retry-seconds must be a number of seconds")


def test_a_worker_token_in_the_environment_would_hide_the_new_one(plane: ControlPlane, start_enrol: Enrol) -> None:
    enrolling = start_enrol(given=plane.invite(), EDGE_AGENT_TOKEN="ec_a_b")
    assert_ends(enrolling, code=2, says="EDGE_AGENT_TOKEN is set")
    assert plane.count(ENROL) == 0


def test_a_half_copied_enrolment_token(plane: ControlPlane, start_enrol: Enrol) -> None:
    half = plane.invite()[:50]
    enrolling = start_enrol(given=half)
    assert_ends(enrolling, code=5, says="copy it again")
    assert_secret(enrolling.stderr, half)
    assert plane.count(ENROL) == 0


def test_a_worker_token_instead_of_an_enrolment_token(start_enrol: Enrol) -> None:
    assert_ends(start_enrol(), code=5, says="holds a worker token", typed="ec_key_sesame\n")


@pytest.mark.parametrize(
    "flags", [("TOKEN",), ("--enrolment-token", "TOKEN"), ("--enrolment-token-file", "TOKEN"), ("--token-file=TOKEN",)]
)
def test_a_token_on_the_command_line_is_refused_and_not_repeated(
    plane: ControlPlane, start_enrol: Enrol, flags: tuple[str, ...]
) -> None:
    invitation = plane.invite()
    enrolling = start_enrol(*(flag.replace("TOKEN", invitation) for flag in flags))
    assert enrolling.wait() == 2
    assert len(enrolling.stderr.splitlines()) == 1
    assert_secret(enrolling.stderr, invitation)


def test_an_enrolment_token_that_is_not_accepted(plane: ControlPlane, start_enrol: Enrol) -> None:
    invitation = plane.invite()
    plane.invitations.clear()
    enrolling = start_enrol(given=invitation)
    assert_ends(enrolling, code=5, says="make another with `create_enrolment_token`")
    assert enrolling.pending() == []
    assert_secret(enrolling.stderr, invitation)


def test_a_name_that_is_taken(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: Refusal(409, "name_taken", "A worker named 'press-7' exists already.")
    enrolling = start_enrol(given=plane.invite())
    assert_ends(enrolling, code=7, says="'press-7'")
    assert enrolling.pending() == []


def test_a_request_that_the_control_plane_does_not_understand(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: Refusal(400, "invalid_request", "key: too short")
    assert_ends(start_enrol(given=plane.invite()), code=2, says="key: too short")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "edge.example.com", "http://no-such-host.invalid"])
def test_no_web_address_or_no_such_host(plane: ControlPlane, start_enrol: Enrol, url: str) -> None:
    assert_ends(start_enrol(url=url, given=plane.invite()), code=3, says=url)


def test_an_address_that_is_no_control_plane(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: Refusal(404, "")
    assert_ends(start_enrol(given=plane.invite()), code=3, says="is not an EdgeControl control plane")


def test_somebody_who_answers_everything_with_success(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.enrol = lambda body: {"hello": "world"}  # type: ignore[method-assign]
    enrolling = start_enrol(given=plane.invite())
    assert_ends(enrolling, code=3, says="is not an EdgeControl control plane")
    assert not enrolling.token_file.exists()


def test_a_refused_connection(plane: ControlPlane, start_enrol: Enrol) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        enrolling = start_enrol("--retry-seconds", "2", url=url, given=plane.invite())
        assert_ends(enrolling, code=4, says="Connection refused")
    assert enrolling.stderr.count("trying again for up to 2 s") == 1


def test_a_control_plane_that_stays_busy(plane: ControlPlane, start_enrol: Enrol) -> None:
    plane.fault = lambda path, number: Refusal(503, "unavailable", "its database is away", retry_after=30)
    enrolling = start_enrol("--retry-seconds", "5", given=plane.invite())
    assert_ends(enrolling, code=4, says="its database is away")
    assert plane.count(ENROL) == 1, "it asked for more time than there is"


def test_a_state_directory_that_cannot_be_used(plane: ControlPlane, start_enrol: Enrol, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    enrolling = start_enrol("--state-dir", str(tmp_path / "file" / "x"), given=plane.invite())
    assert_ends(enrolling, code=11, says="--state-dir")
    assert plane.count(ENROL) == 0


@pytest.mark.parametrize("place", ["file/x", "."])
def test_a_token_file_that_cannot_be_written(
    plane: ControlPlane, start_enrol: Enrol, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    enrolling = start_enrol("--token-file", str(tmp_path / place), given=plane.invite())
    assert_ends(enrolling, code=11, says="--token-file")
    assert plane.count(ENROL) == 0


def test_a_token_that_cannot_be_put_in_place_is_not_lost(plane: ControlPlane, start_enrol: Enrol) -> None:
    invitation, asked, ready = plane.invite(), threading.Event(), threading.Event()

    def wait(path: str, number: int) -> None:
        asked.set()
        ready.wait(20)

    plane.fault = wait
    first = start_enrol(given=invitation)
    assert asked.wait(20)
    (first.state_dir / "enrolled.toml").mkdir()
    ready.set()
    assert_ends(first, code=11, says="the same command again")
    (first.state_dir / "enrolled.toml").rmdir()
    second = start_enrol(given=invitation)
    assert second.wait() == 0
    assert digests(plane) == [digest(second.token())] * 2


def test_run_on_a_machine_that_is_not_enrolled_says_to_enrol(start_agent: Start, tmp_path: Path) -> None:
    agent = start_agent(enrolled=True)
    assert agent.wait() == 2
    (line,) = agent.stderr.splitlines()
    for text in ("python -m agent enrol", "--token-file", "create_worker_token", str(default_state_dir(tmp_path))):
        assert text in line


def test_help_teaches_where_the_token_comes_from() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "agent", "enrol", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for text in ("Connect a machine", "create_enrolment_token", "EDGE_AGENT_ENROLMENT_TOKEN", "--force", "Exit codes"):
        assert text in answer.stdout
