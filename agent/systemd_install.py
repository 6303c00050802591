"""How a systemd unit of the agent is put in place, started, stopped and taken away; what stands in it is not said here.

A unit that this agent has not written is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import agent
from agent import config, launch
from agent.config import Config
from agent.errors import BadConfig, NoService, NotEnrolled
from agent.systemd_unit import MARK, Service, text, variables_text
from agent.transport import PROXY_VARIABLES

try:
    import pwd
except ImportError:  # Windows
    pwd = None  # type: ignore[assignment]

SYSTEM_FOLDER = Path("/etc/systemd/system")
#: Where it is, systemd runs this machine.
RUNS = Path("/run/systemd/system")
#: A start takes up to three minutes, when the first tries to reach the control plane fail.
SYSTEMCTL_SECONDS = 300.0
NAME = re.compile(r"[A-Za-z0-9:_.@-]{1,200}")


class Account(NamedTuple):
    """Whom the agent will run as."""

    name: str
    uid: int
    home: Path


def account_of(name: str | None) -> Account:
    """The user of that name, else who gives the command. Raises BadConfig."""
    if pwd is None:
        raise NoService("there is no systemd on Windows: see docs/agent-windows.md")
    try:
        entry = pwd.getpwuid(os.geteuid()) if name is None else pwd.getpwnam(name)
    except KeyError:
        raise BadConfig(f"--run-as: this machine has no user {name or os.geteuid()!r}") from None
    return Account(entry.pw_name, entry.pw_uid, Path(entry.pw_dir))


def service_of(flags: Mapping[str, Any], *, environ: Mapping[str, str]) -> Service:
    """The service by these flags. Raises the AgentError by which the agent would end at once if it were started so."""
    name = unit_name(flags)
    if flags["user"] and flags["run_as"] is not None:
        raise BadConfig("--run-as is for the machine's units: one of --user runs as yourself")
    account = account_of(flags["run_as"])
    paths = {key: absolute(flags[key]) for key in ("config", "state_dir", "environment_file")}
    given = {key: str(paths[key]) for key in ("config", "state_dir") if paths[key] is not None}
    variables = variables_in(paths["environment_file"])
    home = Path(environ.get("HOME") or account.home) if flags["user"] else account.home
    try:
        settings = config.load(flags=given, environ=variables, home=home)
    except NotEnrolled:
        place = config.find_state_dir(flags=given, environ=variables, home=home)
        raise BadConfig(not_enrolled(place, account)) from None
    check_owner(settings.state_dir, account)
    check_task_users(settings, account)
    # Said in the unit wherever it comes from: a service may have another home than a login.
    words = ["--config", given["config"]] if "config" in given else []
    folder = folder_of(flags, environ=environ)
    return Service(
        name=name,
        command=(*launch.command(), "run", *words, "--state-dir", str(settings.state_dir)),
        state_dir=settings.state_dir,
        of_user=flags["user"],
        run_as=None if flags["user"] else account.name,
        environment_file=paths["environment_file"],
        variables={key: environ[key] for key in PROXY_VARIABLES if environ.get(key) and key not in variables},
        # An upgrade by `sudo`, which drops them, must not take the only way out.
        keeps_variables=(folder / f"{name}.env").exists(),
        working_directory=working_directory(),
        may_gain_privileges=flags["allow_sudo"],
        folder=folder,
    )


def not_enrolled(place: Path, account: Account) -> str:
    """What to do where the user of the service has no enrolment of its own."""
    whose = "" if account.uid == os.geteuid() else f"sudo -Hu {account.name} "
    return (
        f"{account.name}, as whom the agent is to run, has not enrolled this machine (as far as {place} tells): give "
        f"`{whose}{launch.MODULE} enrol --url https://...` first, or name the place of its enrolment with --state-dir"
    )


def unit_name(flags: Mapping[str, Any]) -> str:
    name = str(flags["unit"]).removesuffix(".service")
    if not NAME.fullmatch(name):
        raise BadConfig(f"--unit must be a name such as edgecontrol-agent, not {name!r}")
    return name


def folder_of(flags: Mapping[str, Any], *, environ: Mapping[str, str]) -> Path:
    """Where the units are, the machine's or those of who gives the command."""
    if not flags["user"]:
        return SYSTEM_FOLDER
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"


def absolute(name: str | None) -> Path | None:
    return None if name is None else Path(name).expanduser().absolute()


def working_directory() -> Path | None:
    """Where `python -m agent` has to be started; None where the agent is found from everywhere."""
    if "-m" not in launch.command():
        return None
    folder = Path(agent.__file__).resolve().parents[1]
    return None if folder.name in ("site-packages", "dist-packages") else folder


