"""What every command of the fleet has in common: exit codes, one line for whatever goes wrong, and no stack trace."""

from __future__ import annotations

import io
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django.core.management import BaseCommand, CommandParser
from django.core.management.base import DjangoHelpFormatter
from django.db import DatabaseError, InterfaceError, ProgrammingError, connection

from workers_app.errors import Refusal
from workers_app.management.endings import MEANINGS, Code, Interrupted, Refused


class HelpFormatter(RawDescriptionHelpFormatter, DjangoHelpFormatter):
    """Django's order of options; line breaks as they are written."""


class FleetCommand(BaseCommand):
    # They would only delay a command that asks one thing of the database.
    requires_system_checks = []
    # They work, and only hide in the help what is ours.
    suppressed_base_arguments = {"--version", "--verbosity", "--settings", "--pythonpath", "--traceback"}
    #: The exit codes that this command can have.
    codes: tuple[Code, ...] = (Code.DONE, Code.REFUSED, Code.WRONG_USAGE, Code.INTERRUPTED)
    #: What Ctrl-C finds at the present point.
    if_interrupted = "nothing was changed"

    def create_parser(self, prog_name: str, subcommand: str, **options: Any) -> CommandParser:
        lines = (f"  {code.value:<5}{MEANINGS[code]}" for code in self.codes)
        options |= {
            "epilog": "\n".join(["exit codes:", *lines]),
            "formatter_class": HelpFormatter,
            # A flag that is nearly right must not mean something else.
            "allow_abbrev": False,
        }
        self.parser = super().create_parser(prog_name, subcommand, **options)
        return self.parser

    def execute(self, *args: Any, **options: Any) -> str | None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that cannot show a worker's name is no reason to fail.
                stream.reconfigure(errors="backslashreplace")
        if connection.connection is None:
            # One command needs one connection; a pool waits 20 s before it says that the database is away.
            connection.settings_dict["OPTIONS"].pop("pool", None)
        try:
            output = super().execute(*args, **options)
            self.stdout.flush()
        except KeyboardInterrupt:
            raise Interrupted(self.if_interrupted) from None
        except Refusal as refusal:
            raise Refused(refusal.detail) from None
        except ProgrammingError as error:
            raise Refused(f"the database has no tables for this version: {_line(error)}; start `serve` first") from None
        except (DatabaseError, InterfaceError) as error:
            raise Refused(f"the database is away or failed: {_line(error)}") from None
        except UnicodeEncodeError:
            raise Refused("an argument is no text in UTF-8") from None
        except BrokenPipeError:
            # Whoever read has seen enough, as `head` does; nor must the interpreter complain when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Code.REFUSED)
        return output

    def note(self, text: str, *, paint: Callable[[str], str] = str, ending: str = "\n") -> None:
        """For people, on stderr: stdout is for what the command found or did. Unlike an error it is not red."""
        self.stderr.write(text, paint, ending)
        self.stderr.flush()


def plain(value: object) -> str:
    """For JSON: times as the operator API writes them, anything else as text."""
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
