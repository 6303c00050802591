"""An environment with Airflow and its own Edge provider: alone for benchmarks, or with EdgeControl beside it for tests.

Everything but the provider has the version that this checkout has, so that only what differs is compared.
"""

from __future__ import annotations

from pathlib import Path

from deploy.interpreters import interpreter

LOCK = Path(__file__).with_name("edge3.txt")


def edge3_python(*, beside_edgecontrol: bool = False) -> str:
    """The interpreter of the environment, made when it is missing. Raises CalledProcessError."""
    name = "edge3-and-edgecontrol" if beside_edgecontrol else "edge3"
    return interpreter(name, lock=LOCK, edgecontrol=beside_edgecontrol)