def variables_in(path: Path | None) -> dict[str, str]:
    """The variables of an EnvironmentFile, as far as its usual form goes. Raises BadConfig."""
    if path is None:
        return {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"cannot read --environment-file {path}: {getattr(error, 'strerror', error)}") from None
    pairs = (line.strip().partition("=") for line in lines if line.strip() and line.strip()[0] not in "#;")
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs}


def check_task_users(settings: Config, account: Account) -> None:
    """Raise BadConfig when tasks are to run as users that only root can start them as."""
    users = {settings.task_user, *(own.user for own in settings.queue_settings.values())} - {None, account.name}
    if users and account.uid != 0:
        raise BadConfig(
            f"tasks can run as {', '.join(sorted(map(str, users)))} only if the agent runs as root: --run-as root"
        )


def check_owner(folder: Path, account: Account) -> None:
    """Raise BadConfig when the state directory is another user's, whom the agent could not replace."""
    if folder.exists() and folder.stat().st_uid != account.uid:
        raise BadConfig(
            f"the state directory {folder} does not belong to {account.name}: `chown -R {account.name} {folder}`, or "
            "enrol as that user, or choose another --run-as"
        )


def is_ours(path: Path) -> bool:
    try:
        return path.read_text(errors="replace").startswith(MARK)
    except OSError as error:
        raise NoService(f"cannot read {path} ({error.strerror}): give this command as root, or with --user") from None


def install(service: Service) -> list[str]:
    """Write the unit and start it; returns what was done, and what is left to type. Raises NoService."""
    for path in (service.path, service.variables_path):
        if path.is_symlink() or (path.exists() and not is_ours(path)):
            raise NoService(f"{path} is not from this agent and stays as it is: choose another --unit, or remove it")
    done = []
    try:
        service.folder.mkdir(parents=True, exist_ok=True)
        if service.variables:
            put(service.variables_path, variables_text(service), mode=0o600)
            done.append(f"wrote {', '.join(service.variables)} to {service.variables_path}")
        elif service.keeps_variables:
            done.append(f"kept {service.variables_path}, since this shell names no proxy")
        put(service.path, text(service), mode=0o644)
    except OSError as error:
        raise NoService(
            f"cannot write to {service.folder} ({error.strerror}): give this command as root, or with --user for a unit"
            " of your own"
        ) from None
    started = carry_out(service, ("daemon-reload",), ("enable", service.name), ("restart", service.name))
    return [*done, f"wrote {service.path}", *started]


def put(path: Path, content: str, *, mode: int) -> None:
    """Replace the file in one step; nobody reads it before it has its mode."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(content)
    temporary.chmod(mode)
    temporary.replace(path)


def uninstall(flags: Mapping[str, Any], *, environ: Mapping[str, str]) -> list[str]:
    """Stop the unit and take it away; returns what was done, and what is left to type. Raises NoService."""
    service = Service(
        name=unit_name(flags),
        command=(),
        state_dir=Path(),
        of_user=flags["user"],
        folder=folder_of(flags, environ=environ),
    )
    path = service.path
    if not path.exists():
        raise NoService(f"there is no {path}: nothing to remove; see --unit and --user")
    if path.is_symlink() or not is_ours(path):
        raise NoService(f"{path} is not from this agent and stays as it is")
    done = carry_out(service, ("disable", "--now", service.name))
    try:
        path.unlink()
        if service.variables_path.exists() and is_ours(service.variables_path):
            service.variables_path.unlink()
    except OSError as error:
        raise NoService(f"cannot remove {path} ({error.strerror}): give this command as root, or with --user") from None
    return [*done, f"removed {path}", *carry_out(service, ("daemon-reload",))]


def carry_out(service: Service, *orders: tuple[str, ...]) -> list[str]:
    """Give systemctl these orders, or say what to type where systemd does not run. Raises NoService if one fails."""
    if not RUNS.is_dir() or shutil.which("systemctl") is None:
        typed = (" ".join([*service.systemctl, *order]) for order in orders)
        return [f"systemd does not run here; where it does, type: {line}" for line in typed]
    done = []
    for order in orders:
        command = [*service.systemctl, *order]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoService(f"`{' '.join(command)}` did not end: {error}") from None
        if answer.returncode != 0:
            said = " ".join((answer.stderr or answer.stdout).split()) or f"code {answer.returncode}"
            logs = "journalctl --user" if service.of_user else "journalctl"
            raise NoService(f"`{' '.join(command)}` failed: {said}; see `{logs} -u {service.name}`")
        done.append(" ".join(command))
    return done
