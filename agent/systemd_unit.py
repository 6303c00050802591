"""The systemd unit of an agent: what stands in it, and why; pure, nothing is written or started here.

It has no secret in it: tokens stay in their file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: The first line of what is ours.
MARK = "# Written by `edge-agent install-service`, which replaces it; keep own changes in a drop-in (systemctl edit)."
#: Fed three times as often.
WATCHDOG_SECONDS = 180

UNIT = """\
{mark}
[Unit]
Description=EdgeControl agent: runs Airflow tasks on this machine
Wants=network-online.target
After=network-online.target
# A machine that was away for a night comes back in the morning: no number of restarts is the last.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{service}
# The agent says that it is up once it is registered, or waits for a control plane that it knows.
TimeoutStartSec=180
# Fed while the agent's own loops come round. An absent control plane is no reason to restart.
WatchdogSec={watchdog}
Restart=on-failure
RestartSec=10
# Not after: a newer agent with the same token (8), a version that is no longer accepted (10), a stop that was meant
# (130). Whoever mends that starts it again. All else may pass by itself, at boot above all: a name server, a mount, a
# directory of users that come up later.
RestartPreventExitStatus=8 10 130

# A stop, a restart or an upgrade takes the agent alone; its tasks go on, and the next start takes them over.
KillMode=process
Environment=EDGE_AGENT_ON_TERM=leave
# A task that needs too much memory ends by itself, not everything here with it.
OOMPolicy=continue
# Each task is a few processes, and has connections of its own.
TasksMax=infinity
LimitNOFILE=65536

# Tasks are in here as well, so nothing is taken that they may need: no private /tmp (it would go with a stop, while
# tasks go on), no hidden devices or homes, no filter of system calls, no ban on code made at run time.
NoNewPrivileges=yes
{hardening}
[Install]
WantedBy={target}
"""
#: These need no privileges, and no user's manager lacks them.
HARDENING = ("LockPersonality=yes", "RestrictSUIDSGID=yes")
#: Of what systemd has, these work in containers too; covering parts of /proc keeps a service from starting in some.
SYSTEM_HARDENING = (
    "# /usr, /boot and /etc are read-only: packages are not installed by tasks.",
    "ProtectSystem=full",
    "ProtectControlGroups=yes",
    "ProtectKernelModules=yes",
)


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the unit is made from."""

    name: str
    #: How the agent is started, up to its flags.
    command: tuple[str, ...]
    state_dir: Path
    #: A unit of the user's own manager instead of the machine's.
    of_user: bool = False
    #: Whom the agent runs as; None for the manager's own.
    run_as: str | None = None
    environment_file: Path | None = None
    #: Variables that the service needs and whoever installs it has, in a file of their own: they may hold a password.
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The file is there already, and stays when there is nothing new for it.
    keeps_variables: bool = False
    working_directory: Path | None = None
    #: Tasks may use sudo and other programs that gain privileges.
    may_gain_privileges: bool = False
    #: Where the manager looks for units.
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.service"

    @property
    def variables_path(self) -> Path:
        return self.folder / f"{self.name}.env"

    @property
    def systemctl(self) -> list[str]:
        return ["systemctl", "--user"] if self.of_user else ["systemctl"]


def text(service: Service) -> str:
    """The unit file."""
    lines = []
    if service.run_as is not None:
        lines.append(f"User={service.run_as}")
    if service.variables or service.keeps_variables:
        lines.append(f"EnvironmentFile={path_word(service.variables_path)}")
    if service.environment_file is not None:
        lines.append(f"EnvironmentFile={path_word(service.environment_file)}")
    if any(part.endswith(".pyz") for part in service.command):
        lines.append(f"CacheDirectory={service.name}")  # where the one file is unpacked
    if service.working_directory is not None:
        lines.append(f"WorkingDirectory={path_word(service.working_directory)}")
    hardening = [*HARDENING, *(() if service.of_user else SYSTEM_HARDENING)]
    if not service.of_user:
        hardening.append(f"ReadWritePaths={list_word(f'-{service.state_dir}')}")
    unit = UNIT.format(
        mark=MARK,
        command=" ".join(word(part) for part in service.command),
        service="\n".join(lines),
        watchdog=WATCHDOG_SECONDS,
        hardening="\n".join(hardening) + "\n",
        target="default.target" if service.of_user else "multi-user.target",
    )
    if service.may_gain_privileges:
        unit = without_bans(unit)
    return unit.replace("\n\n\n", "\n\n")


def variables_text(service: Service) -> str:
    """The file of its own variables, which is for nobody else to read."""
    quoted = {
        name: value.replace("\\", "\\\\").replace('"', '\\"')
        for name, value in service.variables.items()
        if value.isprintable()
    }
    return "\n".join([MARK, *(f'{name}="{value}"' for name, value in quoted.items()), ""])


def without_bans(unit: str) -> str:
    """Most bans would keep `sudo` from working: systemd lets nobody gain privileges who could then undo them."""
    bans = ("NoNewPrivileges=", "LockPersonality=", "RestrictSUIDSGID=", "Protect", "ReadWritePaths=", "# /usr")
    return "\n".join(line for line in unit.split("\n") if not line.startswith(bans))


def word(part: str) -> str:
    """One word of a command line as systemd reads it: neither split, nor expanded."""
    escaped = part.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != part or any(mark in part for mark in " \t';") or not part else part


def path_word(path: Path) -> str:
    """A path that has its line to itself: quotes would be part of it."""
    return str(path).replace("%", "%%")


def list_word(path: str) -> str:
    """A path in a list, where no variable is expanded."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
