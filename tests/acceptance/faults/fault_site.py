"""A site for fault cases: control plane and PostgreSQL that can be killed, machines, and a gateway on each way."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tests.acceptance.faults.airflow_stand_in import Airflow, Task
from tests.acceptance.faults.machine import Machine
from tests.acceptance.faults.pace import PACE
from tests.acceptance.faults.proxy import Answer, FaultProxy
from tests.acceptance.site import Site, kill_tree


class FaultSite(Site):
    """Agents reach the control plane through `way_in`, tasks and agents reach Airflow through `way_to_airflow`."""

    def __init__(self, *, folder: Path, **settings: str) -> None:
        self.airflow = Airflow(patience=PACE.patience)
        self.way_to_airflow = FaultProxy(target=self.airflow.url, name="airflow")
        self.machines: list[Machine] = []
        self.kept = folder / "kept"
        self.kept.mkdir()
        super().__init__(
            folder=folder,
            execution_api_url=f"{self.way_to_airflow.url}/execution/",
            environ={**PACE.environ, "EDGECONTROL_PROCESSES": "2", **settings},
        )
        self.way_in = FaultProxy(target=self.url, name="control plane")
        self.proxies = [self.way_in, self.way_to_airflow]
        #: Processes that a case killed, frozen or restarted.
        self.breakages = 0
        self.airflow.start_scheduler(self.store)

    def machine(self, name: str, *, concurrency: int = 4, url: str | None = None) -> Machine:
        """A machine that has its token; start it."""
        folder = self.folder / name
        folder.mkdir()
        machine = Machine(
            name=name,
            folder=folder,
            url=url or self.way_in.url,
            token=self.token(name),
            kept=self.kept,
            concurrency=concurrency,
        )
        self.machines.append(machine)
        return machine

    def clone(self, original: Machine, name: str) -> Machine:
        """A machine with the same token; give it a disk with `Machine.copy_disk`, or leave it empty."""
        folder = self.folder / name
        folder.mkdir()
        machine = Machine(
            name=name,
            folder=folder,
            url=original.url,
            token=original.token,
            kept=self.kept,
            concurrency=original.concurrency,
        )
        self.machines.append(machine)
        return machine

    def until(self, holds: Callable[[], Any], *, seconds: float = 120) -> None:
        """Wait; generously, since the cases share a machine with each other."""
        super().until(holds, seconds=seconds)

    def own_ways(self, name: str) -> tuple[FaultProxy, FaultProxy]:
        """A way in and a way to Airflow for one machine alone; `machine` takes the url of the first."""
        to_airflow = FaultProxy(target=self.airflow.url, name=f"airflow for {name}")
        way_in = OtherAirflow(
            target=self.url, name=f"control plane for {name}", told=self.way_to_airflow.url, instead=to_airflow.url
        )
        self.proxies += [way_in, to_airflow]
        return way_in, to_airflow

    def until_registered(self) -> None:
        """Wait until every machine has introduced itself: from then on its agent waits for us, however long."""
        known = "SELECT 1 FROM edgecontrol.worker WHERE session IS NOT NULL"
        self.until(lambda: len(self.rows(known)) == len(self.machines), seconds=90)

    def now(self) -> Any:
        """By the clock of the database."""
        return self.rows("SELECT now()")[0].now

    def went_on(self, *, since: Any = None, seconds: float = 120) -> float:
        """Wait until a job is claimed or ends from then on, or from now on; return how many seconds that took."""
        since, began = since or self.now(), time.monotonic()
        moved = "SELECT 1 FROM edgecontrol.job WHERE claimed_at > %s OR finished_at > %s LIMIT 1"
        self.until(lambda: self.rows(moved, since, since), seconds=seconds)
        return time.monotonic() - began

    def queue(self, *specs: dict[str, Any], **options: Any) -> list[Task]:
        """Queue one task for each of the stand-in's specs; see `Airflow.queue`."""
        return self.airflow.queue(self.store, *specs, **options)

    @property
    def faults(self) -> int:
        """All that was broken on purpose so far."""
        return sum(proxy.faults for proxy in self.proxies) + self.breakages

    def settle(self, *, seconds: float) -> None:
        """Wait until every task has ended, every report and log has arrived, and Airflow was told of every job."""
        self.until(lambda: not self.airflow.unfinished(), seconds=seconds)
        live = [machine for machine in self.machines if machine.agents and machine.agent.process.poll() is None]
        self.until(lambda: not any(machine.held() for machine in live), seconds=seconds)
        self.until(lambda: not self.rows("SELECT 1 FROM edgecontrol.job WHERE told_at IS NULL LIMIT 1"), seconds=30)

    # --- the control plane's processes

    def kill_control_plane(self) -> None:
        """All its processes at once, as a power cut would."""
        self.breakages += 1
        kill_tree(self.process.pid)
        self.process.wait()

    def control_plane_processes(self) -> list[psutil.Process]:
        """gunicorn's workers, which may be killed one by one."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def restart_control_plane(self) -> None:
        """As a rolling update does: asked to stop, then started anew."""
        self.breakages += 1
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=40)
        self.serve()

    def postmaster(self) -> psutil.Process:
        """PostgreSQL's first process."""
        return psutil.Process(int((self.postgres.pgdata / "postmaster.pid").read_text().split("\n")[0]))

    def restart_postgres(self, *, away_seconds: float = 0.0) -> None:
        """Immediate shutdown: every connection and every transaction is lost, then recovery from the log."""
        self.breakages += 1
        postmaster = self.postmaster()
        os.kill(postmaster.pid, signal.SIGQUIT)
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster.wait(timeout=20)
        time.sleep(away_seconds)
        with self.postgres._lock:
            self.postgres.ensure_postgres_running()

    def close(self) -> None:
        with contextlib.ExitStack() as parts:
            parts.callback(super().close)
            for part in (*self.proxies, self.airflow, *self.machines):
                parts.callback(part.close)


class OtherAirflow(FaultProxy):
    """A way in that tells its machine another address of Airflow than the control plane does."""

    def __init__(self, *, target: str, name: str, told: str, instead: str) -> None:
        super().__init__(target=target, name=name)
        self._told, self._instead = told.encode(), instead.encode()

    def forward(self, *args: Any) -> Answer:
        answer = super().forward(*args)
        return replace(answer, body=answer.body.replace(self._told, self._instead))


def holds_for(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition holds during all of the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            return False
        time.sleep(0.1)
    return True
