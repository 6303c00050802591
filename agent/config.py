"""Every setting of the agent, from flags, environment, a TOML file and an enrolment; nothing is contacted here."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import BadConfig, NotEnrolled, WrongUrl
from agent.tokens import HOW_TO_ENROL, enrolment_token, worker_token
from agent.values import PREFIX, Room, environment, file, function, names, one_of, port, positive, room, seconds, text

#: In the state directory: what `enrol` leaves for `run`, which any other source overrules.
ENROLLED = "enrolled.toml"
ENROLLED_SETTINGS = ("url", "token_file", "ca_bundle", "client_certificate", "client_key")
#: Of two that say the same in two ways, the one that is named nearer wins.
EITHER = {
    "token": "token_file",
    "token_file": "token",
    "enrolment_token": "enrolment_token_file",
    "enrolment_token_file": "enrolment_token",
}


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How the jobs of a queue are run; None is what the machine has for all queues."""

    python: str | None = None
    #: Variables beside those that the agent was started with.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: The system user that tasks run as; None is the agent's own.
    user: str | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    url: str
    token: str
    #: None keeps the name that the token stands for.
    name: str | None
    #: None serves every queue that the worker is allowed.
    queues: tuple[str, ...] | None
    concurrency: int
    state_dir: Path
    task_python: str
    #: `fork` from a warm process, or a `fresh` interpreter per job.
    task_start: str
    #: For jobs of queues that `queue_settings` does not name, and what it leaves out.
    task_environment: Mapping[str, str]
    task_user: str | None
    queue_settings: Mapping[str, TaskSettings]
    #: What SIGTERM means: `drain`, or `leave` the tasks to the runner and go at once.
    on_term: str
    #: Between SIGTERM and SIGKILL when a job has to stop.
    kill_grace_seconds: float
    log_level: str
    #: `text` or `json`.
    log_format: str
    #: Certificates that are trusted instead of the usual ones.
    ca_bundle: Path | None
    #: What this machine shows to a gateway that asks for a certificate; the key may be in the same file.
    client_certificate: Path | None
    client_key: Path | None
    #: Of the local HTTP pages on loopback; 0 for none.
    http_port: int
    #: `module:function` that gives further figures of this machine.
    extended_sysinfo: str | None
    #: Where the settings file is, beside which that module may be.
    settings_folder: Path | None
    #: With less than this the machine rests until it has more again; None does not look.
    min_free_disk: Room | None
    min_free_memory: Room | None
    #: Stands in for the system's own; None asks the system.
    boot_id: str | None


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """What `enrol` is told."""

    url: str
    state_dir: Path
    #: Where the worker's token goes.
    token_file: Path
    #: Replace the token that is there.
    force: bool
    #: None: it has to be asked for.
    enrolment_token: str | None = field(repr=False)
    #: How long an absent control plane is waited for.
    retry_seconds: float
    #: As in `Config`; `run` finds them again.
    ca_bundle: Path | None
    client_certificate: Path | None
    client_key: Path | None
    #: The flags that `run` will need to find the enrolment again.
    run_flags: tuple[str, ...]


def queue_tables(value: Any) -> dict[str, TaskSettings]:
    """`[queues.NAME]`: each with `python`, `environment` and `user`."""
    found = {}
    for queue, table in value.items():
        if not isinstance(table, dict):
            raise ValueError(f"{queue} must be a table such as [queues.gpu]")
        refuse_unknown(table, QUEUE_SETTINGS, what=f"setting of queue {queue}:", spell=str)
        try:
            found[queue] = TaskSettings(**{name: QUEUE_SETTINGS[name](item) for name, item in table.items()})
        except ValueError as error:
            raise ValueError(f"{queue}: {error}") from None
    return found


QUEUE_SETTINGS: dict[str, Callable[[Any], Any]] = {"python": text, "environment": environment, "user": text}

