#!/usr/bin/env python
"""Django's command line for the control plane; a wrong setting ends it with one line each and exit code 2."""

from __future__ import annotations

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line
from django.db import OperationalError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "edgecontrol.settings")
    if os.environ.get("NO_COLOR"):  # as https://no-color.org has it
        os.environ.setdefault("DJANGO_COLORS", "nocolor")
    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:  # of Django's own commands: ours say so themselves
        sys.stderr.write(f"edgecontrol: the database is away or failed: {str(error).strip().partition(chr(10))[0]}\n")
        sys.exit(1)
    except KeyboardInterrupt:  # before a command could say so itself
        sys.exit(130)
    except ImproperlyConfigured as error:
        sys.stderr.write(f"edgecontrol: wrong settings:\n{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
