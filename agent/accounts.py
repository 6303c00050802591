"""The system users that tasks run as: who they are, and whether this agent can start anything in their name."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import BadConfig

try:
    import pwd
except ImportError:  # Windows
    pwd = None  # type: ignore[assignment]

#: Of the agent's own session, which another user has no part in.
SESSION_PREFIXES = ("DBUS_SESSION_", "SSH_", "SUDO_", "XDG_RUNTIME_DIR", "XDG_SESSION_", "MAIL")
#: What an agent that is not root must be allowed: to hand files over and look at them, to become the user, to stop
#: processes and to read their marks.
CAPABILITIES = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "SYS_PTRACE": 19}


@dataclass(frozen=True)
class Account:
    """A user other than the agent's own."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    login_shell: str

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment for this user: its own home and name, and nothing of the agent's session."""
        kept = {name: value for name, value in environ.items() if not name.startswith(SESSION_PREFIXES)}
        return {**kept, "HOME": self.home, "USER": self.name, "LOGNAME": self.name, "SHELL": self.login_shell}

    def how_to_start(self) -> dict[str, Any]:
        """What `subprocess` must be told to start a process of this user, anywhere but where the agent is."""
        return {"user": self.uid, "group": self.gid, "extra_groups": self.groups, "cwd": "/"}


def account_of(name: str | None, *, setting: str) -> Account | None:
    """The user of that name; None when that is the agent's own. Raises BadConfig when tasks cannot run as it."""
    if name is None:
        return None
    if pwd is None or not hasattr(socket, "SO_PEERCRED"):
        raise BadConfig(f"{setting}: tasks can run as another user on Linux only")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise BadConfig(f"{setting}: this machine has no user {name!r}") from None
    if entry.pw_uid == os.geteuid():
        return None
    missing = [f"CAP_{name}" for name, bit in CAPABILITIES.items() if not _capabilities() >> bit & 1]
    if missing:
        raise BadConfig(
            f"{setting}: this agent cannot run tasks as {name!r}: it must be started as root, or with "
            f"{', '.join(CAPABILITIES)} ({', '.join(missing)} missing)"
        )
    groups = tuple(os.getgrouplist(name, entry.pw_gid))
    return Account(
        name=name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups, home=entry.pw_dir, login_shell=entry.pw_shell
    )


def check_reach(account: Account, folder: Path) -> None:
    """Raise BadConfig unless this user gets to the folder, whose own mode lets it pass."""
    if _first_without(account, 'cd "$1"', [str(folder)]):
        raise BadConfig(
            f"{account.name!r}, as whom tasks are to run, cannot reach the state directory {folder}: choose one with "
            "--state-dir, such as /var/lib/edgecontrol-agent, all of whose parents others may pass (mode 0711 or 0755)"
        )


def check_files(account: Account, files: Collection[str]) -> None:
    """Raise BadConfig unless this user can read these files, without which none of its tasks reaches Airflow."""
    if unread := _first_without(account, '[ -r "$1" ]', files):
        raise BadConfig(
            f"{account.name!r}, as whom tasks are to run, cannot read {unread}, which their calls to Airflow need: let "
            f"its group read it (`chgrp {account.gid} {unread}`, `chmod 0640 {unread}`) and others pass its folders, "
            "or give tasks files of their own in [environment] (AIRFLOW__API__SSL_CA_FILE, "
            "AIRFLOW__API__CLIENT_SSL_CERT and AIRFLOW__API__CLIENT_SSL_KEY)"
        )


def _first_without(account: Account, condition: str, paths: Collection[str]) -> str:
    """The first of the paths for which this is not so when that user looks; empty when it is so for all of them."""
    script = f'while [ $# -gt 0 ]; do {condition} || {{ printf %s "$1"; exit 0; }}; shift; done'
    command = ["/bin/sh", "-c", script, "sh", *paths]
    # Without the agent's environment, which has its token: whatever runs as that user can look into this process.
    how: dict[str, Any] = {**account.how_to_start(), "env": {}, "stdin": subprocess.DEVNULL, "capture_output": True}
    try:
        looked = subprocess.run(command, timeout=30, check=True, **how)
    except (OSError, subprocess.SubprocessError) as error:
        raise BadConfig(f"this agent cannot start anything as {account.name!r}: {error}") from None
    return os.fsdecode(looked.stdout)


def _capabilities() -> int:
    """What this process may do, as the system's bits."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