#: Every setting: how it is read. Its flag is `--name`, its variable EDGE_AGENT_NAME, its key in the TOML file `name`.
SETTINGS: dict[str, Callable[[Any], Any]] = {
    "url": text,
    "token": text,
    "token_file": file,
    "enrolment_token": text,
    "enrolment_token_file": file,
    "retry_seconds": seconds,
    "name": text,
    "queues": names,
    "concurrency": positive,
    "state_dir": text,
    "task_python": text,
    "task_start": one_of("fork", "fresh"),
    "task_user": text,
    "ca_bundle": file,
    "client_certificate": file,
    "client_key": file,
    "http_port": port,
    "extended_sysinfo": function,
    "min_free_disk": room,
    "min_free_memory": room,
    "on_term": one_of("drain", "leave"),
    "kill_grace_seconds": seconds,
    "log_level": one_of("debug", "info", "warning", "error"),
    "log_format": one_of("text", "json"),
    "boot_id": text,
    # Tables, which only a file can have.
    "environment": environment,
    "queue_settings": queue_tables,
}
TABLES = ("environment", "queue_settings")


Sources = list[tuple[str, Mapping[str, Any]]]


def load(*, flags: Mapping[str, Any], environ: Mapping[str, str], home: Path | None = None) -> Config:
    """Put the settings of `run` together.

    Flags win over the environment, the environment over the TOML file, and that over what `enrol` left. Raises
    BadConfig, BadToken or WrongUrl with a line that names the setting, where it stood and what it may be.
    """
    merged, state_dir = gather(flags=flags, environ=environ, home=home)
    if "url" not in merged and not merged.keys() & {"token", "token_file"}:
        raise NotEnrolled(
            f"this machine is not enrolled (as far as {state_dir} tells): run {HOW_TO_ENROL} first, or give --url and "
            "the --token-file that `manage.py create_worker_token NAME` wrote on the control plane"
        )
    return Config(
        url=control_plane_url(merged),
        token=worker_token(merged),
        name=merged.get("name"),
        queues=merged.get("queues"),
        concurrency=merged.get("concurrency", 8),
        state_dir=state_dir,
        task_python=merged.get("task_python", sys.executable),
        task_start=merged.get("task_start", "fork"),
        on_term=merged.get("on_term", "drain"),
        kill_grace_seconds=merged.get("kill_grace_seconds", 15.0),
        log_level=merged.get("log_level", "info"),
        log_format=merged.get("log_format", "text"),
        task_environment=merged.get("environment", {}),
        task_user=merged.get("task_user"),
        queue_settings=merged.get("queue_settings", {}),
        ca_bundle=path_of(merged, "ca_bundle"),
        client_certificate=path_of(merged, "client_certificate"),
        client_key=path_of(merged, "client_key"),
        http_port=merged.get("http_port", 0),
        extended_sysinfo=merged.get("extended_sysinfo"),
        settings_folder=Path(toml).absolute().parent if (toml := settings_file(flags, environ)) else None,
        min_free_disk=merged.get("min_free_disk"),
        min_free_memory=merged.get("min_free_memory"),
        boot_id=merged.get("boot_id"),
    )


def load_enrolment(
    *, flags: Mapping[str, Any], force: bool, environ: Mapping[str, str], home: Path | None = None
) -> Enrolment:
    """Put the settings of `enrol` together, from the same sources. Raises as `load` does."""
    merged, state_dir = gather(flags=flags, environ=environ, home=home)
    if "token" in merged:
        raise BadConfig(
            "EDGE_AGENT_TOKEN is set, and would go before the token of an enrolment: unset it, or run without enrolling"
        )
    token_file = Path(merged.get("token_file", state_dir / "worker.token")).expanduser().absolute()
    certificates = {name: path_of(merged, name) for name in ("ca_bundle", "client_certificate", "client_key")}
    for path in (state_dir, token_file, *certificates.values()):
        if path is not None and not str(path).isprintable():  # a TOML file could not name it
            raise BadConfig(f"the name {str(path)!r} must consist of characters that can be printed")
    run_flags: list[str] = ["--config", flags["config"]] if flags.get("config") else []
    if state_dir != default_state_dir(home):
        run_flags += ["--state-dir", str(state_dir)]
    return Enrolment(
        url=control_plane_url(merged),
        state_dir=state_dir,
        token_file=token_file,
        force=force,
        enrolment_token=enrolment_token(merged),
        retry_seconds=merged.get("retry_seconds", 60.0),
        **certificates,
        run_flags=tuple(run_flags),
    )


def gather(*, flags: Mapping[str, Any], environ: Mapping[str, str], home: Path | None) -> tuple[dict[str, Any], Path]:
    """Every setting that something names, and the state directory, whose enrolment fills what is missing."""
    sources = sources_of(flags=flags, environ=environ)
    merged = merge(sources)
    state_dir = state_dir_of(merged, home=home)
    if "url" not in merged or not merged.keys() & {"token", "token_file"}:
        path = state_dir / ENROLLED
        merged = merge([(f"{path}: ", read_toml(path, known=ENROLLED_SETTINGS, may_be_missing=True)), *sources])
    return merged, state_dir


