"""`python -m deploy.agent_file`: makes edge-agent.pyz, the agent with all that it needs in one file.

It runs with Python 3.11 or newer on every kind of machine in MACHINES. Versions are those of requirements.txt, and the
same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from deploy.agent_file import start

ROOT = Path(__file__).resolve().parents[2]
#: Where the control plane looks for it, and what the wheel takes along.
OUTPUT = ROOT / "workers_app/downloads/edge-agent.pyz"
#: `sys.platform` and the processor, as Python calls them, and what uv calls the two.
MACHINES = {
    "linux-x86_64": "x86_64-manylinux2014",
    "linux-aarch64": "aarch64-manylinux2014",
    "darwin-arm64": "aarch64-apple-darwin",
    "win32-amd64": "x86_64-pc-windows-msvc",
}
#: Of what is needed, the one that is binary: one for each kind of machine. Of all others only Python's own is taken.
BINARY = "psutil"
COMPILED = {".so", ".pyd", ".dylib", ".dll"}
#: The first moment that a zip file can tell.
DATE = (1980, 1, 1, 0, 0, 0)


def main(output: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        stage, wheels = Path(temporary) / "stage", Path(temporary) / "wheels"
        for machine, name in MACHINES.items():
            install(wheels / machine, platform=name)
            gather(wheels / machine, stage, machine=machine)
        add_agent(stage)
        pack(stage, output)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    sys.stdout.write(f"{output}: {output.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}\n")


def install(target: Path, *, platform: str) -> None:
    """Fetch what the agent needs, in the versions of requirements.txt, as for a machine of that kind."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", target, "--link-mode", "copy"]
    uv += ["--python", sys.executable, "--python-version", "3.11", "--python-platform", platform]
    uv += ["--only-binary", ":all:", "--constraints", ROOT / "requirements.txt"]
    subprocess.run([*uv, "-r", ROOT / "agent/requirements.txt"], check=True)


def gather(installed: Path, stage: Path, *, machine: str) -> None:
    """Put what was installed where `start` finds it: what is for one kind of machine apart from what is for all."""
    for path in sorted(installed.rglob("*")):
        name = path.relative_to(installed)
        top = name.parts[0]
        if path.is_dir() or "__pycache__" in name.parts or top == "bin" or top.startswith("."):
            continue
        if top.endswith(".dist-info") and not ("licenses" in name.parts or path.name.startswith(("METADATA", "LICEN"))):
            continue
        if top == BINARY:
            copy(path, stage / start.MACHINES / machine / name)
        elif path.suffix not in COMPILED:
            copy(path, stage / name)


def add_agent(stage: Path) -> None:
    for path in sorted((ROOT / "agent").rglob("*.py")):
        copy(path, stage / path.relative_to(ROOT))
    copy(ROOT / "LICENSE", stage / "LICENSE")
    copy(Path(start.__file__), stage / "__main__.py")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def pack(stage: Path, output: Path) -> None:
    """Write the file in one step. Neither clock nor file system shows in it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            names = {path.relative_to(stage).as_posix(): path for path in stage.rglob("*") if path.is_file()}
            for name, path in sorted(names.items()):
                entry = zipfile.ZipInfo(name, DATE)
                entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Linux, wherever this runs
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
        os.fsync(file.fileno())
    temporary.chmod(0o755)
    temporary.replace(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT)
