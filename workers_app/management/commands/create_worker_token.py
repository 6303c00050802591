"""`manage.py create_worker_token NAME`: make a worker if need be, and a token file that its agent reads."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError

from workers_app import auth, registry
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
        parser.add_argument("--days", type=int, help="days until the token expires (default: never)")
        parser.add_argument("--force", action="store_true", help="overwrite an existing token file")

    def handle(self, *, name: str, file: Path | None, force: bool, **options: Any) -> None:
        path = file or Path(re.sub(r"[^\w.-]+", "_", name) + ".token")
        descriptor = self._open(path, force=force)
        with os.fdopen(descriptor, "w") as target:
            try:
                worker = Worker.objects.filter(name=name).first() or self._create(name, options)
                days = options["days"]
                token = auth.issue(worker=worker, valid_for=timedelta(days=days) if days else None)
            except Refusal as refusal:
                path.unlink()
                raise CommandError(refusal.detail) from None
            target.write(f"{token}\n# worker token of {name}; keep it secret, one machine only\n")
        self.stdout.write(f"token of worker {name!r} written to {path}")
        self.stdout.write(f"on the machine: python -m agent run --url URL --token-file {path}")

    @staticmethod
    def _open(path: Path, *, force: bool) -> int:
        """The file first, with its final permissions: a token that cannot be stored is never made."""
        mode = os.O_TRUNC if force else os.O_EXCL
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o600)
            os.fchmod(descriptor, 0o600)
        except FileExistsError:
            raise CommandError(f"{path} exists; use --force to overwrite it, or --file for another place") from None
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror}") from None
        return descriptor

    @staticmethod
    def _create(name: str, options: dict[str, Any]) -> Worker:
        queues = options["queues"]
        allowed = [queue.strip() for queue in queues.split(",") if queue.strip()] if queues is not None else None
        return registry.create(name=name, allowed_queues=allowed, team_name=options["team"])
