"""The agent's own log, as people and as programs read it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest

from agent.log_lines import JsonLines, TextLines, set_up_logging, without_secrets

SECRET = "3f9a" * 16
TOKENS = [
    f"ec_0123456789ab_{SECRET}",
    f"ece_0123456789ab_{SECRET}",
    f"eyJhbGciOi.{SECRET}.{SECRET}",
    f"Bearer {SECRET}",
]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """What `set_up_logging` changes is put back."""
    root, hook = logging.getLogger(), threading.excepthook
    level, handlers = root.level, root.handlers[:]
    yield logging.getLogger("agent.some")
    logging.captureWarnings(False)
    threading.excepthook = hook
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("agent.some", logging.WARNING, "f.py", 1, message, args, info)


def test_text_is_time_level_place_and_words() -> None:
    made = record("job %s is gone", "x")
    made.created, made.msecs = 1_700_000_000.25, 250
    assert TextLines().format(made) == "2023-11-14T22:13:20Z WARNING agent.some: job x is gone"


def test_json_is_one_object_per_record_whatever_it_says() -> None:
    made = record("two\nlines of \u00fc and %s", '"', error=ValueError("why"))
    made.created, made.msecs = 1_700_000_000.25, 250
    line = JsonLines().format(made)
    assert "\n" not in line
    said = json.loads(line)
    assert said.pop("traceback").endswith("ValueError: why")
    assert said == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "agent.some",
        "message": 'two\nlines of \u00fc and "',
    }


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("lines", [TextLines(), JsonLines()])
def test_no_token_is_ever_written(lines: logging.Formatter, token: str) -> None:
    for made in (record(f"got {token}!"), record("got %r", {"a": token}), record("x", error=ValueError(token))):
        assert SECRET not in lines.format(made)


def test_what_is_no_token_stays() -> None:
    for text in ("job 0199-ab of ec_notes", "Bearer", "eyJ", "the key ec_0123 of a token"):
        assert without_secrets(text) == text
    assert without_secrets(TOKENS[0]) == "ec_0123456789ab_***"


def test_as_json_nothing_else_reaches_standard_error(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging("info", log_format="json")
    logger.info("hello")
    logger.debug("too much")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    thread = threading.Thread(target=lambda: 1 / 0, name="watch")
    thread.start()
    thread.join()
    sys.stderr.flush()
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(one["level"], one["logger"]) for one in said] == [
        ("info", "agent.some"),
        ("warning", "py.warnings"),
        ("error", "agent"),
    ]
    assert "ZeroDivisionError" in said[2]["traceback"]
