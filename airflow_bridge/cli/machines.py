"""`airflow edgecontrol create-worker` and `create-enrolment-token`: the commands that hand out a credential.

A token goes to a file that only its owner can read, or is shown once on stdout; never into a log or an error.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from airflow_bridge.cli.commands import with_api
from airflow_bridge.cli.endings import Code, note
from airflow_bridge.cli.fleet_api import FleetApi
from airflow_bridge.cli.secret_file import SecretFile


def create_worker(args: argparse.Namespace) -> None:
    """`airflow edgecontrol create-worker NAME --file FILE`."""

    def command(api: FleetApi) -> Code:
        body = {**_told(args), "concurrency": args.concurrency, "maintenance": args.maintenance}
        with SecretFile(Path(args.file)) as file:
            made = api.post("workers/", {**body, "token_days": args.days})
            file.keep(f"{made['worker_token']}\n# worker token of {args.name}; keep it secret, one machine only\n")
        note(f"worker host {args.name!r} is made; its token is in {args.file}. On the machine:")
        note(f"  python -m agent run --url {api.access.url} --token-file FILE")
        return Code.DONE

    with_api(args, command)


def create_enrolment_token(args: argparse.Namespace) -> None:
    """`airflow edgecontrol create-enrolment-token NAME`."""

    def command(api: FleetApi) -> Code:
        body = {**_told(args), "valid_for_seconds": args.minutes * 60, "replace": args.replace}
        if args.file:
            with SecretFile(Path(args.file)) as file:
                made = api.post("enrolment-tokens/", body)
                file.keep(made["enrolment_token"] + "\n")
            takes = f"enrol takes --enrolment-token-file, or asks for what stands in {args.file}"
        else:
            made = api.post("enrolment-tokens/", body)
            print(made["enrolment_token"], flush=True)  # noqa: T201
            takes = "enrol asks for the token"
        note(f"\nThis token makes one machine the worker host {args.name!r} until {made['expires_at']}.")
        note(f"It is not shown again. On the machine; {takes}:\n")
        note("\n".join(f"  {line}" for line in made["commands"]))
        note(f"\nTo withdraw it: airflow edgecontrol revoke-enrolment-token {made['key']}")
        return Code.DONE

    with_api(args, command)


def _told(args: argparse.Namespace) -> dict[str, Any]:
    told = {"name": args.name, "team": args.team}
    # Said and empty is none; only left out means every queue.
    return told if args.queues is None else {**told, "queues": args.queues}
