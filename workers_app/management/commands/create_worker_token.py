"""`manage.py create_worker_token NAME`: make a worker if need be, and a token file that its agent reads."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.db import transaction

from workers_app import auth, registry
from workers_app.audit import Actor
from workers_app.errors import Refusal
from workers_app.models import Worker


class Command(BaseCommand):
    help = (
        "Writes a new token for the worker NAME to a file that only its owner can read. "
        "An unknown NAME becomes a new worker. Exit code 1: refused, with the reason."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="label of the machine, up to 253 characters")
        parser.add_argument("--file", type=Path, help="where to write the token (default: NAME.token in this folder)")
        parser.add_argument("--queues", help="comma-separated queues it may serve (new workers only; default: all)")
        parser.add_argument("--team", default="", help="Airflow team it works for (new workers only)")
        parser.add_argument("--days", type=_days, help="days until the token expires (default: never)")
        parser.add_argument("--force", action="store_true", help="overwrite an existing token file")

    def handle(self, *, name: str, file: Path | None, force: bool, days: int | None, **options: Any) -> None:
        path = file or Path(re.sub(r"[^\w.-]+", "_", name) + ".token")
        if path.exists() and not force:
            raise CommandError(f"{path} exists; use --force to overwrite it, or --file for another place")
        try:
            # The file is there before the commit: a token that cannot be stored is never made.
            with transaction.atomic():
                worker = Worker.objects.filter(name=name).first()
                if worker and (options["queues"] is not None or options["team"]):
                    raise CommandError(f"worker {name!r} exists; --queues and --team are for new workers only")
                worker = worker or self._create(name, options)
                valid_for = None if days is None else timedelta(days=days)
                token = auth.issue(worker=worker, valid_for=valid_for, by=Actor.of_command())
                _write(path, f"{token}\n# worker token of {name}; keep it secret, one machine only\n")
        except Refusal as refusal:
            raise CommandError(refusal.detail) from None
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None
        self.stdout.write(f"token of worker {name!r} written to {path}")
        self.stdout.write(f"on the machine: python -m agent run --url URL --token-file {path}")

    @staticmethod
    def _create(name: str, options: dict[str, Any]) -> Worker:
        queues = options["queues"]
        allowed = [queue.strip() for queue in queues.split(",") if queue.strip()] if queues is not None else None
        return registry.create(name=name, allowed_queues=allowed, team_name=options["team"], by=Actor.of_command())


def _days(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ArgumentTypeError("a whole number of days, 1 or more")
    return int(text)


def _write(path: Path, text: str) -> None:
    """Replace the file in one step; nobody but its owner can ever read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
        target.write(text)
    temporary.replace(path)
