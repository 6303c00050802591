"""How the tasks of each queue are run: in which interpreter, as which user, and with which variables.

What the agent was started with is passed on, but for what is its own, what systemd meant for it, and what only
Airflow's servers may know. The settings come after that, and are passed as they are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from agent.accounts import Account, account_of
from agent.config import Config

#: The agent's own settings (the token among them), a control plane's, and what systemd meant for the agent alone.
PRIVATE_PREFIXES = (
    "EDGE_AGENT_",
    "EDGECONTROL_",
    "NOTIFY_SOCKET",
    "WATCHDOG_",
    "LISTEN_",
    "SYSTEMD_EXEC_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MAINPID",
    "MANAGERPID",
    "MEMORY_PRESSURE_",
    "CREDENTIALS_DIRECTORY",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "FDSTORE",
)
#: Secrets of Airflow's servers: a task that knows one could speak for any other. Also as `..._CMD` and `..._SECRET`.
SERVERS_PREFIXES = (
    "AIRFLOW__API_AUTH__JWT_",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__WEBSERVER__SECRET_KEY",
    "AIRFLOW__CELERY__BROKER_URL",
    "AIRFLOW__CELERY__RESULT_BACKEND",
    # The executor's, which hands out all jobs: its database among them.
    "AIRFLOW__EDGECONTROL__",
)
#: Files that Airflow's client reads before a task's first call.
CERTIFICATES = (
    "AIRFLOW__API__SSL_CA_FILE",
    "AIRFLOW__API__SSL_CERT",
    "AIRFLOW__API__CLIENT_SSL_CERT",
    "AIRFLOW__API__CLIENT_SSL_KEY",
)


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """Tasks that one runner serves: all that is equal here can be forked from the same process."""

    python: str
    #: None is the agent's own.
    account: Account | None = None
    #: Variables by the settings.
    given: Mapping[str, str]
    #: Of queues with settings of their own; empty for all others.
    queues: tuple[str, ...] = ()

    @property
    def uid(self) -> int | None:
        """Of the user that they run as; None is the agent's own."""
        return self.account.uid if self.account is not None else None

    def how_to_start(self) -> dict[str, Any]:
        """What `subprocess` must be told, beside the environment, to start a process of this kind."""
        return self.account.how_to_start() if self.account is not None else {}

    def is_like(self, other: TaskKind) -> bool:
        return (self.python, self.account, self.given) == (other.python, other.account, other.given)

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """What a task of this kind finds in its environment, when the agent's own is `environ`."""
        inherited = task_environment(environ)
        return {**(self.account.variables(inherited) if self.account else inherited), **self.given}

    def certificates(self, environ: Mapping[str, str]) -> list[str]:
        """The files that a task of this kind must be able to read for its calls to Airflow, as its environment says."""
        found = self.environment(environ)
        return list(dict.fromkeys(found[name] for name in CERTIFICATES if found.get(name)))


class Served(NamedTuple):
    """Which queues jobs may be taken of, as far as the runners go."""

    #: None: all but `without`.
    only: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()


#: Nothing stands in the way of any queue.
ALL_QUEUES = Served()


def task_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the agent's environment passes on to tasks."""
    unwanted = (*PRIVATE_PREFIXES, *SERVERS_PREFIXES)
    return {name: value for name, value in environ.items() if not name.startswith(unwanted)}


def kinds_of(config: Config, *, variables: Mapping[str, str] | None = None) -> list[TaskKind]:
    """Every kind that the settings name, first that of the queues without settings of their own.

    `variables` come before the settings'. Raises BadConfig when tasks cannot run as a user that they name.
    """
    common = {**(variables or {}), **config.task_environment}
    usual = account_of(config.task_user, setting="task_user")
    kinds = [TaskKind(python=config.task_python, account=usual, given=common)]
    for queue, own in config.queue_settings.items():
        account = account_of(own.user, setting=f"queues.{queue}.user") if own.user else usual
        kind = TaskKind(python=own.python or config.task_python, account=account, given={**common, **own.environment})
        same = next((number for number, other in enumerate(kinds) if kind.is_like(other)), None)
        if same is None:
            kinds.append(replace(kind, queues=(queue,)))
        elif same > 0:
            kinds[same] = replace(kinds[same], queues=(*kinds[same].queues, queue))
    return kinds
