"""The life of the agent: take over what is on disk, register, run the loops, drain, end; no request is decided here."""

from __future__ import annotations

import faulthandler
import logging
import signal
import time
from collections.abc import Mapping
from typing import Any

from agent import PROTOCOL, __version__, state_dir, sysinfo
from agent.attention import Attention
from agent.client import Client
from agent.config import Config
from agent.errors import AgentError, Interrupted, Outdated, SessionReplaced
from agent.extended_sysinfo import ExtendedSysinfo
from agent.gate import Gate
from agent.health import stale_because
from agent.held import Held
from agent.job_watch import JobWatch
from agent.jobs import Found, Job, Key
from agent.local_answers import answer as answer_locally
from agent.local_control import LocalControl
from agent.loop import Loop
from agent.orders import Orders
from agent.pages import Pages
from agent.registration import Registration, is_known
from agent.runners import kinds_on_this_machine, make_runners
from agent.spool import Spool
from agent.status import status
from agent.systemd import Notifier, Watchdog, in_words
from agent.transport import Transport
from agent.wishes import Wishes
from agent.work import Work

log = logging.getLogger("agent")

#: After the last job of a drain has ended: how long its report and log may take before the agent goes without them.
#: What has not arrived then, the next agent process sends.
DELIVERY_SECONDS = 60.0
#: The same after jobs were stopped by a second signal.
HASTY_DELIVERY_SECONDS = 10.0
#: How long after SIGKILL a job's processes may take to go.
KILL_SECONDS = 10.0


