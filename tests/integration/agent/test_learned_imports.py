"""What tasks import is there before the next fork, unless forks must not share it; real runner, stand-in tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.agent.conftest import STAND_IN
from tests.integration.agent.control_plane import ControlPlane
from tests.integration.agent.runner_process import RunnerProcess

MODULES = {
    "airflow/providers/good.py": "import airflow.providers.beside",
    "airflow/providers/beside.py": "",
    "airflow/providers/threaded.py": "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()",
    "airflow/providers/opening.py": "import os\nhandle = os.open(os.devnull, os.O_RDONLY)",
    "airflow/providers/drawing.py": "import numpy.random",
    "airflow/providers/failing.py": "import os\nif 'EDGECONTROL_JOB' not in os.environ: raise RuntimeError('not here')",
    "airflow/providers/leaving.py": "import os\nif 'EDGECONTROL_JOB' not in os.environ: os._exit(3)",
    "numpy/__init__.py": "",
    "numpy/random.py": "",
    "of_a_dag.py": "",
}
GOOD = ["airflow.providers.beside", "airflow.providers.good"]
BAD = [f"airflow.providers.{name}" for name in ("threaded", "opening", "drawing", "failing", "leaving")]


class Tasks:
    """Stand-in tasks on one runner, one after the other."""

    def __init__(self, runner: RunnerProcess, plane: ControlPlane) -> None:
        self.runner = runner
        self.plane = plane

    def run(self, *, imports: list[str], **task: Any) -> list[str]:
        """Run a task with these imports; returns which of them were there before it began."""
        workload = {
            "type": "ExecuteTask",
            "token": "task-token",
            "ti": {"id": "1", "task": {"imports": imports, **task}},
        }
        directory = self.runner.run(workload, execution_api_url=self.plane.execution_api_url)
        assert self.runner.result(directory)["state"] == "success", (directory / "output").read_text()
        said = [json.loads(line) for line in (self.runner.folder / "witness").read_text().splitlines()]
        there: list[str] = [line for line in said if line["what"] == "start"][-1]["there"]
        return sorted(there)

    def until(self, holds: Callable[[], Any]) -> None:
        self.runner.until(holds)


@pytest.fixture
def tasks(tmp_path: Path, plane: ControlPlane) -> Iterator[Tasks]:
    beside = tmp_path / "beside"
    for name, source in MODULES.items():
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        (beside / name).write_text(source + "\n")
    runner = RunnerProcess(tmp_path, python_path=[STAND_IN, beside], WITNESS=str(tmp_path / "witness"))
    yield Tasks(runner, plane)
    runner.close()


def test_what_a_task_imported_of_airflow_is_there_for_the_next(tasks: Tasks) -> None:
    imports = [*GOOD, "of_a_dag"]
    assert tasks.run(imports=imports) == []
    tasks.until(lambda: tasks.run(imports=imports) == GOOD)


def test_what_forks_must_not_share_is_never_there(tasks: Tasks) -> None:
    tasks.run(imports=[*BAD, *GOOD])
    tasks.until(lambda: tasks.run(imports=GOOD) == GOOD)
    assert tasks.run(imports=[*BAD, "numpy.random"]) == []
    assert psutil.Process(tasks.runner.process.pid).num_threads() == 1
    said = tasks.runner.log_file.read_text()
    for word in ("starts a thread", "keeps a file open", "brings numpy.random", "not here", "ends the process"):
        assert word in said


def test_a_runner_that_has_learned_leaves_nothing_behind(tasks: Tasks) -> None:
    tasks.run(imports=[*GOOD, *BAD])
    tasks.until(lambda: tasks.run(imports=GOOD) == GOOD)
    server = psutil.Process(tasks.runner.process.pid)
    files = server.num_fds()
    tasks.run(imports=GOOD)
    assert not server.children()
    assert server.num_fds() == files
