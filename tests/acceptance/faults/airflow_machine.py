"""An edge machine whose tasks run in real Airflow: the other machines' life, with what Airflow needs to know there."""

from __future__ import annotations

from pathlib import Path

import psutil

from deploy.demo.environments import CHECKOUT
from tests.acceptance.faults.machine import Machine
from tests.integration.agent.conftest import Agent


class AirflowMachine(Machine):
    """A machine of an `AirflowSite`; start and stop it as any other."""

    def __init__(
        self, *, name: str, folder: Path, url: str, token: str, concurrency: int, queues: str, airflow: dict[str, str]
    ) -> None:
        super().__init__(name=name, folder=folder, url=url, token=token, kept=folder, concurrency=concurrency)
        self.queues = queues
        self.airflow = airflow

    @property
    def spool(self) -> Path:
        return self.folder / "state" / "jobs"

    def start(self, *flags: str, **environ: str) -> Agent:
        return super().start(
            f"--queues={self.queues}",
            *flags,
            # Also marks what runs here, so that a title of a process must not overwrite it.
            **{"PYTHONPATH": str(CHECKOUT), "SPT_NOENV": "1", **self.airflow, **environ},
        )

    def stop(self) -> None:
        """Drain as an operator would, so that the machine is not missed afterwards."""
        if self.agents and self.agent.process.poll() is None:
            self.agent.process.terminate()
            self.agent.wait(seconds=90)

    def supervisor_of(self, job: Path) -> psutil.Process:
        """The process that supervises the job of this directory."""
        return next(one for one in self.supervisors() if str(one.pid) in (job / "started").read_text())
