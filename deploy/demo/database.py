"""Keeps the embedded PostgreSQL of a demo: `python -m deploy.demo.database STATE_DIR` until SIGTERM.

A process of its own, so that the server also stops when the demo itself is killed.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import psutil

from edgecontrol import embedded

from .processes import adopt_orphans

#: One database for each of the two programs that have one.
DATABASES = ("edgecontrol", "airflow")


def addresses(state_dir: Path) -> Path:
    """Return the file that appears, with the URL of each database, once the server takes connections."""
    return state_dir / "databases.json"


def main(state_dir: Path) -> int:
    adopt_orphans()  # PostgreSQL makes itself one
    # Leaving by SystemExit runs what stops the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    urls = {name: embedded.start(state_dir, database=name) for name in DATABASES}
    temporary = addresses(state_dir).with_suffix(".new")
    temporary.write_text(json.dumps(urls))
    temporary.replace(addresses(state_dir))
    postmaster = int((state_dir / "postgres" / "postmaster.pid").read_text().split("\n")[0])
    psutil.Process(postmaster).wait()
    print("PostgreSQL has ended by itself")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
