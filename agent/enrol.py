"""`python -m agent enrol`: how a one-time enrolment token becomes this machine's own token; no job is taken here.

The machine makes its token itself and sends only the digest, so the secret never crosses the wire. It is on disk, as
`<token file>.pending-...`, before the control plane hears of it: when the answer is lost for good, the same command
with the same enrolment token asks again for the same token, and gets it.
"""

from __future__ import annotations

import contextlib
import getpass
import glob
import hashlib
import json
import shlex
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from agent import registration, state_dir, tokens
from agent.client import ApiError, Client
from agent.config import ENROLLED, Enrolment
from agent.errors import AgentError, BadConfig, BadStateDir, BadToken, NameTaken, Unreachable
from agent.files import sync, write
from agent.retry import Backoff
from agent.transport import Transport

READ_SECONDS = 15.0
#: A token of 256 bits is shorter; nothing else is read into memory.
LONGEST_LINE = 1000
HINT = "# worker token of this machine, made by `python -m agent enrol`; keep it secret, one machine only\n"
#: What the control plane itself says no to, and will say no to again.
REFUSED = (BadToken, NameTaken, BadConfig)


def enrol(settings: Enrolment) -> str:
    """Enrol this machine; returns what people want to know then. Raises the AgentError that says why not."""
    Transport.of(settings).check()
    state_dir.take(settings.state_dir)
    make_room(settings)
    enrolment_token = settings.enrolment_token or ask()
    pending = pending_file(settings.token_file, enrolment_token)
    minted = mint_once(pending)
    try:
        answer = until_accepted(settings, enrolment_token=enrolment_token, minted=minted)
    except REFUSED:
        pending.unlink(missing_ok=True)
        raise
    keep(settings, pending=pending, name=answer["name"])
    return summary(settings, answer)


def make_room(settings: Enrolment) -> None:
    """See that the token has a place. Raises BadConfig when a token is there that nobody wants to lose."""
    target = settings.token_file
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        exists, is_directory = target.exists(), target.is_dir()
    except OSError as error:
        raise BadStateDir(
            f"cannot use {target.parent} for the token file ({error.strerror}); choose another --token-file"
        ) from None
    if is_directory:
        raise BadStateDir(f"the token file {target} is a directory; choose another --token-file")
    if exists and not settings.force:
        raise BadConfig(
            f"{target} exists: this machine has a token already, start it with `{run_command(settings)}`; "
            "to replace the token, give --force"
        )


def ask() -> str:
    """The enrolment token from whoever started us: typed and not shown, or the first line of standard input."""
    origin = "standard input"
    if sys.stdin is not None and sys.stdin.isatty():
        origin = "what was typed"
        try:
            value = getpass.getpass("Enrolment token (it is not shown): ")
        except EOFError:
            value = ""
    else:
        tell("reading the enrolment token from standard input")
        value = "" if sys.stdin is None else sys.stdin.buffer.readline(LONGEST_LINE).decode(errors="replace")
    if not value.strip():
        raise BadConfig(
            "the enrolment token is missing: give --enrolment-token-file FILE, set EDGE_AGENT_ENROLMENT_TOKEN, or "
            'write it to standard input. It comes from "Connect a machine" in the admin or from '
            "`manage.py create_enrolment_token`"
        )
    return tokens.checked_enrolment_token(value.strip(), origin=origin)


def pending_file(target: Path, enrolment_token: str) -> Path:
    """Where this enrolment's token waits for its answer: one place per enrolment token, so that none spoils another."""
    mark = hashlib.sha256(enrolment_token.encode()).hexdigest()[:12]
    return target.with_name(f"{target.name}.pending-{mark}")


def mint_once(pending: Path) -> tokens.Minted:
    """The token that an earlier try with this enrolment token has made, else a new one; on disk in any case."""
    try:
        earlier = tokens.WORKER_TOKEN.match(pending.read_text(errors="replace")) if pending.exists() else None
        if earlier is not None:
            return tokens.of_token(earlier.group())
        minted = tokens.mint()
        write(pending, f"{minted.token}\n{HINT}".encode())
        sync(pending.parent)
    except OSError as error:
        raise BadStateDir(
            f"cannot write {pending} ({error.strerror}); choose another place with --token-file"
        ) from None
    return minted


