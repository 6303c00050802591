"""The cases of this folder, run by the interpreter that has the amazon provider and a stand-in for S3."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from deploy.interpreters import CHECKOUT, interpreter

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(1200)]

HERE = Path(__file__).resolve().parent


def test_logs_in_s3() -> None:
    python = interpreter("amazon", lock=HERE / "amazon.txt")
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    path = f"{Path(python).parent}{os.pathsep}{known.get('PATH', os.defpath)}"
    options = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [python, "-m", "pytest", str(HERE / "test_s3_logs.py"), *options],
        cwd=CHECKOUT,
        env={**known, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
