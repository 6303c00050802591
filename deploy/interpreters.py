"""Interpreters beside .venv, for what cannot be in it: one environment per committed lock, made when it is missing.

Whoever comes while another makes the same one waits for it; one whose lock has changed is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = CHECKOUT / ".environments"


def interpreter(name: str, *, lock: Path, edgecontrol: bool = True) -> str:
    """The Python of the environment `name`, which has what the lock names and, as in .venv, this checkout itself.

    Raises CalledProcessError, after uv's own words, when it cannot be made.
    """
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    ENVIRONMENTS.mkdir(exist_ok=True)
    with (ENVIRONMENTS / f"{name}.making").open("w") as making:
        fcntl.flock(making, fcntl.LOCK_EX)
        made_of, wanted = folder / "made-of", _ingredients(lock, edgecontrol=edgecontrol)
        if not made_of.exists() or made_of.read_text() != wanted:
            print(f"setting up {folder.relative_to(CHECKOUT)}", file=sys.stderr, flush=True)  # noqa: T201
            uv("venv", "--clear", "--python", sys.executable, str(folder))
            uv("pip", "install", "--python", str(python), "--no-deps", "--requirement", str(lock))
            if edgecontrol:
                uv("pip", "install", "--python", str(python), "--no-deps", "--editable", str(CHECKOUT))
            made_of.write_text(wanted)
    return str(python)


def uv(*arguments: str) -> None:
    """Run the uv of this environment, with nothing of this one's own in the way of another."""
    known = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    program = str(Path(sys.executable).parent / "uv")
    subprocess.run([program, *arguments, "--quiet"], check=True, cwd=CHECKOUT, env=known)


def _ingredients(lock: Path, *, edgecontrol: bool) -> str:
    """What an environment is made of, as text that changes when it does; the checkout's metadata are in pyproject."""
    files = [lock, CHECKOUT / "pyproject.toml"] if edgecontrol else [lock]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return "\n".join([sys.version, *digests])
