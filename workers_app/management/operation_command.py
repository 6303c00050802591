"""A command made out of an `Operation`: whom it means, whether that was meant, doing it, and waiting for what follows.

What an operation does, and whether it can be done, is decided behind `Operation.call`; never here.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import InterfaceError, OperationalError, connection

from workers_app import selection
from workers_app.audit import Actor
from workers_app.management.endings import Code, Refused, Unfinished
from workers_app.management.fleet_command import FleetCommand
from workers_app.management.tables import clean
from workers_app.operations import InvalidParameter, Kind, Operation, Parameter
from workers_app.outcomes import Outcome

#: As many names as are shown in a question or a result.
NAMES_SHOWN = 20
#: Between two looks of --wait.
LOOK_SECONDS = 1.0
#: While nothing changes, --wait says so this often.
PATIENCE_SECONDS = 60.0
#: Empty has a meaning for these, so it must be said.
EMPTY_MEANS_SOMETHING = (Kind.QUEUES, Kind.SLOTS)


@dataclass(frozen=True)
class Subject:
    """What an operation is done to."""

    id: Any
    #: As it stands in an `Outcome`.
    name: str
    #: What people should know before they say yes.
    note: str = ""
    #: Nothing will come of it before somebody starts its agent.
    away: bool = False


@dataclass(frozen=True)
class Chosen:
    subjects: list[Subject]
    #: Not named one by one: people may not know whom they have chosen.
    in_bulk: bool


@dataclass(frozen=True)
class Sight:
    """What --wait sees of one subject."""

    text: str
    there: bool = False
    #: It will never be there, because somebody wanted something else.
    failed: bool = False


class OperationCommand(FleetCommand):
    """Subclasses for workers, jobs and queues find subjects; a command names its operation, and what to wait for."""

    operation: Operation
    one: str
    many: str
    #: Exactly one of these is given.
    ways: tuple[str, ...]
    #: What --wait waits for; empty where nothing follows.
    awaited = ""
    codes = tuple(code for code in Code if code is not Code.UNFINISHED)
    pause: Callable[[float], None] = staticmethod(time.sleep)
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.help = self.operation.help
        if self.awaited:
            self.codes = tuple(Code)

    # -- arguments ----------------------------------------------------------------

    def add_arguments(self, parser: ArgumentParser) -> None:
        self.add_choices(parser)
        usage = [f"({' | '.join(self.ways)})"]
        for parameter in self.operation.parameters:
            flag, kind = f"--{parameter.name}", parameter.kind.upper()
            required = parameter.required or parameter.kind in EMPTY_MEANS_SOMETHING
            parser.add_argument(
                flag, type=_reader(parameter), required=required, metavar=kind, help=parameter.help.replace("%", "%%")
            )
            usage += [f"{flag} {kind}"] if required else []
        parser.usage = " ".join(["%(prog)s", *usage, "[options]"])
        parser.add_argument("-y", "--yes", action="store_true", help="do not ask before many are changed")
        parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
        if self.awaited:
            parser.add_argument(
                "--wait",
                nargs="?",
                type=_seconds,
                const=math.inf,
                metavar="SECONDS",
                help=f"wait {self.awaited}, for SECONDS or as long as it takes",
            )

    def add_choices(self, parser: ArgumentParser) -> None:
        """Add the arguments that say which subjects are meant."""
        raise NotImplementedError

    def choose(self, options: Mapping[str, Any]) -> Chosen:
        """Find the subjects. Raises Refused when one does not exist, or none fits."""
        raise NotImplementedError

    def one_way(self, *given: bool) -> None:
        """Insist that exactly one of `ways` was used; `given` says which, in their order."""
        used = [way for way, used in zip(self.ways, given, strict=True) if used]
        if not used:
            self.parser.error(f"say which {self.many}: {', '.join(self.ways[:-1])} or {self.ways[-1]}")
        if len(used) > 1:
            self.parser.error(f"{' and '.join(used)} exclude each other")

    # -- doing it ---------------------------------------------------------------------

    def handle(self, **options: Any) -> None:
        chosen = self.choose(options)
        subjects = chosen.subjects
        if chosen.in_bulk and (len(subjects) > 1 or self.operation.grave) and not options["yes"]:
            self._ask(subjects)
        values = {parameter.name: options[parameter.name] for parameter in self.operation.parameters}
        self.if_interrupted = "whether it was done is not known; the record of changes tells"
        outcome = self.operation.run([subject.id for subject in subjects], by=Actor.of_command(), **values)
        self.if_interrupted = "what was asked for stands"
        self._tell(outcome, as_json=options["json"])
        missing = len(subjects) - len(outcome.done) - len(outcome.skipped)
        if missing:
            self.note(f"skipped: {missing} of {len(subjects)}: no longer there", paint=self.style.WARNING)
        if options.get("wait") is not None:
            done = set(outcome.done_ids or outcome.done)
            asked = {s.id for s in subjects if {s.id, s.name} & done}
            if chosen.in_bulk:
                # Of many that were skipped, those that are switched off are none that anybody waits for.
                subjects = [s for s in subjects if s.id in asked or not s.away]
            self._wait(subjects, seconds=options["wait"], asked=asked)
        if outcome.skipped or missing:
            sys.exit(Code.SKIPPED)

    def _ask(self, subjects: Sequence[Subject]) -> None:
        number = f"{len(subjects)} {self.many if len(subjects) > 1 else self.one}"
        if not (sys.stdin.isatty() and self.stderr.isatty()):
            raise Refused(f"this would change {number}, and there is no terminal to ask at: repeat it with --yes")
        self.note(f"{self.operation.label}. {self.operation.help}")
        for subject in subjects[:NAMES_SHOWN]:
            self.note(f"  {clean(subject.name)}  {subject.note}")
        if len(subjects) > NAMES_SHOWN:
            self.note(f"  and {len(subjects) - NAMES_SHOWN} more")
        self.note(f"Go on with {number}? [y/N] ", ending="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Refused("nothing was changed")

    def _tell(self, outcome: Outcome, *, as_json: bool) -> None:
        if as_json:
            # As the operator API answers it.
            names = outcome.skipped_ids or [name for name, _ in outcome.skipped]
            skipped = [{"name": name, "why": why} for name, (_, why) in zip(names, outcome.skipped, strict=True)]
            answer = {"done": outcome.done_ids or outcome.done, "skipped": skipped}
            self.stdout.write(json.dumps(answer, indent=2, default=str))
        elif outcome.done:
            names = [clean(name) for name in outcome.done[:NAMES_SHOWN]]
            if len(outcome.done) > len(names):
                names.append(f"and {len(outcome.done) - len(names)} more")
            self.stdout.write(f"{self.operation.label}: {len(outcome.done)} done: {', '.join(names)}")
        self.stdout.flush()
        for name, why in outcome.skipped:
            self.note(f"skipped: {clean(name)}: {why}", paint=self.style.WARNING)

    # -- waiting ------------------------------------------------------------------------

    def look(self, subjects: Sequence[Subject]) -> Mapping[Any, Sight]:
        """What each of them has come to, by id; in as many queries for many as for one."""
        raise NotImplementedError

    def _wait(self, subjects: Sequence[Subject], *, seconds: float, asked: Container[Any]) -> None:
        """Say what changes until all are there; also those that were skipped, if they had been asked for before."""
        deadline, pending, failures = self.clock() + seconds, list(subjects), []
        told: dict[Any, str] = {}
        told_at = self.clock()
        while True:
            sights = self._look_again(pending)
            for subject in pending:
                sight = sights[subject.id]
                if sight.failed and subject.id in asked:
                    failures.append(f"{clean(subject.name)}: {sight.text}")
                elif not sight.failed and sight.text != told.get(subject.id):
                    told[subject.id], told_at = sight.text, self.clock()
                    self.note(f"{clean(subject.name)}: {sight.text}")
            pending = [subject for subject in pending if not (sights[subject.id].there or sights[subject.id].failed)]
            if not pending:
                break
            if self.clock() >= deadline:
                raise Unfinished(f"after {seconds:.0f} s still waiting for {_several(pending)}; the request stands")
            if self.clock() - told_at >= PATIENCE_SECONDS:
                told_at = self.clock()
                self.note(f"still waiting for {_several(pending)}")
            self.pause(min(LOOK_SECONDS, max(0.0, deadline - self.clock())))
        if failures:
            raise Refused("; ".join(failures))

    def _look_again(self, pending: Sequence[Subject]) -> Mapping[Any, Sight]:
        """A drain may take hours: a database that is away for a while ends no wait."""
        try:
            return self.look(pending)
        except (OperationalError, InterfaceError):
            connection.close()
            return {subject.id: Sight("not known, the database is away") for subject in pending}


def _several(subjects: Sequence[Subject]) -> str:
    names = [clean(subject.name) for subject in subjects[:NAMES_SHOWN]]
    return ", ".join(names) + (f" and {len(subjects) - len(names)} more" if len(subjects) > len(names) else "")


def _reader(parameter: Parameter) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return parameter.read(text)
        except InvalidParameter as invalid:
            raise ArgumentTypeError(invalid.detail) from None

    return read


def pattern(text: str) -> str:
    """For --pattern: refuses what is no pattern."""
    try:
        selection.like(text)
    except selection.InvalidPattern as invalid:
        raise ArgumentTypeError(invalid.detail) from None
    return text


def _seconds(text: str) -> float:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is no number of seconds; names come before --wait")
    return float(text)
