"""Every setting of the agent, from flags, environment and a TOML file; nothing is contacted here."""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.errors import BadConfig, BadToken, WrongUrl

PREFIX = "EDGE_AGENT_"
TOKEN_SHAPE = re.compile(r"ec_[A-Za-z0-9]+_[A-Za-z0-9_-]+")


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
    #: What SIGTERM means: `drain`, or `leave` the tasks to the runner and go at once.
    on_term: str
    #: Between SIGTERM and SIGKILL when a job has to stop.
    kill_grace_seconds: float
    log_level: str
    #: Stands in for the system's own; None asks the system.
    boot_id: str | None


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be a text that is not empty")
    return value.strip()


def names(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be names, separated by commas")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def positive(value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError("must be a whole number from 1")
    return number


def seconds(value: Any) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf") or isinstance(value, bool):
        raise ValueError("must be a number of seconds from 0")
    return number


def one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"must be {' or '.join(choices)}")
        return str(value)

    return read


#: Every setting: how it is read. Its flag is `--name`, its variable EDGE_AGENT_NAME, its key in the TOML file `name`.
SETTINGS: dict[str, Callable[[Any], Any]] = {
    "url": text,
    "token": text,
    "token_file": text,
    "name": text,
    "queues": names,
    "concurrency": positive,
    "state_dir": text,
    "task_python": text,
    "task_start": one_of("fork", "fresh"),
    "on_term": one_of("drain", "leave"),
    "kill_grace_seconds": seconds,
    "log_level": one_of("debug", "info", "warning", "error"),
    "boot_id": text,
}


def load(*, flags: Mapping[str, Any], environ: Mapping[str, str], home: Path | None = None) -> Config:
    """Put the settings together: flags win over the environment, the environment over the TOML file.

    Raises BadConfig, BadToken or WrongUrl with a line that names the setting, where it stood and what it may be.
    """
    variables = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    refuse_unknown(variables, (*SETTINGS, "config"), what="environment variable", spell=variable)
    file = flags.get("config") or variables.pop(PREFIX + "CONFIG", None)
    merged: dict[str, Any] = {}
    sources = [(f"{file}: ", read_toml(Path(file)))] if file else []
    sources.append(("", variables))
    sources.append(("", {"--" + name.replace("_", "-"): value for name, value in flags.items() if name != "config"}))
    for origin, values in sources:
        for label, value in values.items():
            name = label.removeprefix(PREFIX).lower().removeprefix("--").replace("-", "_")
            if value is None:
                continue
            try:
                merged[name] = SETTINGS[name](value)
            except ValueError as error:
                shown = "" if name == "token" else f", not {value!r}"
                raise BadConfig(f"{origin}{label} {error}{shown}") from None
            if name in {"token", "token_file"}:  # whichever is named nearer wins, not both
                merged.pop("token" if name == "token_file" else "token_file", None)
    return _config(merged, home=home or Path.home())


def _config(merged: dict[str, Any], *, home: Path) -> Config:
    if "url" not in merged:
        raise BadConfig("the control plane's address is missing: give --url https://... or set EDGE_AGENT_URL")
    return Config(
        url=control_plane_url(merged["url"]),
        token=token(merged),
        name=merged.get("name"),
        queues=merged.get("queues"),
        concurrency=merged.get("concurrency", 8),
        state_dir=Path(merged.get("state_dir", home / ".local/state/edgecontrol-agent")).expanduser().absolute(),
        task_python=merged.get("task_python", sys.executable),
        task_start=merged.get("task_start", "fork"),
        on_term=merged.get("on_term", "drain"),
        kill_grace_seconds=merged.get("kill_grace_seconds", 15.0),
        log_level=merged.get("log_level", "info"),
        boot_id=merged.get("boot_id"),
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file. Its keys are the long flags' names, with underscores."""
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadConfig(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from None
    refuse_unknown(content, SETTINGS, what=f"{path}: setting", spell=str)
    return content


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


def control_plane_url(url: str) -> str:
    """The address without the API's own path or a closing slash. Raises WrongUrl when it is no web address."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise WrongUrl(f"{url!r} is not a web address: it must look like https://edge.example.com")
    if parts.query or parts.fragment or parts.username:
        raise WrongUrl("the URL must not contain a user, '?' or '#': it must look like https://edge.example.com")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/api/v1/edge").rstrip("/")


def token(merged: Mapping[str, Any]) -> str:
    """The worker's token, from the settings or from the first line of its file. Its text is never shown."""
    origin = "EDGE_AGENT_TOKEN"
    value = merged.get("token")
    if value is None:
        if "token_file" not in merged:
            raise BadConfig(
                "the token is missing: have one made with `manage.py create_worker_token NAME` on the control plane, "
                "then give --token-file FILE or set EDGE_AGENT_TOKEN_FILE"
            )
        origin = merged["token_file"]
        try:
            lines = Path(origin).expanduser().read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadConfig(f"cannot read the token file {origin}: {getattr(error, 'strerror', error)}") from None
        value = next((line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    if not TOKEN_SHAPE.fullmatch(value):
        raise BadToken(
            f"{origin} does not hold an EdgeControl token (ec_..._...): "
            "have one made with `manage.py create_worker_token NAME` on the control plane"
        )
    return str(value)
