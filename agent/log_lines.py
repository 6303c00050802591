"""How the agent's own log looks; what is logged is decided where it happens."""

from __future__ import annotations

import logging
import sys
import time


def set_up_logging(level: str) -> None:
    """Plain lines on standard error: time, level, where, what."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It would say every lost connection once more.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
