"""Cases 2, 3 and 4: agents die, machines restart, vanish or are cut off, each on its own queue, at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest

from tests.acceptance.faults.airflow_ledger import Place, balance
from tests.acceptance.faults.airflow_programs import PACE
from tests.acceptance.faults.airflow_site import AirflowSite
from tests.acceptance.faults.ledger import Row
from tests.acceptance.faults.proxy import FaultProxy

pytestmark = [
    pytest.mark.faults,
    pytest.mark.airflow,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]

SHORT_CUT_SECONDS = PACE.patience / 4
LONG_CUT_SECONDS = PACE.patience * 1.6
#: What the control plane adds to the patience before it gives a silent worker's jobs up.
MARGIN_SECONDS = 30
WAIT_SECONDS = PACE.patience * 3 + 240


class Story:
    """One run on one queue, from its start to its books."""

    def __init__(self, site: AirflowSite, queue: str, tasks: int, **conf: float) -> None:
        self.site, self.dag_id, self.tasks = site, f"work_{queue}", tasks
        self.run_id = site.trigger(self.dag_id, **conf)
        self.until(lambda: len(site.starts(self.run_id)) == tasks)

    def until(self, holds: Callable[[], object]) -> None:
        self.site.until(holds, seconds=WAIT_SECONDS)

    def started_again(self) -> float:
        """Wait for the first second try; return when it began."""
        self.until(lambda: [line for line in self.site.starts(self.run_id) if line["try"] > 1])
        return min(line["at"] for line in self.site.starts(self.run_id) if line["try"] > 1)

    def every_place(self) -> list[Place]:
        return [("work_0", number) for number in range(self.tasks)]

    def end(self, case: str, *, recovery_seconds: float, retried: bool = False, unheard: tuple[str, ...] = ()) -> Row:
        self.until(lambda: self.site.run_state(self.run_id) in ("success", "failed"))
        self.site.settle(self.run_id)
        return balance(
            self.site,
            case=case,
            dag_id=self.dag_id,
            run_id=self.run_id,
            faults=1,
            recovery_seconds=recovery_seconds,
            retried=dict.fromkeys(self.every_place(), 2) if retried else None,
            unheard=unheard,
        )


def agent_killed(site: AirflowSite) -> Row:
    """The agent alone is killed; the tasks live on, and the next agent takes them over."""
    machine = site.machines["crash-1"]
    story = Story(site, "crash", 20, seconds=40)
    machine.agent.kill()
    began = time.monotonic()
    site.start_machines(machine)
    recovery = time.monotonic() - began
    return story.end("2 agent killed under 20 tasks (A)", recovery_seconds=recovery)


def machine_reboots(site: AirflowSite) -> Row:
    """Everything on the machine is killed, and it comes back under another boot id."""
    machine = site.machines["reboot-1"]
    story = Story(site, "reboot", 6, seconds=PACE.patience * 2, again=1)
    machine.power_off()
    time.sleep(20)
    machine.reboot()
    back_at = time.time()
    again_at = story.started_again()
    row = story.end(
        "3 machine reboots under 6 tasks (A)", recovery_seconds=again_at - back_at, retried=True, unheard=("reboot-1",)
    )
    reasons = {job["reason"] for job in site.jobs(story.run_id) if job["state"] == "lost"}
    if reasons != {"its machine rebooted"}:
        row.wrong += 1
        row.complaints.append(f"the jobs were lost because {reasons}")
    return row


def machine_gone(site: AirflowSite) -> Row:
    """The machine never comes back: its jobs are given up once they cannot run any more, not before."""
    machine = site.machines["gone-1"]
    story = Story(site, "gone", 4, seconds=PACE.patience * 2, again=1)
    machine.power_off()
    gone_at = time.time()
    site.start_machines(site.machines["gone-2"])
    again_at = story.started_again()
    row = story.end(
        "3 machine gone for good under 4 tasks (A)",
        recovery_seconds=again_at - gone_at,
        retried=True,
        unheard=("gone-1",),
    )
    heard = site.parts.rows("edgecontrol", "SELECT last_heartbeat FROM edgecontrol.worker WHERE name = 'gone-1'")[0][0]
    for job in (job for job in site.jobs(story.run_id) if job["try_number"] == 1):
        silence = job["finished_at"] - heard
        if job["state"] != "lost" or silence < timedelta(seconds=PACE.patience + MARGIN_SECONDS):
            row.wrong += 1
            row.complaints.append(f"{job['state']} after {silence}: {job['reason']}")
    machine.reboot()  # so that nobody misses it
    return row


def link_away(site: AirflowSite, link: FaultProxy) -> Row:
    """The way to the control plane is cut for a quarter of the patience, with tasks ending meanwhile."""
    story = Story(site, "short", 6, seconds=SHORT_CUT_SECONDS / 2)
    link.refuse_connections()
    time.sleep(SHORT_CUT_SECONDS)
    link.reopen()
    back_at = time.time()
    story.until(lambda: len(site.starts(story.run_id)) > 6)
    recovery = max(line["at"] for line in site.starts(story.run_id)) - back_at
    return story.end(f"4 link away for {SHORT_CUT_SECONDS:.0f} s (A)", recovery_seconds=recovery)


def site_cut_off(site: AirflowSite, link: FaultProxy, uplink: FaultProxy) -> Row:
    """Neither the control plane nor Airflow can be reached for longer than the patience; then both can."""
    story = Story(site, "cut", 4, seconds=LONG_CUT_SECONDS * 1.5, again=1)
    for line in (link, uplink):
        line.refuse_connections()
    cut_at = time.time()
    site.start_machines(site.machines["cut-2"])
    time.sleep(LONG_CUT_SECONDS)
    for line in (link, uplink):
        line.reopen()
    again_at = story.started_again()
    return story.end(
        f"4 site cut off for {LONG_CUT_SECONDS:.0f} s (A)",
        recovery_seconds=again_at - cut_at,
        retried=True,
        unheard=("cut-1",),
    )


@pytest.fixture(scope="module")
def stories(airflow_site: AirflowSite) -> Iterator[dict[str, Future[Row]]]:
    site = airflow_site
    links = [FaultProxy(target=site.programs.control_plane_url, name=name) for name in ("short", "cut")]
    uplink = FaultProxy(target=site.programs.airflow_url, name="uplink")
    site.make_machines("crash-1", queues="crash", concurrency=20)
    site.make_machines("reboot-1", queues="reboot", concurrency=6)
    site.make_machines("gone-1", "gone-2", queues="gone", concurrency=4)
    site.make_machines("short-1", queues="short", concurrency=6, url=links[0].url)
    # Behind a proxy for everything but the control plane, so that its tasks' way to Airflow can be cut as well.
    behind = dict.fromkeys(("http_proxy", "HTTP_PROXY"), uplink.url) | dict.fromkeys(
        ("no_proxy", "NO_PROXY"), "localhost"
    )
    site.make_machines("cut-1", queues="cut", url=f"http://localhost:{links[1].port}", **behind)
    site.make_machines("cut-2", queues="cut")
    # The control plane gives nothing up when most of the fleet falls silent.
    site.make_machines("calm-1", "calm-2", "calm-3", queues="calm")
    first = ("crash-1", "reboot-1", "gone-1", "short-1", "cut-1")
    site.start_machines(*(site.machines[name] for name in first))
    calm = [site.machines[f"calm-{number}"] for number in (1, 2, 3)]
    site.start_machines(*calm, flags=("--task-start=fresh",))
    with ThreadPoolExecutor() as pool:
        yield {
            "agent killed": pool.submit(agent_killed, site),
            "reboot": pool.submit(machine_reboots, site),
            "gone": pool.submit(machine_gone, site),
            "link": pool.submit(link_away, site, links[0]),
            "cut off": pool.submit(site_cut_off, site, links[1], uplink),
        }
    for machine in site.machines.values():
        machine.stop()
    for line in (*links, uplink):
        line.close()


def test_agent_killed_under_20_tasks(stories: dict[str, Future[Row]], balanced: Callable[[Row], None]) -> None:
    balanced(stories["agent killed"].result())


def test_machine_reboots(stories: dict[str, Future[Row]], balanced: Callable[[Row], None]) -> None:
    balanced(stories["reboot"].result())


def test_machine_gone_for_good(stories: dict[str, Future[Row]], balanced: Callable[[Row], None]) -> None:
    balanced(stories["gone"].result())


def test_link_away_for_a_quarter_of_the_patience(
    stories: dict[str, Future[Row]], balanced: Callable[[Row], None]
) -> None:
    balanced(stories["link"].result())


def test_site_cut_off_beyond_the_patience(stories: dict[str, Future[Row]], balanced: Callable[[Row], None]) -> None:
    balanced(stories["cut off"].result())
