"""An Airflow that has both, with settings of its own; nothing of it runs but what a test starts."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.environments import airflow_variables
from deploy.edge3_environment import edge3_python

BOTH = (
    "EdgeExecutor:airflow.providers.edge3.executors.EdgeExecutor,"
    "EdgeControl:airflow_bridge.executor.EdgeControlExecutor"
)


@dataclass
class Both:
    """The environment's interpreter, and the settings with which it is started."""

    python: Path
    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment; warnings are shown."""
        known = {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "AIRFLOW_HOME": str(self.home),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "PYTHONWARNINGS": "default",
            **airflow_variables({"core.load_examples": "false", "core.executor": BOTH, **self.settings}),
        }
        done = subprocess.run(argv, env=known, cwd=self.home, capture_output=True, text=True, check=False, timeout=300)
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def use_database(self, url: str) -> None:
        """Let Airflow's tables be there. It would take another driver for its other kind of session, unless told."""
        self.settings |= {"database.sql_alchemy_conn": url}
        if url.startswith("postgresql"):
            self.settings |= {"database.sql_alchemy_conn_async": url}

    def airflow(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(str(self.python.parent / "airflow"), *arguments, check=check)

    def python_says(self, code: str) -> Any:
        """What the code prints as the last line, which is JSON."""
        return json.loads(self.run(str(self.python), "-c", code).stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def interpreter() -> Path:
    return Path(edge3_python(beside_edgecontrol=True))


@pytest.fixture
def both(interpreter: Path, tmp_path: Path) -> Both:
    home = tmp_path / "airflow"
    home.mkdir()
    return Both(interpreter, home)
