"""Settings of a test run. A pytest plugin (`-p tests.scratch`): pytest-django reads settings before any conftest."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

for _name in [name for name in os.environ if name.startswith("EDGECONTROL_") and name != "EDGECONTROL_DATABASE_URL"]:
    del os.environ[_name]
# Programs that tests start inherit it; a shell in the background would have them ignore Ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
# An embedded PostgreSQL of this user's test runs, never the one of the checkout.
os.environ["EDGECONTROL_DATA_DIR"] = str(Path(tempfile.gettempdir()) / f"edgecontrol-tests-{os.getuid()}")