class Worker:
    """One agent process. `run` returns when it has drained or left, or raises the AgentError by which it has to end."""

    def __init__(self, *, config: Config, environ: Mapping[str, str]) -> None:
        self.config = config
        self.boot_id = sysinfo.boot_id(config.boot_id)
        #: What the machine is called, and the control plane's version, once that has said it.
        self.name, self.server_version = config.name or "", ""
        self.started_at = time.monotonic()
        self.took_over = False
        #: What goes on by itself, once the agent is registered.
        self.work: Work | None = None
        self.wishes = Wishes(config.state_dir)
        self.orders = Orders(concurrency=config.concurrency, wishes=self.wishes)
        self.wishes.on_change = self.orders.wished
        self.attention = Attention()
        self._signals: list[int] = []
        self._fatal: AgentError | None = None
        self._notifier = Notifier(environ)
        transport = Transport.of(config)
        transport.check()
        kinds = kinds_on_this_machine(config, environ)
        self._lock_handle = state_dir.take(config.state_dir, passable=any(kind.account for kind in kinds))
        session, self._replaces = state_dir.begin_session(config.state_dir)
        self.client = Client(url=config.url, token=config.token, session=session, new_session=transport.session)
        self.runner = make_runners(kinds, task_start=config.task_start, state_dir=config.state_dir, environ=environ)
        self.spool = Spool(state_dir=config.state_dir, account_of=self.runner.account_of)
        self.held = Held(spool=self.spool, concurrency=config.concurrency)
        self._execution_api_url = ""
        self.gate = Gate(
            runner_ready=lambda: self.runner.ready,
            execution_api=self._execution_api,
            disk=self.spool.trouble,
        )
        self.watch = JobWatch(
            runner=self.runner,
            held=self.held,
            gate=self.gate,
            boot_id=self.boot_id,
            grace_seconds=config.kill_grace_seconds,
        )
        self._meter = sysinfo.Meter(state_dir=config.state_dir)
        self.extended = ExtendedSysinfo(config.extended_sysinfo, folder=config.settings_folder)
        self._machine = sysinfo.machine(state_dir=config.state_dir, task_python=config.task_python)
        self._local_control = LocalControl(config.state_dir, lambda question: answer_locally(self, question))

    def run(self) -> None:
        """Work until told to end. Signals are read here, so this runs in the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._tell_systemd()
        if self.config.http_port:
            Pages(
                self.config.http_port,
                status=lambda: status(self),
                unhealthy=self.unhealthy,
                own_figures=self.extended.figures,
            ).start()
        self.extended.start()
        self._local_control.start()
        self.wishes.reload()
        try:
            self._live()
        finally:
            self._local_control.close()

    def _tell_systemd(self) -> None:
        """Have its watchdog fed from here on, where there is one."""
        watchdog = Watchdog(
            notifier=self._notifier,
            loops=lambda: [] if self.work is None else self.work.loops.values(),
            attention=self.attention,
            client=self.client,
            grace_seconds=self.config.kill_grace_seconds,
            doing=lambda: in_words(status(self)),
        )
        if self._notifier.listening:
            faulthandler.enable()  # its SIGABRT then says where every thread was
            Loop(name="systemd", step=watchdog.step, on_fatal=self.on_fatal).start()

    def stop(self, *, force: bool) -> None:
        """Drain as after SIGINT; with `force` stop the jobs as after a second one. Any thread may call this."""
        missing = (2 if force else 1) - len(self._signals)
        self._signals += [signal.SIGINT] * max(int(force), missing)
        self.attention.call()

    def _live(self) -> None:
        self.runner.connect()
        lost = self._take_over()
        self.took_over = True
        answer = self._register(without=lost)
        if answer is None:
            return self._stop_unregistered() if len(self._signals) > 1 else self._leave()
        work = self._start(answer)
        try:
            self._wait(work)
        finally:
            work.end()
        return None

    # --- start

    def _take_over(self) -> set[Key]:
        """Hold what an earlier process left. Returns what an earlier start of the machine took with it.

        That is all but what lives or has ended, also jobs that were never started: this may be a clone of a machine
        that has started them since.
        """
        lost = set()
        for job in self.spool.load():
            found = self.watch.take_over(job)
            if job.boot_id != self.boot_id and found in (Found.UNCONFIRMED, Found.WAITING, Found.DIED):
                lost.add(job.key)
        return lost

    def _register(self, *, without: set[Key]) -> dict[str, Any] | None:
        """Register with all that can be accounted for; None when a signal came first."""
        self._figures = self.figures()
        registration = Registration(
            client=self.client, url=self.config.url, token_name=self.config.name, state_dir=self.config.state_dir
        )
        return registration.until_accepted(
            {
                "replaces": self._replaces and str(self._replaces),
                "boot_id": self.boot_id,
                "name": self.config.name,
                "queues": self.queues(),
                "concurrency": self.config.concurrency,
                "agent_version": __version__,
                "airflow_version": self.runner.airflow_version,
                "protocol": PROTOCOL,
                "sysinfo": self._figures,
                "held": [
                    entry for entry in self.held.unreported() if Key(entry["id"], entry["attempt"]) not in without
                ],
            },
            pause=self._pause,
        )

    def _start(self, answer: dict[str, Any]) -> Work:
        """Begin to work, as the answer to the registration says."""
        self._execution_api_url = answer["execution_api_url"]
        self.name, self.server_version = answer["name"], str(answer.get("server_version") or "")
        work = Work(self, answer)
        work.begin(answer, told=self._figures)
        self.work = work  # last: its loops live from here on, as the watchdog expects
        log.info("worker %s is registered at %s", answer["name"], self.config.url)
        self._notifier.ready(f"{answer['name']} is registered")
        return work

    # --- life

    def _wait(self, work: Work) -> None:
        """Until drained, told to leave, or unable to go on."""
        while True:
            self.attention.wait(self._next_look_seconds())
            if self._fatal is not None:
                self._end_badly(work, self._fatal)
            if self._signals and self._signals[0] == signal.SIGTERM and self.config.on_term == "leave":
                return self._leave()
            if self._signals and not self.orders.ending:
                self._drain()
            if len(self._signals) > 1:
                return self._terminate(work)
            self._keep_deadline()
            if self.orders.draining and not self._worth_waiting_for():
                self._deliver(seconds=DELIVERY_SECONDS)
                if self.orders.draining:  # else the shutdown was withdrawn meanwhile
                    refusal = self.orders.refusal
                    self._offline(work)
                    if refusal:
                        raise Outdated(f"{self.config.url}: {refusal}")
                    return None

    def _drain(self) -> None:
        log.info("draining: no new jobs, %d still run; a second signal stops them", len(self.held.active()))
        self.orders.ending = True
        self.orders.want_heartbeat()

    def _next_look_seconds(self) -> float:
        left = self.orders.seconds_left()
        if left is None:
            return 60.0
        return min(left, 60.0) if left > 0 else 1.0

    def _keep_deadline(self) -> None:
        """Stop what still runs once the deadline of a shutdown order has passed; no later order spares it then."""
        left = self.orders.seconds_left()
        late = [job for job in self.held.active() if job.stopping_at is None]
        if left is None or left > 0 or not late:
            return
        log.warning(
            "the deadline of the shutdown has passed: stopping %d jobs; they are killed after %.0f s",
            len(late),
            self.config.kill_grace_seconds,
        )
        for job in late:
            self.watch.stop(job, gone=False, because="the deadline of its worker's shutdown has passed")

    def _worth_waiting_for(self) -> list[Job]:
        """Jobs that run: all but those that even SIGKILL does not end in time."""
        latest = time.monotonic() - self.config.kill_grace_seconds - KILL_SECONDS
        return [job for job in self.held.active() if job.stopping_at is None or job.stopping_at > latest]

    def _deliver(self, *, seconds: float) -> None:
        """Give the last reports and logs their time; one more signal or a withdrawn shutdown cuts it short."""
        signals, deadline = len(self._signals), time.monotonic() + seconds
        while self.held.all() and self.orders.draining and time.monotonic() < deadline:
            if self._fatal or len(self._signals) != signals:
                return
            time.sleep(0.1)

    def _terminate(self, work: Work) -> None:
        """Stop all jobs, give their reports a moment, end."""
        jobs = self.held.active()
        log.warning("stopping %d jobs; they are killed after %.0f s", len(jobs), self.config.kill_grace_seconds)
        self.orders.ending = True
        self._stop_jobs(gone=False)
        self._deliver(seconds=HASTY_DELIVERY_SECONDS)
        self._offline(work)
        if jobs:
            raise Interrupted(f"{len(jobs)} jobs were stopped by a second signal")

    def _end_badly(self, work: Work, error: AgentError) -> None:
        """Another agent has our identity: our jobs must not go on. Any other reason leaves them to the runner."""
        self.orders.ending = True
        work.take_no_more()
        if isinstance(error, SessionReplaced):
            self._stop_jobs(gone=True)
            for job in self.held.all():
                if job.gone and job.result is not None:
                    self.held.forget(job)  # nobody hears of its outcome from here
            self.runner.close(drain=True)
        raise error

    def _stop_jobs(self, *, gone: bool) -> None:
        """Stop every job, and wait until the last process has gone: SIGTERM, the grace, SIGKILL."""
        for job in self.held.all() if gone else self.held.active():
            self.watch.stop(job, gone=gone, because="a second signal stopped the agent of its machine")
        deadline = time.monotonic() + self.config.kill_grace_seconds + KILL_SECONDS
        while self.held.active() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _offline(self, work: Work) -> None:
        """The last word to the control plane, and to the runner. Neither is waited for long."""
        self.orders.ending = True  # from here on a withdrawn shutdown comes too late
        self._notifier.stopping("has drained")
        work.say_goodbye()
        left = len(self.held.all())
        if left:
            log.warning("%d reports or logs are still to be sent; the next start of the agent sends them", left)
        self.runner.close(drain=True)
        log.info("drained and offline")

    def _leave(self) -> None:
        self._notifier.stopping("leaves its jobs to the task runner")
        log.info(
            "leaving %d jobs to the task runner; the next start of the agent takes them over", len(self.held.active())
        )
        self.runner.close(drain=False)

    def _stop_unregistered(self) -> None:
        """Stop the jobs that an earlier agent process left; the next start tells what became of them."""
        jobs = self.held.active()
        log.warning("stopping %d jobs; the control plane hears of it with the next start of the agent", len(jobs))
        watching = Loop(name="jobs", step=self.watch.step, on_fatal=self.on_fatal)
        watching.start()
        self._stop_jobs(gone=False)
        watching.end()
        self.runner.close(drain=True)
        if jobs:
            raise Interrupted(f"{len(jobs)} jobs were stopped by a second signal")

    # --- what other threads call

    def gone(self, key: Key, reason: str) -> None:
        job = self.held.get(key)
        if job is not None and job.result is None:
            log.warning("job %s attempt %d is no longer ours (%s) and is stopped", key.id, key.attempt, reason)
            self.watch.stop(job, gone=True)

    def on_fatal(self, error: AgentError) -> None:
        self._fatal = self._fatal or error
        self.attention.call()

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)  # its arrival has woken the main thread

    def _pause(self, seconds: float) -> bool:
        """Wait; True when a signal has come meanwhile."""
        if is_known(self.config.url, state_dir=self.config.state_dir):
            # For hours if need be: a start that takes as long fails.
            self._notifier.ready("waits for the control plane")
        self.attention.wait(seconds)
        return bool(self._signals)

    def _execution_api(self) -> str:
        if not self._execution_api_url:
            return "the control plane does not say where it is (its setting execution_api_url)"
        return self.client.execution_api_health(self._execution_api_url)

    # --- what is told

    @property
    def registered(self) -> bool:
        return self.work is not None

    def queues(self) -> list[str] | None:
        return None if self.config.queues is None else list(self.config.queues)

    def unhealthy(self) -> str:
        """Why contact with the control plane is not fresh; empty while it is."""
        wait = 0.0 if self.work is None else self.work.claims.wait_seconds
        return stale_because(self.client.contact, registered=self.registered, wait_seconds=wait)

    def figures(self) -> dict[str, Any]:
        """The system figures, and why no work is taken if so."""
        facts = {**self._machine, **self._meter.figures(), **self.extended.figures()}
        facts["airflow_version"] = self.runner.airflow_version
        if not_served := self.runner.not_served():
            facts["not_served"] = not_served
        if self.client.clock.off_seconds is not None:
            facts["clock_off_seconds"] = self.client.clock.off_seconds
        reason = "" if self.work is None else self.work.claims.closed_because
        return {**facts, "not_working": reason} if reason else facts