def until_accepted(settings: Enrolment, *, enrolment_token: str, minted: tokens.Minted) -> dict[str, Any]:
    """The control plane's answer. Goes on asking for a bounded time while nobody answers, or nobody has time."""
    new_session = Transport.of(settings).session
    client = Client(url=settings.url, token=minted.token, session=uuid.uuid4(), new_session=new_session)
    body = {"enrolment_token": enrolment_token, "key": minted.key, "digest": minted.digest}
    backoff, give_up_at, told = Backoff(most_seconds=10.0), time.monotonic() + settings.retry_seconds, False
    while True:
        try:
            answer = client.enrol(body, read_seconds=READ_SECONDS)
        except ApiError as error:
            reason = why_not(error, url=settings.url)
            pause = backoff.next_seconds(retry_after=error.retry_after)
            if not isinstance(reason, Unreachable) or time.monotonic() + pause > give_up_at:
                raise reason from None
            if not told:
                tell(f"{error}; trying again for up to {settings.retry_seconds:.0f} s")
            told = True
            time.sleep(pause)
            continue
        return answer


def why_not(error: ApiError, *, url: str) -> AgentError:
    """The error by which a failed request ends the enrolment; Unreachable when it is worth repeating for a while."""
    detail = " ".join(str(error.body.get("detail", "")).split())
    if error.code == "bad_enrolment_token":
        return BadToken(
            f"{url} does not accept the enrolment token: "
            + (
                detail
                or 'it is unknown, used, expired or revoked; make another under "Connect a machine" in the admin or '
                "with `manage.py create_enrolment_token`"
            )
        )
    if error.code == "name_taken":
        return NameTaken(
            f"{detail or 'another worker has the name that this enrolment token gives'}: have an enrolment token made "
            "with another name, or the other worker removed"
        )
    if error.body.get("code") and not error.repeatable and error.status != 404:
        return BadConfig(f"{url} does not accept the enrolment: {detail or error.code}")
    refusal = registration.why_not(error, url=url, name=None, known=False)
    if error.obstacle is not None and not error.obstacle.common:
        then = "then give the same command again; the enrolment token stays good for this machine"
        return error.obstacle.error(f"{error}; {then}")
    if refusal is None or isinstance(refusal, Unreachable):
        return Unreachable(
            f"{error}: check --url, that the control plane runs, proxy and firewall, then give the same command again; "
            "the enrolment token stays good for this machine"
        )
    return refusal


def keep(settings: Enrolment, *, pending: Path, name: str) -> None:
    """Make the token the machine's own. The rename comes last and decides: all before it can be repeated."""
    comment = f"What `python -m agent run` uses where nothing else is given, written by `enrol`. Worker {name}."
    # JSON's strings are TOML's for all that can be printed.
    certificates = {name: getattr(settings, name) for name in ("ca_bundle", "client_certificate", "client_key")}
    given = {name: str(path) for name, path in certificates.items() if path is not None}
    values = {"url": settings.url, "token_file": str(settings.token_file), **given}
    lines = [f"# {comment}", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())]
    try:
        write(settings.state_dir / ENROLLED, ("\n".join(lines) + "\n").encode())
        pending.replace(settings.token_file)
        sync(settings.token_file.parent)
    except OSError as error:
        raise BadStateDir(
            f"the machine is enrolled as {name}, but its token cannot be put in place ({error.strerror}): "
            "see to the disk, then give the same command again"
        ) from None
    registration.remember(settings.url, state_dir=settings.state_dir)
    with contextlib.suppress(OSError):
        for left in settings.token_file.parent.glob(f"{glob.escape(settings.token_file.name)}.pending-*"):
            left.unlink()


def summary(settings: Enrolment, answer: dict[str, Any]) -> str:
    queues = answer.get("queues")
    served = "every queue" if queues is None else ", ".join(map(str, queues)) or "none yet"
    lines = [f"enrolled as {answer['name']} at {settings.url}", f"queues: {served}"]
    if answer.get("team_name"):
        lines.append(f"team: {answer['team_name']}")
    return "\n".join([*lines, f"token: {settings.token_file}", f"next: {run_command(settings)}"])


def run_command(settings: Enrolment) -> str:
    return shlex.join(["python", "-m", "agent", "run", *settings.run_flags])


def tell(text: str) -> None:
    """Say what is going on, beside the one line by which the command ends."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
