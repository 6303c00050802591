"""Which tests another version of Airflow has to pass, and how its lock comes to be; no feature is asked for here."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

from deploy.interpreters import CHECKOUT, interpreter, uv

HERE = Path(__file__).resolve().parent
EXTRAS = ("server", "airflow", "agent", "embedded", "test")
#: What runs inside Airflow or has it imported.
FAST = (
    "tests/unit/airflow_bridge",
    "tests/integration/airflow_bridge",
    "tests/unit/agent/test_delivery.py",
    "tests/unit/agent/test_fork_server.py",
    "tests/unit/agent/test_lessons.py",
    "tests/unit/agent/test_runner_logging.py",
    "tests/integration/agent/test_calls_to_airflow.py",
    "tests/integration/agent/test_doctor.py",
    "tests/integration/agent/test_task_sdk.py",
    "tests/integration/agent/test_uploads.py",
)
#: The example DAG, on all programs.
REAL = ("tests/acceptance/test_demo.py",)


def main() -> int:
    known = sorted(lock.stem for lock in HERE.glob("*.txt"))
    parser = argparse.ArgumentParser(prog="make test-airflow", description="The tests that need Airflow, on others.")
    parser.add_argument("versions", nargs="*", help=f"versions of Airflow; without, all that have a lock: {known}")
    parser.add_argument(
        "--exclude-newer",
        type=date.fromisoformat,
        metavar="YYYY-MM-DD",
        help="write the lock of that version (anew) from what the package index had on that day",
    )
    parser.add_argument("--workers", default="4", help="of pytest")
    arguments = parser.parse_args()
    if arguments.exclude_newer and len(arguments.versions) != 1:
        parser.error("name the one version whose lock is to be written")
    if arguments.exclude_newer:
        write_lock(arguments.versions[0], day=arguments.exclude_newer)
        known.append(arguments.versions[0])
    if unknown := [version for version in arguments.versions if version not in known]:
        parser.error(
            f"Airflow {unknown[0]} has no lock here: say EXCLUDE_NEWER=YYYY-MM-DD too, a day soon after its release "
            f"(there are locks of {', '.join(known)})"
        )
    failed = [version for version in arguments.versions or known if not passes(version, workers=arguments.workers)]
    for version in failed:
        print(f"Airflow {version}: tests failed", file=sys.stderr)  # noqa: T201
    return 1 if failed else 0


def write_lock(version: str, *, day: date) -> None:
    """Resolve what EdgeControl needs with this Airflow; without upper limits of its own, Airflow needs a day."""
    lock = HERE / f"{version}.txt"
    constraint = HERE / f"{version}.constraint"
    constraint.write_text(f"apache-airflow=={version}\n")
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    options = ["--universal", "--python-version", "3.11", "--no-annotate", "--no-header", "--upgrade"]
    try:
        uv(
            *("pip", "compile", "pyproject.toml", *extras, *options, "--constraint", str(constraint)),
            *("--exclude-newer", day.isoformat(), "--output-file", str(lock)),
        )
    finally:
        constraint.unlink()
    lock.write_text(f"# uv pip compile --exclude-newer {day.isoformat()}\n{lock.read_text()}")


def passes(version: str, *, workers: str) -> bool:
    """Run the tests on this Airflow: the fast ones beside each other, then the example DAG."""
    python = interpreter(f"airflow-{version}", lock=HERE / f"{version}.txt")
    print(f"Airflow {version}", flush=True)  # noqa: T201
    for tests in ([*FAST, "-m", "not slow", "-n", workers], list(REAL)):
        if subprocess.run([python, "-m", "pytest", *tests], cwd=CHECKOUT, env=environment(python)).returncode:
            return False
    return True


def environment(python: str) -> dict[str, str]:
    """This process's, with that interpreter's programs first."""
    known = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return {**known, "PATH": f"{Path(python).parent}{os.pathsep}{known.get('PATH', os.defpath)}"}


if __name__ == "__main__":
    sys.exit(main())
