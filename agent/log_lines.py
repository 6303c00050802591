"""How the agent's own log looks: lines for people, or a JSON object each; what is logged is decided where it happens.

Whatever a record says, no token leaves through here.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from typing import Any

#: A worker's or an enrolment token, of which its key may be read; what bears the mark of a JSON web token; a header.
SECRETS = re.compile(r"\b(ece?_[A-Za-z0-9]+_)[\w-]+|\b(eyJ)[\w-]+\.[\w.-]+|\b(Bearer |Basic )[^\s'\"]+")
MOMENT = "%Y-%m-%dT%H:%M:%S"


class TextLines(logging.Formatter):
    """Time, level, where, what."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", f"{MOMENT}Z")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """The same as an object: time, level, logger, message, and the traceback where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": f"{self.formatTime(record, MOMENT)}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if (code := getattr(record, "exit_code", None)) is not None:
            said["exit_code"] = code
        if record.exc_info:
            said["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(said)


def set_up_logging(level: str, *, log_format: str = "text") -> None:
    """Log to standard error. As JSON, what Python itself would write there becomes a line of the log as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # It would say every lost connection once more.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    if log_format == "json":
        logging.captureWarnings(True)
        threading.excepthook = log_end_of_thread


def log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread is not None else "a thread"
    error = ended.exc_value or ended.exc_type()
    logging.getLogger("agent").error("%s has ended", name, exc_info=(ended.exc_type, error, ended.exc_traceback))


def without_secrets(text: str) -> str:
    return SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}***", text)
