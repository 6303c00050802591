"""`manage.py revoke_enrolment_token`."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping
from typing import Any

from workers_app import enrolment, operations
from workers_app.management.endings import Refused, unknown
from workers_app.management.operation_command import Chosen, OperationCommand, Subject
from workers_app.models import EnrolmentToken


class Command(OperationCommand):
    operation = operations.REVOKE_ENROLMENT_TOKEN
    one, many = "enrolment token", "enrolment tokens"
    ways = ("KEY ...", "--machine NAME", "--all")

    def add_choices(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "keys", nargs="*", metavar="KEY", help="the twelve digits after ece_; never the whole token"
        )
        parser.add_argument("--machine", metavar="NAME", help="those for this machine that can still be used")
        parser.add_argument("--all", action="store_true", help="every one that can still be used")

    def choose(self, options: Mapping[str, Any]) -> Chosen:
        keys, machine = list(dict.fromkeys(options["keys"])), options["machine"]
        self.one_way(bool(keys), machine is not None, options["all"])
        tokens = EnrolmentToken.objects.order_by("pk").only("key", "name")
        usable = tokens.filter(enrolment.USABLE)
        if keys:
            found = {token.key: token for token in tokens.filter(key__in=keys)}
            if missing := [key for key in keys if key not in found]:
                raise unknown(self.one, missing, usable.values_list("key", flat=True))
            return Chosen([_subject(found[key]) for key in keys], in_bulk=False)
        subjects = [_subject(token) for token in (usable if machine is None else usable.filter(name=machine))]
        if not subjects:
            raise Refused(f"no enrolment token {'' if machine is None else f'for {machine!r} '}can still be used")
        return Chosen(subjects, in_bulk=True)


def _subject(token: EnrolmentToken) -> Subject:
    return Subject(token.pk, str(token))
