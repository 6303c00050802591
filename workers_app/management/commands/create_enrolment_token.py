"""`manage.py create_enrolment_token NAME`: a one-time token by which a machine becomes a worker host, shown once."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from workers_app import agent_file, enrolment, operations
from workers_app.audit import Actor
from workers_app.management import secret_file
from workers_app.management.endings import Refused
from workers_app.management.fleet_command import FleetCommand
from workers_app.models import EnrolmentToken
from workers_app.operations import InvalidParameter


class Command(FleetCommand):
    help = (
        "Makes a one-time token for the machine NAME and prints it on stdout, this once only; "
        "what to do with it on the machine follows on stderr."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", metavar="NAME", help="how the machine will be called, up to 253 characters")
        parser.add_argument("--queues", type=_queues, metavar="QUEUES", help="queues it may serve (default: every one)")
        parser.add_argument("--team", default="", help="Airflow team it works for")
        parser.add_argument(
            "--minutes",
            type=_minutes,
            default=int(enrolment.VALID_FOR.total_seconds() // 60),
            help="how long the token can be used (default: %(default)s)",
        )
        parser.add_argument(
            "--replace",
            action="store_true",
            help="the machine exists and was set up anew: it keeps its queues and team, its older tokens end",
        )
        parser.add_argument("--file", type=Path, help="write the token to this file, which only its owner can read")
        parser.add_argument("--force", action="store_true", help="overwrite an existing file")

    def handle(self, *, name: str, file: Path | None, minutes: int, **options: Any) -> None:
        try:
            if file:
                secret_file.refuse_to_overwrite(file, force=options["force"])
            # The file is there before the commit: a token that cannot be stored is never made.
            with transaction.atomic():
                token, text = enrolment.create(
                    name=name,
                    by=Actor.of_command(),
                    allowed_queues=options["queues"],
                    team_name=options["team"],
                    valid_for=timedelta(minutes=minutes),
                    replace=options["replace"],
                )
                if file:
                    secret_file.write(file, f"{text}\n")
        except OSError as error:
            raise Refused(f"cannot write {file}: {error.strerror}") from None
        if file:
            self.stdout.write(f"enrolment token {token.key} of {name!r} written to {file}")
        else:
            self.stdout.write(text)
        self.stdout.flush()
        self.note(_what_to_do(token, file))


def _what_to_do(token: EnrolmentToken, file: Path | None) -> str:
    """What people do on the machine. The token itself never stands on a command line."""
    until = "" if token.expires_at is None else f" until {token.expires_at:%Y-%m-%d %H:%M} UTC"
    asks = (
        "; enrol asks for the token" if file is None else f"; enrol takes --enrolment-token-file {file.name}, or asks"
    )
    commands = enrolment.commands(settings.EDGECONTROL.public_url or "https://...", file=agent_file.look())
    return "\n".join(
        [
            f"\nThis token makes one machine the worker host {token.name!r}{until}. It is not shown again.",
            f"On the machine{asks}:\n",
            *(f"  {line}" for line in commands),
            f"\nTo withdraw it: manage.py revoke_enrolment_token {token.key}",
        ]
    )


def _queues(text: str) -> list[str]:
    try:
        # Said and empty is none; only left out means every queue.
        return operations.queues(text) or []
    except InvalidParameter as invalid:
        raise ArgumentTypeError(invalid.detail) from None


def _minutes(text: str) -> int:
    shortest, longest = (int(span.total_seconds() // 60) for span in (enrolment.SHORTEST, enrolment.LONGEST))
    if not re.fullmatch("[0-9]{1,6}", text) or not shortest <= int(text) <= longest:
        raise ArgumentTypeError(f"must be a whole number of minutes from {shortest} to {longest}")
    return int(text)
