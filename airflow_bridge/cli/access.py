"""Which control plane a command speaks to, and as whom; the token comes out of a file and goes nowhere but there."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow.exceptions import AirflowConfigException

from airflow_bridge import config
from airflow_bridge.cli.endings import Code, Failed

#: As `curl -H @FILE` takes it.
_HEADER = re.compile(r"authorization:\s*bearer\s+", re.IGNORECASE)
_PERSONAL = re.compile(r"ecp_[0-9a-f]+_[0-9a-f]+")
_OTHERS = {"ec_": "a worker's", "ece_": "an enrolment"}
_LONGEST = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    url: str
    token: str = field(repr=False)
    #: For what is said when the token is not accepted.
    token_file: str


def access(*, url: str | None, token_file: str | None) -> Access:
    """From the flags or, where they are not given, from the settings. Raises Failed."""
    try:
        address = (url or "").strip().rstrip("/") or config.control_plane_url()
        file = token_file or config.api_token_file()
    except (AirflowConfigException, ValueError, OSError) as error:
        raise Failed(f"a setting of [{config.SECTION}] cannot be read: {error}") from None
    return Access(url=_checked(address, given=url is not None), token=read_token(file), token_file=file)


def _checked(address: str, *, given: bool) -> str:
    name = "--url" if given else f"[{config.SECTION}] control_plane_url"
    if not address:
        raise Failed(
            "which control plane? Give --url, or set [edgecontrol] control_plane_url "
            "(AIRFLOW__EDGECONTROL__CONTROL_PLANE_URL), such as https://edge.example.com",
            Code.WRONG_USAGE,
        )
    if not config.is_address(address):
        # Not repeated: it might hold a password.
        raise Failed(f"{name} must be an address such as https://edge.example.com, without a user", Code.WRONG_USAGE)
    return address


def read_token(file: str) -> str:
    """The personal token in a file that nobody else can read. Raises Failed, which never repeats what stands there."""
    if not file:
        raise Failed(
            "no token: make one under Personal tokens in the control plane's admin, put it into a file of mode 0600, "
            f"and name the file in {config.TOKEN_FILE_VARIABLE}, [edgecontrol] api_token_file or --token-file",
            Code.WRONG_USAGE,
        )
    if _HEADER.sub("", file.strip()).startswith("ecp_"):
        # Not repeated.
        raise Failed(
            "a token was given where the name of its file belongs, and may now stand in your shell's history: "
            "revoke it, make another and put that into a file",
            Code.WRONG_USAGE,
        )
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Failed(
                    f"others than you can read {path}: chmod 600 {path}; if they might have, make another token"
                )
            text = opened.read(_LONGEST).decode("ascii", errors="replace")
    except OSError as error:
        raise Failed(f"cannot read the token in {path}: {error.strerror}") from None
    lines = (line.strip() for line in text.splitlines())
    token = _HEADER.sub("", next((line for line in lines if line and not line.startswith("#")), ""))
    if _PERSONAL.fullmatch(token):
        return token
    for prefix, whose in _OTHERS.items():
        if token.startswith(prefix):
            raise Failed(f"{path} holds {whose} token; this needs a personal one, which begins with ecp_")
    raise Failed(f"there is no personal token in {path}: it begins with ecp_, on a line of its own")


def flags(args: Any) -> Access:
    """By a command's `--url` and `--token-file`."""
    return access(url=args.url, token_file=args.token_file)
