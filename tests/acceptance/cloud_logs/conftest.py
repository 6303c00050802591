"""These cases need the amazon provider, which is too heavy for .venv: they run in an environment of their own.

There they are collected; everywhere else the one test is that starts them there.
"""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = ["test_in_its_environment.py"] if find_spec("moto") else ["test_s3_logs.py"]