def find_state_dir(*, flags: Mapping[str, Any], environ: Mapping[str, str], home: Path | None = None) -> Path:
    """The state directory that `run` would use with the same settings; nothing else has to be there."""
    return state_dir_of(merge(sources_of(flags=flags, environ=environ)), home=home)


def sources_of(*, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Sources:
    """What people say, the strongest last. Raises BadConfig for a name that is no setting."""
    variables = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    settable = [name for name in (*SETTINGS, "config") if name not in TABLES]
    refuse_unknown(variables, settable, what="environment variable", spell=variable)
    toml = settings_file(flags, environ)
    variables.pop(PREFIX + "CONFIG", None)
    sources: Sources = [(f"{toml}: ", read_toml(Path(toml), known=SETTINGS))] if toml else []
    sources.append(("", variables))
    sources.append(("", {"--" + name.replace("_", "-"): value for name, value in flags.items() if name != "config"}))
    return sources


def state_dir_of(merged: Mapping[str, Any], *, home: Path | None) -> Path:
    return Path(merged.get("state_dir", default_state_dir(home))).expanduser().absolute()


def settings_file(flags: Mapping[str, Any], environ: Mapping[str, str]) -> str | None:
    return flags.get("config") or environ.get(PREFIX + "CONFIG")


def default_state_dir(home: Path | None) -> Path:
    return (home or Path.home()) / ".local/state/edgecontrol-agent"


def merge(sources: Sources) -> dict[str, Any]:
    """Read every value, later sources over earlier ones."""
    merged: dict[str, Any] = {}
    for origin, values in sources:
        for label, value in values.items():
            name = label.removeprefix(PREFIX).lower().removeprefix("--").replace("-", "_")
            if value is None:
                continue
            try:
                merged[name] = SETTINGS[name](value)
            except ValueError as error:
                shown = "" if "token" in name or name in TABLES else f", not {value!r}"
                raise BadConfig(f"{origin}{label} {error}{shown}") from None
            merged.pop(EITHER.get(name, ""), None)
    return merged


def read_toml(path: Path, *, known: Iterable[str], may_be_missing: bool = False) -> dict[str, Any]:
    """The settings of a TOML file. Its keys are the long flags' names, with underscores."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        if may_be_missing and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise BadConfig(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from None
    refuse_unknown(content, [name for name in known if name != "queue_settings"], what=f"{path}: setting", spell=str)
    return with_queue_tables(content)


def with_queue_tables(content: dict[str, Any]) -> dict[str, Any]:
    """`queues = [...]` says what is served; so does `serve` in a table `[queues]`, which then has the queues' own."""
    tables = content.get("queues")
    if not isinstance(tables, dict):
        return content
    own = dict(tables)
    rest = {name: value for name, value in content.items() if name != "queues"}
    if isinstance(own.get("serve"), list):  # else it is a queue of that name
        rest["queues"] = own.pop("serve")
    return {**rest, "queue_settings": own}


def path_of(merged: Mapping[str, Any], name: str) -> Path | None:
    return Path(merged[name]).expanduser().absolute() if name in merged else None


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def refuse_unknown(given: Iterable[str], known: Iterable[str], *, what: str, spell: Callable[[str], str]) -> None:
    """Raise BadConfig with the nearest right name for the first name that is not known."""
    right = {spell(name): name for name in known}
    for name in given:
        if name in right:
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), right.values(), n=1)
        hint = f"did you mean {spell(near[0])}?" if near else f"known are {', '.join(sorted(right))}"
        raise BadConfig(f"{what} {name} is not known: {hint}")


def control_plane_url(merged: Mapping[str, Any]) -> str:
    """The address without the API's own path or a closing slash. Raises WrongUrl when it is no web address."""
    url = merged.get("url")
    if url is None:
        raise BadConfig("the control plane's address is missing: give --url https://... or set EDGE_AGENT_URL")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise WrongUrl(f"{url!r} is not a web address: it must look like https://edge.example.com")
    if parts.query or parts.fragment or parts.username:
        raise WrongUrl("the URL must not contain a user, '?' or '#': it must look like https://edge.example.com")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/api/v1/edge").rstrip("/")
