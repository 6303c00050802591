"""What goes on by itself in a registered agent: its parts, by the numbers of the control plane, and their loops."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from agent.claims import Claims
from agent.client import ApiError
from agent.errors import AgentError
from agent.heartbeat import Heartbeat
from agent.intake import Intake
from agent.jobs import Found
from agent.log_shipper import LogShipper
from agent.loop import Loop
from agent.reporter import Reporter
from agent.thresholds import make_thresholds

if TYPE_CHECKING:
    from agent.worker import Worker

log = logging.getLogger("agent")

#: How long the last heartbeat may take, and one that is on its way before it.
OFFLINE_SECONDS = 5.0


class Work:
    """Made from the answer to a registration, begun once, ended once."""

    def __init__(self, worker: Worker, answer: dict[str, Any]) -> None:
        self._worker = worker
        self.intake = Intake(
            client=worker.client,
            spool=worker.spool,
            held=worker.held,
            gate=worker.gate,
            orders=worker.orders,
            starter=worker.watch,
            settings={
                "execution_api_url": answer["execution_api_url"],
                "patience_seconds": answer["outage_patience_seconds"],
                "hostname": answer["name"],
                "boot_id": worker.boot_id,
            },
        )
        self.claims = Claims(
            client=worker.client,
            held=worker.held,
            gate=worker.gate,
            orders=worker.orders,
            intake=self.intake,
            wait_seconds=answer["claim_wait_seconds"],
            served=worker.runner.served,
        )
        self.heartbeat = Heartbeat(
            client=worker.client,
            held=worker.held,
            orders=worker.orders,
            interval_seconds=answer["heartbeat_seconds"],
            concurrency=worker.config.concurrency,
            queues=worker.queues(),
            ready=lambda: worker.runner.ready,
            sysinfo=worker.figures,
            on_gone=worker.gone,
            airflow_version=lambda: worker.runner.airflow_version,
            wish=worker.wishes.next,
        )
        self.loops = self._make_loops(answer)

    def _make_loops(self, answer: dict[str, Any]) -> dict[str, Loop]:
        """A thread for each thing that goes on by itself."""
        worker = self._worker
        shipper = LogShipper(client=worker.client, held=worker.held, chunk_bytes=answer["log_chunk_bytes"])
        reporter = Reporter(client=worker.client, held=worker.held, log_cap_bytes=answer.get("log_cap_bytes"))
        thresholds = make_thresholds(
            worker.config, extended=worker.extended, orders=worker.orders, wishes=worker.wishes
        )
        return {
            name: Loop(
                name=name,
                step=step,
                on_fatal=worker.on_fatal,
                answered_at=lambda: worker.client.contact.last_success_at,
                backoff=backoff,
            )
            for name, step, backoff in (
                ("jobs", worker.watch.step, None),
                ("claims", self.claims.step, None),
                ("heartbeat", self.heartbeat.step, self.heartbeat.backoff()),
                ("logs", shipper.step, None),
                ("reports", reporter.step, None),
                ("thresholds", thresholds.step, None),
            )
        }

    def begin(self, answer: dict[str, Any], *, told: dict[str, Any]) -> None:
        """Obey the answer, start the loops, and confirm what an earlier agent process did not.

        `told` are the system figures that went with the registration.
        """
        worker = self._worker
        self.heartbeat.seed(told)
        self.heartbeat.obey(answer)
        if worker.wishes.next() is not None:
            worker.orders.want_heartbeat()
        worker.held.on_change = worker.orders.on_change = self._changed
        self.claims.wake, self.claims.fatal = self.loops["claims"].wake, worker.on_fatal
        worker.extended.on_change = self.loops["heartbeat"].wake
        for loop in self.loops.values():
            loop.start()
        unconfirmed = [job for job in worker.held.active() if job.look() is Found.UNCONFIRMED]
        threading.Thread(target=self.intake.confirm, args=(unconfirmed,), name="intake", daemon=True).start()

    def _changed(self) -> None:
        for name in ("claims", "heartbeat", "logs", "reports"):
            self.loops[name].wake()
        if self._worker.orders.draining:
            self._worker.attention.call()

    def take_no_more(self) -> None:
        """Ask for no job, and confirm none; what is held goes on."""
        self.claims.end()
        self.intake.end()

    def say_goodbye(self) -> None:
        """Take no more, and tell the control plane that this agent goes. Nothing is waited for long."""
        self.take_no_more()
        self.loops["heartbeat"].end()
        self.loops["heartbeat"].join(timeout=OFFLINE_SECONDS)  # its word must not come after the last one
        try:
            self.heartbeat.send("offline", read_seconds=OFFLINE_SECONDS)
        except (ApiError, AgentError) as error:
            log.warning("could not say goodbye: %s", error)

    def end(self) -> None:
        """End the loops. None of them is waited for."""
        for loop in self.loops.values():
            loop.end()
