"""`make demo`: start everything, run the example DAG, then wait for Ctrl-C (with ONCE=1: stop instead).

DEMO_STATE_DIR is where it keeps everything (.demo), DEMO_SECONDS how long the example may take to have run.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .demo import Demo
from .environments import ADMIN, CHECKOUT
from .processes import PartFailed
from .screen import Screen


def main() -> int:
    """Run the demo; return the exit code."""
    screen = Screen()
    once = os.environ.get("ONCE", "") not in ("", "0")
    state_dir = Path(os.environ.get("DEMO_STATE_DIR") or CHECKOUT / ".demo")
    seconds = float(os.environ.get("DEMO_SECONDS") or 300)
    outcome = None
    try:
        with Demo(state_dir, screen=screen, seconds=seconds) as demo:
            demo.start()
            outcome = demo.run_example()
            if not once:
                _show_addresses(screen, demo)
                screen.line(f"demo: {outcome}")
                demo.stay()
    except PartFailed as failure:
        _show_failure(screen, failure)
        return 1
    except KeyboardInterrupt:
        return 0 if outcome else 130
    screen.line(f"demo: {outcome}")
    return 0


def _show_addresses(screen: Screen, demo: Demo) -> None:
    password = demo.programs.password
    screen.line()
    screen.line(f"  Django admin   {demo.programs.control_plane_url}/admin/   {ADMIN} / {password}")
    screen.line(f"  Airflow        {demo.programs.airflow_url}/   {ADMIN} / {password}")
    screen.line(f"  Logs           {demo.processes.logs}")
    screen.line()
    screen.line("Ctrl-C stops everything.")


def _show_failure(screen: Screen, failure: PartFailed) -> None:
    screen.failed(str(failure))
    if failure.log and failure.log.is_file():
        for line in failure.log.read_text(errors="replace").splitlines()[-15:]:
            screen.line(f"    {line}")
    if failure.log:
        screen.line(f"Its log: {failure.log}" if failure.log.is_file() else f"The logs: {failure.log}")


if __name__ == "__main__":
    sys.exit(main())
