"""Which tasks share a runner, and what stands in their environment."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import accounts, config
from agent.errors import BadConfig
from agent.task_kinds import TaskKind, kinds_of

ACCOUNT = accounts.Account(name="press", uid=4242, gid=4242, groups=(4242,), home="/home/press", login_shell="/bin/sh")


def settings(*, queues: dict[str, Any], **more: Any) -> config.Config:
    flags = {"url": "http://plane", "token": "ec_key_secret", "task_python": "python"}
    loaded = config.load(flags=flags, environ={}, home=Path("/none"))
    own = {queue: config.TaskSettings(**table) for queue, table in queues.items()}
    return dataclasses.replace(loaded, queue_settings=own, **more)


def test_queues_with_the_same_settings_share_a_runner() -> None:
    kinds = kinds_of(
        settings(
            task_environment={"SITE": "7"},
            queues={
                "gpu": {"environment": {"CUDA": "1"}},
                "other-gpu": {"environment": {"CUDA": "1"}},
                "arm": {"python": "/opt/arm/python"},
                "as-usual": {"python": "python", "environment": {"SITE": "7"}},
            },
        )
    )
    assert [(kind.python, dict(kind.given), kind.queues) for kind in kinds] == [
        ("python", {"SITE": "7"}, ()),
        ("python", {"SITE": "7", "CUDA": "1"}, ("gpu", "other-gpu")),
        ("/opt/arm/python", {"SITE": "7"}, ("arm",)),
    ]


def test_the_settings_of_a_queue_go_before_those_of_the_machine_and_these_before_all_others() -> None:
    chosen = settings(
        task_environment={"B": "machine", "C": "machine"}, queues={"gpu": {"environment": {"C": "queue"}}}
    )
    usual, gpu = kinds_of(chosen, variables={"A": "agent", "B": "agent", "C": "agent"})
    inherited = {"A": "inherited", "D": "inherited"}
    assert usual.environment(inherited) == {"A": "agent", "B": "machine", "C": "machine", "D": "inherited"}
    assert gpu.environment(inherited) == {"A": "agent", "B": "machine", "C": "queue", "D": "inherited"}


@pytest.mark.parametrize(
    "private",
    [
        "EDGE_AGENT_TOKEN",
        "EDGECONTROL_DATABASE_URL",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "LISTEN_FDNAMES",
        "INVOCATION_ID",
        "CREDENTIALS_DIRECTORY",
        "STATE_DIRECTORY",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD",
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__CORE__FERNET_KEY",
        "AIRFLOW__EDGECONTROL__DATABASE_URL",
        "AIRFLOW__EDGECONTROL__DATABASE_URL_CMD",
        "AIRFLOW__CELERY__BROKER_URL",
        "AIRFLOW__CELERY__RESULT_BACKEND_SECRET",
        "AIRFLOW__WEBSERVER__SECRET_KEY",
    ],
)
def test_what_is_not_for_tasks_is_not_passed_on_but_where_the_settings_say_so(private: str) -> None:
    environ = {private: "secret", "LANG": "C"}
    assert TaskKind(python="python", given={}).environment(environ) == {"LANG": "C"}
    assert TaskKind(python="python", given={private: "told"}).environment(environ) == {"LANG": "C", private: "told"}


def test_another_user_has_its_own_home_and_no_part_in_the_agents_session() -> None:
    environ = {"HOME": "/root", "USER": "root", "SSH_AUTH_SOCK": "/tmp/a", "XDG_RUNTIME_DIR": "/run/0", "LANG": "C"}
    kind = TaskKind(python="python", account=ACCOUNT, given={"SHELL": "/bin/bash"})
    assert kind.environment(environ) == {
        "HOME": "/home/press",
        "USER": "press",
        "LOGNAME": "press",
        "SHELL": "/bin/bash",
        "LANG": "C",
    }


@pytest.mark.parametrize("check", [accounts.check_reach, accounts.check_files])
def test_what_looks_for_another_user_knows_nothing_of_the_agents(
    check: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever runs as that user could read it, and the token with it, in the environment of this process."""
    given: list[dict[str, Any]] = []

    def run(command: list[str], **how: Any) -> subprocess.CompletedProcess[bytes]:
        given.append(how)
        return subprocess.CompletedProcess(command, 0, stdout=b"", stderr=b"")

    monkeypatch.setattr(accounts.subprocess, "run", run)
    check(ACCOUNT, "/srv" if check is accounts.check_reach else ["/srv/key.pem"])
    assert [(how["env"], how["user"]) for how in given] == [({}, 4242)]


def test_the_certificates_of_a_task_are_those_that_its_environment_names() -> None:
    environ = {"AIRFLOW__API__SSL_CA_FILE": "/etc/ca.pem", "AIRFLOW__API__CLIENT_SSL_CERT": "/etc/agent.pem"}
    given = {"AIRFLOW__API__CLIENT_SSL_CERT": "/srv/both.pem", "AIRFLOW__API__CLIENT_SSL_KEY": "/srv/both.pem"}
    kind = TaskKind(python="python", account=ACCOUNT, given=given)
    assert kind.certificates(environ) == ["/etc/ca.pem", "/srv/both.pem"]
    assert TaskKind(python="python", given={}).certificates({"LANG": "C"}) == []


def test_the_agents_own_user_is_no_other() -> None:
    pwd = pytest.importorskip("pwd")
    own = pwd.getpwuid(os.geteuid()).pw_name
    assert accounts.account_of(own, setting="task_user") is None
    assert accounts.account_of(None, setting="task_user") is None


def test_an_agent_that_lacks_a_capability_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 4243)
    monkeypatch.setattr(accounts, "_capabilities", lambda: (1 << 41) - 1 - (1 << accounts.CAPABILITIES["SETUID"]))
    with pytest.raises(BadConfig, match=r"task_user: .*must be started as root.*\(CAP_SETUID missing\)"):
        accounts.account_of("root", setting="task_user")


def test_a_system_without_such_users_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "pwd", None)
    with pytest.raises(BadConfig, match=r"queues\.gpu\.user: tasks can run as another user on Linux only"):
        accounts.account_of("press", setting="queues.gpu.user")
