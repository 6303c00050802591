"""One edge machine of a fault case: its agent, and everything that an agent starts there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from agent.files import read_json
from tests.integration.agent.conftest import Agent


class Machine:
    """A machine with a name, a token and a disk; its agent may be started on it again and again."""

    def __init__(self, *, name: str, folder: Path, url: str, token: str, kept: Path, concurrency: int) -> None:
        self.name = name
        self.folder = folder
        self.url = url
        self.token = token
        self.kept = kept
        self.concurrency = concurrency
        self.boots = 1
        self.agents: list[Agent] = []
        #: When the whole machine stood still, by the monotonic clock.
        self.stood: list[tuple[float, float]] = []

    @property
    def agent(self) -> Agent:
        """The agent process that was started last."""
        return self.agents[-1]

    def start(self, *flags: str, **environ: str) -> Agent:
        """Start the agent, on what an earlier one left on disk."""
        agent = Agent(
            folder=self.folder,
            url=self.url,
            flags=["--concurrency", str(self.concurrency), "--kill-grace-seconds", "1", *flags],
            environ={
                "EDGE_AGENT_TOKEN": self.token,
                "EDGE_AGENT_BOOT_ID": f"{self.name}-{self.boots}",
                "KEPT_LOGS": str(self.kept),
                **environ,
            },
        )
        self.agents.append(agent)
        return agent

    def processes(self) -> list[psutil.Process]:
        """Everything of this machine but the agent's own process.

        That is what inherited the agent's environment and all below it. A supervisor that has set its title shows no
        environment any more; where its parent is dead, it is known by its job's directory.
        """
        mark = str(self.agents[0].witness_file)
        started = (read_json(directory / "started") or {} for directory in self.held())
        sessions = {one["pid"] for one in started if "pid" in one}
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in sessions or process.environ().get("WITNESS") == mark:
                    found.update({one.pid: one for one in (process, *process.children(recursive=True))})
        found.pop(self.agent.process.pid, None)
        return list(found.values())

    def runner(self) -> psutil.Process:
        """The fork server."""
        return self.agent.fork_server()

    def supervisors(self) -> list[psutil.Process]:
        """The processes that supervise one job each."""
        return self.runner().children()

    def freeze(self) -> None:
        """The whole machine stands still."""
        for _ in range(2):  # what was forked during the first look is found by the second
            self._all(psutil.Process.suspend)
        self.stood.append((time.monotonic(), float("inf")))

    def thaw(self) -> None:
        self.stood[-1] = (self.stood[-1][0], time.monotonic())
        self._all(psutil.Process.resume)

    def power_off(self) -> None:
        """Nothing that ran is left; the disk is."""
        self._all(psutil.Process.suspend)  # at one instant, so that none can report another's death
        self._all(psutil.Process.kill)
        self.agent.process.wait()

    def reboot(self, *flags: str, **environ: str) -> Agent:
        """Start the machine again after `power_off`."""
        self.boots += 1
        return self.start(*flags, **environ)

    def copy_disk(self, original: Machine) -> None:
        """What an image of the other machine's disk holds at this moment."""
        sockets = shutil.ignore_patterns("*.sock")
        shutil.copytree(original.folder / "state", self.folder / "state", ignore=sockets)

    def witnessed(self) -> list[dict[str, Any]]:
        return self.agents[0].witnessed() if self.agents else []

    def starts(self) -> list[dict[str, Any]]:
        return self.agents[0].starts() if self.agents else []

    def held(self) -> list[Path]:
        return self.agent.held() if self.agents else []

    def close(self) -> None:
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.process.send_signal(signal.SIGCONT)
        if self.agents:
            self.power_off()
        for agent in self.agents:
            agent.kill()

    def _all(self, act: Callable[[psutil.Process], None]) -> None:
        with contextlib.suppress(psutil.Error):
            act(psutil.Process(self.agent.process.pid))
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                act(process)
