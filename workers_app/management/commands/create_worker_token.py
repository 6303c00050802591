"""`manage.py create_worker_token NAME`: make a worker if need be, and a token file that its agent reads."""

from __future__ import annotations

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db import transaction

from workers_app import auth, registry
from workers_app.audit import Actor
from workers_app.management import secret_file
from workers_app.management.endings import Refused
from workers_app.management.fleet_command import FleetCommand
from workers_app.models import Worker


class Command(FleetCommand):
    help = (
        "Writes a new token for the worker NAME to a file that only its owner can read. "
        "An unknown NAME becomes a new worker."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="label of the machine, up to 253 characters")
        parser.add_argument("--file", type=Path, help="where to write the token (default: NAME.token in this folder)")
        parser.add_argument("--queues", help="comma-separated queues it may serve (new workers only; default: all)")
        parser.add_argument("--team", default="", help="Airflow team it works for (new workers only)")
        parser.add_argument("--days", type=_days, help="days until the token expires (default: never)")
        parser.add_argument("--force", action="store_true", help="overwrite an existing token file")

    def handle(self, *, name: str, file: Path | None, force: bool, days: int | None, **options: Any) -> None:
        path = file or secret_file.default_path(name, "token")
        try:
            secret_file.refuse_to_overwrite(path, force=force)
            # The file is there before the commit: a token that cannot be stored is never made.
            with transaction.atomic():
                worker = Worker.objects.filter(name=name).first()
                if worker and (options["queues"] is not None or options["team"]):
                    raise Refused(f"worker {name!r} exists; --queues and --team are for new workers only")
                worker = worker or self._create(name, options)
                valid_for = None if days is None else timedelta(days=days)
                token = auth.issue(worker=worker, valid_for=valid_for, by=Actor.of_command())
                secret_file.write(path, f"{token}\n# worker token of {name}; keep it secret, one machine only\n")
        except OSError as error:
            raise Refused(f"cannot write {path}: {error.strerror}") from None
        self.stdout.write(f"token of worker {name!r} written to {path}")
        self.stdout.write(f"on the machine: python -m agent run --url URL --token-file {path}")

    @staticmethod
    def _create(name: str, options: dict[str, Any]) -> Worker:
        queues = options["queues"]
        allowed = [queue.strip() for queue in queues.split(",") if queue.strip()] if queues is not None else None
        return registry.create(name=name, allowed_queues=allowed, team_name=options["team"], by=Actor.of_command())


def _days(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise ArgumentTypeError("must be a whole number of days from 1 to 99999")
    return int(text)
