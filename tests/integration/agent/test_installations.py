"""The agent as machines have it: in an environment that holds no more than it needs, and as one file."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deploy.agent_file import __main__ as agent_file
from deploy.agent_file import start
from tests.integration.agent.conftest import ROOT, STAND_IN, Agent, default_state_dir, inherited_environment
from tests.integration.agent.control_plane import ControlPlane
from tests.integration.agent.one_file import make_one_file

Start = Callable[..., Agent]
#: An interpreter without the packages that happen to be installed here.
BARE = [sys.executable, "-S"]
IMPORT_ALL = """
import pkgutil, sys, agent
for module in pkgutil.walk_packages(agent.__path__, "agent."):
    if module.name not in ("agent.__main__", "agent.runner"):
        __import__(module.name)
print(sorted(name for name in sys.modules if name in ("django", "airflow", "psycopg", "httpx")))
"""


def run(*command: str | Path, folder: Path, typed: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        input=typed,
        capture_output=True,
        text=True,
        timeout=60,
        env={**inherited_environment(), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), **environ},
    )


def works_off_a_job(start_agent: Start, plane: ControlPlane, *, program: Sequence[str | Path], folder: Path) -> None:
    """From the enrolment token to the end of a job, with a graceful end."""
    enrolled = run(*program, "enrol", "--url", plane.url, folder=folder, typed=plane.invite() + "\n")
    assert enrolled.returncode == 0, enrolled.stderr
    assert ("next: python3 edge-agent.pyz run" in enrolled.stdout) == (program[-1] == "edge-agent.pyz")
    # Tasks have an environment of their own.
    agent = start_agent(
        "--task-python", sys.executable, enrolled=True, program=program, XDG_CACHE_HOME=str(folder / "cache")
    )
    job = plane.add({"result": "success"})
    plane.wait_for(lambda: job.report is not None)
    assert job.state == "success", agent.stderr
    stopped = run(*program, "stop", "--wait", folder=folder)
    assert (stopped.returncode, agent.wait()) == (0, 0), stopped.stderr + agent.stderr


@pytest.fixture(scope="session")
def one_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_one_file(tmp_path_factory.mktemp("one-file"))


def test_the_agents_requirements_are_those_of_its_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["agent"]
    assert (ROOT / "agent/requirements.txt").read_text().split() == extra
    assert {re.split(r"\W", line)[0] for line in extra} == {"psutil", "requests"}


def test_an_environment_with_nothing_but_the_agents_requirements_is_enough(
    tmp_path: Path, plane: ControlPlane, start_agent: Start
) -> None:
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    needed = ["-r", ROOT / "agent/requirements.txt", "--constraints", ROOT / "requirements.txt"]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *needed], check=True)
    imported = run(python, "-c", IMPORT_ALL, folder=ROOT)
    assert (imported.returncode, imported.stdout) == (0, "[]\n"), imported.stderr
    (tmp_path / "agent").symlink_to(ROOT / "agent")
    works_off_a_job(start_agent, plane, program=[python, "-m", "agent"], folder=tmp_path)


def test_one_file_is_enough(tmp_path: Path, one_file: Path, plane: ControlPlane, start_agent: Start) -> None:
    (tmp_path / "edge-agent.pyz").write_bytes(one_file.read_bytes())
    program = [*BARE, "edge-agent.pyz"]
    works_off_a_job(start_agent, plane, program=program, folder=tmp_path)
    asked = run(
        *program, "doctor", "--json", "--task-python", sys.executable, folder=tmp_path, PYTHONPATH=str(STAND_IN)
    )
    assert json.loads(asked.stdout), asked.stderr
    assert "Traceback" not in asked.stderr


def test_what_one_file_says_can_be_typed(tmp_path: Path, one_file: Path) -> None:
    (tmp_path / "edge-agent.pyz").symlink_to(one_file)
    said = run(*BARE, "edge-agent.pyz", "run", "--help", folder=tmp_path).stdout
    assert "python3 edge-agent.pyz enrol --url" in said
    nothing = run(*BARE, "edge-agent.pyz", "run", "--url", "https://edge.example.com", folder=tmp_path)
    assert nothing.returncode == 2
    assert "`python3 edge-agent.pyz enrol" in nothing.stderr
    assert "python -m agent" not in said + nothing.stderr


def test_one_file_takes_nothing_from_the_interpreter_that_runs_it(tmp_path: Path, one_file: Path) -> None:
    (tmp_path / "other/agent").mkdir(parents=True)
    (tmp_path / "other/agent/__init__.py").write_text("raise SystemExit('the wrong agent')")
    (tmp_path / "other/requests.py").write_text("raise SystemExit('the wrong requests')")
    for flags in ([], ["-I"]):
        done = run(sys.executable, *flags, one_file, "version", folder=tmp_path, PYTHONPATH=str(tmp_path / "other"))
        assert done.stdout.startswith("edge-agent "), done.stderr


def test_a_python_that_is_too_old_is_told_so(tmp_path: Path, one_file: Path) -> None:
    source = Path(str(start.__file__)).read_text()
    ast.parse(source, feature_version=(3, 7))  # an older one can read it
    pretended = (
        f"import runpy, sys; sys.version_info = (3, 9, 1); runpy.run_path({str(one_file)!r}, run_name='__main__')"
    )
    done = run(*BARE, "-c", pretended, folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("edge-agent: needs Python 3.11 or newer, not 3.")


def test_the_same_input_gives_the_same_file(tmp_path: Path, one_file: Path) -> None:
    stage = one_file.parent / "stage"
    for number, path in enumerate(sorted(path for path in stage.rglob("*") if path.is_file())):
        os.utime(path, (number, number))
    agent_file.pack(stage, tmp_path / "again.pyz")
    assert (tmp_path / "again.pyz").read_bytes() == one_file.read_bytes()


def test_what_was_unpacked_is_used_again_and_mended(tmp_path: Path, one_file: Path) -> None:
    assert run(*BARE, one_file, "version", folder=tmp_path).returncode == 0
    (unpacked,) = (tmp_path / "cache/edge-agent").iterdir()
    assert unpacked.stat().st_mode & 0o077 == 0
    made = unpacked.stat().st_ino
    assert run(*BARE, one_file, "version", folder=tmp_path).returncode == 0
    assert unpacked.stat().st_ino == made
    for broken in ("agent/cli.py", "requests/__init__.py"):
        (unpacked / broken).write_bytes(b"")
    done = run(*BARE, one_file, "version", folder=tmp_path)
    assert (done.returncode, len(list((tmp_path / "cache/edge-agent").iterdir()))) == (0, 1), done.stderr


@pytest.mark.parametrize("trouble", ["writable for all", "no folder"])
def test_a_cache_that_cannot_be_trusted_or_used_is_not_used(tmp_path: Path, one_file: Path, trouble: str) -> None:
    cache = tmp_path / "cache/edge-agent"
    if trouble == "no folder":
        cache.parent.write_text("in the way")
    else:
        cache.mkdir(parents=True)
        cache.chmod(0o777)
        planted = cache / hashlib.sha256(one_file.read_bytes()).hexdigest()[:16]
        with zipfile.ZipFile(one_file) as content:
            content.extractall(planted)
        (planted / "agent/cli.py").write_text("raise SystemExit('planted')")
    (tmp_path / "temporary").mkdir()
    done = run(*BARE, one_file, "version", folder=tmp_path, TMPDIR=str(tmp_path / "temporary"))
    assert done.stdout.startswith("edge-agent "), done.stderr
    assert not list((tmp_path / "temporary").iterdir())


def test_another_kind_of_machine_is_told_what_to_do(tmp_path: Path, one_file: Path) -> None:
    stranger = tmp_path / "edge-agent.pyz"
    with zipfile.ZipFile(one_file) as content, zipfile.ZipFile(stranger, "w") as other:
        for entry in content.infolist():
            name = entry.filename.replace(f"{start.MACHINES}/{sys.platform}-", f"{start.MACHINES}/beos-")
            other.writestr(name, content.read(entry))
    done = run(*BARE, stranger, "version", folder=tmp_path)
    assert done.returncode == 1
    assert f"has psutil for beos-{os.uname().machine}, and this is {sys.platform}-" in done.stderr
    assert "-m pip install psutil" in done.stderr


@pytest.mark.slow
def test_the_file_that_is_shipped_serves_every_kind_of_machine_and_is_made_alike_twice(tmp_path: Path) -> None:
    files = [tmp_path / "first.pyz", tmp_path / "second.pyz"]
    for file in files:
        subprocess.run([sys.executable, "-m", "deploy.agent_file", file], check=True, cwd=ROOT, timeout=300)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].stat().st_size < 2_000_000
    with zipfile.ZipFile(files[0]) as content:
        names = content.namelist()
    for machine in agent_file.MACHINES:
        assert [name for name in names if name.startswith(f"machines/{machine}/psutil/_psutil_")], machine
    outside = [name for name in names if not name.startswith("machines/")]
    assert not [name for name in outside if Path(name).suffix in agent_file.COMPILED]
    done = run(*BARE, files[0], "version", folder=tmp_path)
    assert done.stdout.startswith("edge-agent "), done.stderr
    assert not default_state_dir(tmp_path).exists()
